"""Command lines and experiment files nobody in their right mind would write; hypothesis makes them up."""

# ruff: noqa: E501  (tables of nonsense)
from __future__ import annotations

import contextlib
import functools
import os
import random
import shlex
import warnings
from collections.abc import Callable
from typing import Any

import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import NonInteractiveExampleWarning

from hunt.laboratory import TINY_TEXT, Laboratory
from hunt.ledger import Ledger, in_a_child
from weight_decay.cli import main
from weight_decay.config.own import OWN_CONFIGS
from weight_decay.places import CONFIGS

warnings.simplefilter("ignore", NonInteractiveExampleWarning)
LIMIT = 8.0
"""Seconds for one command line, on a machine that has other things to do; two are promised on an idle one."""


@functools.cache
def keys() -> tuple[str, ...]:
    """The dotted names of all settings in the config files, and the names of the groups."""
    found: set[str] = set()
    for path in CONFIGS.rglob("*.yaml"):
        content = yaml.safe_load(path.read_text())
        group = "" if path.parent == CONFIGS else f"{path.parent.name}."
        if "experiment" in path.parts or "setting" in path.parts or not isinstance(content, dict):
            continue
        found |= set(_flat(content, group))
        if group:
            found.add(path.parent.name)
    return tuple(sorted(found))


def _flat(content: dict[str, Any], prefix: str) -> list[str]:
    names = []
    for key, value in content.items():
        names.append(f"{prefix}{key}")
        if isinstance(value, dict):
            names += _flat(value, f"{prefix}{key}.")
    return names


@functools.cache
def options() -> tuple[str, ...]:
    """Every `group=option`."""
    return tuple(
        sorted(f"{path.parent.name}={path.stem}" for path in CONFIGS.rglob("*.yaml") if path.parent != CONFIGS)
    )


NUMBERS = (
    "0", "1", "-1", "0.1", "1e-320", "1e308", "1e309", "-1e-9", "nan", "inf", "-inf", "1_000", "0x10", "1:30", "007", "1e18",
    "9" * 30, "9" * 400, "-0", ".5", "5.", "2147483648", "18446744073709551616",
)  # fmt: skip
SPANS = tuple(
    f"{number} {unit}" for number in ("0", "1", "3", "1e308", "99999999999", "-1", "0.5", "1e-320", "9" * 40)
    for unit in ("steps", "epochs", "samples", "tokens", "%", "k steps", "M tokens", "years", "")
)  # fmt: skip
WILD = (
    "null", "true", "false", "''", '""', "[]", "{}", "[1,2]", "{a: 1}", "[" * 40 + "]" * 40, "[" * 3000, "{a: " * 200 + "1" + "}" * 200,
    "range(0,1,0)", "range(0,1000000000)", "choice(1,2)", "choice()", "glob(*)", "glob(*,exclude=*)", "interval(0,1)", "sort(1,2)",
    "shuffle(1,2)", "tag(x,choice(1))", "${seed}", "${nothing}", "${oc.env:HOME}", "${oc.env:NOTHING}", "${hydra:runtime.cwd}", "${", "$",
    "'", '"', "a b", "a,b", "=", "==", "\\", "\\n", "\n", "\t", "\0", "é", "日本", "\ud800", "../../..", "/etc/passwd", "~", "*", "?", "%s", "{0}",
    "int(1.5)", "float(nan)", "json_str({})", "str([1])", "extend_list(1)", "a" * 5000, "(a+)+$", "(.*)*" * 20, "(?P<x>a)(?P<x>b)", "[{match: '(a+)+$'}]",
    "[{name: x, start: 500%, duration: 1 steps, lr: 1, strength: 0}]", "[{name: ../x, start: 1 steps, duration: 1 steps, lr: 1, strength: 0}]",
)  # fmt: skip


def values() -> st.SearchStrategy[str]:
    """What may stand behind `=`."""
    numbers = st.one_of(st.sampled_from(NUMBERS), st.floats().map(repr), st.integers(-(2**70), 2**70).map(str))
    lists = st.lists(st.sampled_from(NUMBERS + SPANS[:12] + WILD[:12]), max_size=5).map(
        lambda parts: f"[{','.join(parts)}]"
    )
    return st.one_of(numbers, st.sampled_from(SPANS), st.sampled_from(WILD), lists, st.text(max_size=12))


def lines() -> st.SearchStrategy[list[str]]:
    """Command lines that run nothing: `--dry-run`, or a command that only reads."""
    names = st.one_of(
        st.sampled_from(keys()),
        st.sampled_from(keys()),
        st.text(max_size=8),
        st.sampled_from(["jobs", "cell", "stale", "scale"]),
    )
    setting = st.tuples(names, values()).map("=".join)
    prefixed = st.tuples(st.sampled_from(["+", "++", "~", "hydra.", "hydra/"]), setting).map("".join)
    word = st.one_of(setting, setting, setting, st.sampled_from(options()), prefixed, values())
    # Half of them are sound but for one word or two, so that what is refused late is tried too.
    sound = st.sampled_from(
        [
            (),
            ("model=resnet18", "data=procedural"),
            tuple(shlex.split(TINY_TEXT)),
            ("experiment=demo_over_training",),
            ("scale=small", "experiment=fig06_language_model"),
        ]
    )
    dry = st.tuples(sound, st.sampled_from([False, False, True]), st.lists(word, max_size=3)).map(
        lambda parts: ["--dry-run", *["-m"] * parts[1], *parts[0], *parts[2]]
    )
    tool = st.tuples(
        st.sampled_from(["status", "collect", "claims", "figures", "readme", "watch", "advise", "--info", "--help", "statsu", "-x", "demo-report"]),
        st.lists(st.one_of(values(), st.tuples(st.sampled_from(["results", "every", "tables", "drop", "lr", "parameters", "tokens"]), values()).map("=".join)), max_size=3),
    ).map(lambda both: [both[0], *both[1]])  # fmt: skip
    return st.one_of(dry, dry, dry, tool)


def made_up(strategy: st.SearchStrategy[Any], count: int, number: int) -> list[Any]:
    """`count` examples of a strategy, the same for the same seed."""
    found: list[Any] = []

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        phases=[Phase.generate],
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def keep(example: Any) -> None:
        found.append(example)

    keep()
    return found


def command_lines(laboratory: Laboratory, ledger: Ledger, cases: int, number: int) -> None:
    """Each command line: exit code 0, or 2 with a sentence; no traceback, in bounded time and memory."""
    folder = laboratory.root / "command-lines"
    folder.mkdir(exist_ok=True)
    kept, _ = laboratory.finished()
    laboratory.restore(kept)

    def told(words: list[str]) -> str:
        os.chdir(folder)
        os.environ.pop(OWN_CONFIGS, None)
        if words[0] == "watch":
            words = [*words, "once"]
        main(words)
        return "survived"

    _warm_up()
    found: list[list[str]] = []
    while len(found) < cases:
        found += made_up(lines(), cases - len(found), number + len(found))
    in_a_child([(repr(words)[:300], functools.partial(told, words)) for words in found], ledger, "command lines", LIMIT)


def _warm_up() -> None:
    """Load and compose here what each child would otherwise load and compose again."""
    for words in (["experiment=demo_over_training"], ["experiment=fig06_language_model"], shlex.split(TINY_TEXT)):
        with contextlib.suppress(SystemExit):
            main(["--dry-run", *words])
    for command in ("status", "claims"):
        with contextlib.suppress(SystemExit):
            main([command, "results=nowhere"])


TEMPLATE = {
    "defaults": [{"override /data": "procedural"}, {"override /model": "resnet18"}, "_self_"],
    "about": {"title": "Mine", "figure": "2", "regime": "over_training"},
    "decay": {"strength": 0.01},
    "duration": "10 steps",
    "grid": [{"seed": [0, 1], "optimizer.lr": [0.1, 0.2]}],
}  # fmt: skip
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)


def ruined(draw: random.Random) -> bytes:
    """An experiment file with something wrong in its structure, its values or its bytes."""
    content = yaml.safe_load(yaml.safe_dump(TEMPLATE))
    for _ in range(draw.randrange(1, 3)):
        node, key = content, draw.choice(list(content))
        while isinstance(node.get(key), dict) and node[key] and draw.random() < 0.7:
            node, key = node[key], draw.choice(list(node[key]))
        kind = draw.randrange(7)
        wild = draw.choice(
            [*NUMBERS, *SPANS, *WILD, None, [], {}, [[]], {"a": {}}, 1e308, -1, True, [None], {1: 2}, list(range(3000))]
        )
        if kind == 0:
            node.pop(key, None)
        elif kind == 1:
            node[draw.choice(["x", "", "grid", draw.choice(keys()), "2"])] = wild
        elif kind == 2:
            content["grid"] = [{draw.choice(keys()): [wild, wild]}] if draw.random() < 0.7 else wild
        elif kind == 3:
            axes = {f"seed{i}" if i else "seed": list(range(3000)) for i in range(draw.randrange(1, 4))}
            content["grid"] = [axes]
        elif kind == 4:
            content["defaults"] = [
                draw.choice(["_self_", "x", {"override /data": wild}, {draw.choice(keys()): wild}, wild])
            ]
        else:
            node[key] = wild
    head = "# @package _global_\n" if draw.random() < 0.95 else ""
    text = (head + yaml.safe_dump(content, allow_unicode=True)).encode("utf-8", "surrogatepass")
    kind = draw.randrange(12)
    at = draw.randrange(len(text)) if text else 0
    if kind == 0:
        text = text[:at]
    elif kind == 1:
        text = text[:at] + bytes([draw.randrange(256)]) + text[at + 1 :]
    elif kind == 2:
        text += BOMB.encode()
    elif kind == 3:
        text = text + b"\nmodel: " + b"[" * 5000
    elif kind == 4:
        text = b"!!python/object/apply:os.system ['true']\n" + text
    return text


def experiment_files(laboratory: Laboratory, ledger: Ledger, cases: int, number: int) -> None:
    """An experiment file of one's own with nonsense in it: a plan, or one sentence that names the file."""
    place = laboratory.root / "own"

    def told(case: int, text: bytes) -> str:
        own = place / str(case)
        (own / "experiment").mkdir(parents=True)
        (own / "experiment" / "mine.yaml").write_bytes(text)
        os.environ.pop(OWN_CONFIGS, None)
        main(["--config-dir", str(own), "--dry-run", "experiment=mine", "scale=micro"])
        return "survived"

    found = [(case, ruined(random.Random(f"yaml {number} {case}"))) for case in range(cases)]
    _warm_up()
    named = [(f"case {case}: {text[:200]!r}", functools.partial(told, case, text)) for case, text in found]
    in_a_child(named, ledger, "experiment files", LIMIT)


AREAS: tuple[Callable[[Laboratory, Ledger, int, int], None], ...] = (command_lines, experiment_files)
