"""YAML that a user wrote, read within bounds: what cannot be meant is refused in a sentence instead of hanging."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from weight_decay.errors import UserError, first_line

MOST_BYTES = 100_000
MOST_VALUES = 20_000
DEEPEST = 50
"""Far beyond any experiment: our longest file has 7 kB, 1,000 values and 6 levels."""


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in `file`; UserError, which names file and line, if there is none or it is out of all bounds."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); it must be a file that you may read.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: byte {error.start} is not UTF-8; save the file as UTF-8.") from None
    try:
        content = _parsed(text)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{file}{line}: this is not YAML ({error.problem}); put it right there.") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = first_line(error)
        raise UserError(f"{file}: this is not YAML ({reason}); put it right there.") from None
    if not isinstance(content, dict) or not content:
        what = "is empty" if not content else "is not made of `key: value` lines"
        raise UserError(f"{file}: {what}; `weight-decay --info` shows what belongs in it.")
    return content


def _parsed(text: str) -> Any:
    if deep(text) > DEEPEST:
        raise ValueError(f"brackets stand more than {DEEPEST} deep in each other")
    if len(text) > MOST_BYTES:
        raise ValueError(f"it is longer than {MOST_BYTES:,} characters")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if (size := _written_out(node, {})) > MOST_VALUES:
            raise ValueError(f"with its *aliases written out it has {size:,} values, the most are {MOST_VALUES:,}")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def deep(text: str) -> int:
    """How deep brackets stand in each other, quoted ones too: cheap, and never too small."""
    depth = deepest = 0
    for letter in text:
        if letter in "[{(":
            depth += 1
            deepest = max(deepest, depth)
        elif letter in "]})":
            depth = max(0, depth - 1)
    return deepest


def _written_out(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values the node has when every alias is replaced by what it stands for."""
    if id(node) not in known:
        known[id(node)] = MOST_VALUES + 1  # an alias of something inside itself has no end
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        known[id(node)] = 1 + sum(_written_out(part, known) for part in inner)
    return known[id(node)]


class _Loader(yaml.SafeLoader):
    """Refuses, as Hydra does, a key that stands twice; and 1:30, which YAML 1.1 takes for the number 90."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} stands there twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)


def _no_sixties(loader: _Loader, node: yaml.ScalarNode) -> int | float:
    if ":" in node.value:
        problem = f"YAML takes {node.value} for a number of base 60; write the number, or put it in quotes"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    if node.tag.endswith(":int"):
        return loader.construct_yaml_int(node)
    return loader.construct_yaml_float(node)


for _tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
    _Loader.add_constructor(_tag, _no_sixties)
