"""Which code computed a run's numbers: a fingerprint of the sources that they come from.

Derived, never listed: the module that runs a run, the part of the run's regime, and the file of every kind that its
settings name, each with all that they import from the package that they are in, read and not run. So an edited image
loader leaves text runs alone, and a file of one's own in the folder of `--config-dir` counts like ours.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from weight_decay.config import own
from weight_decay.config.registry import PACKAGE, REGISTRIES, Place

ENTRY = "weight_decay.training.run"
REGIMES = "weight_decay.tasks"
SILENT = ("runs", "errors", "extras", "places")
"""What decides no number: what lies on disk, what is said of it, and where it lies. None of it can import torch."""


def code_fingerprint(settings: Mapping[str, Any], regime: str) -> str | None:
    """Twelve hexadecimal digits of the sources behind a run's numbers; comments do not count.

    settings: the run's identity as plain values (`config.plain.to_dict`); regime: "over_training" or
    "under_training". None if a kind that it names is not known here, so that nobody here can tell.
    """
    kinds = frozenset(name for registry in REGISTRIES for name in registry.named_in(settings))
    return _fingerprint(regime, kinds, os.environ.get(own.OWN_CONFIGS))


def other_code(summary: Mapping[str, Any]) -> str | None:
    """The fingerprint in a summary if code that may give other numbers computed it; None if it was the present code."""
    found, settings = summary.get("code_fingerprint"), summary.get("identity")
    if found is None or not isinstance(settings, Mapping):
        return found  # summaries that do not say what was run are older than the present code
    return found if code_fingerprint(settings, str(summary.get("regime"))) not in (None, found) else None


def sources(regime: str, places: list[Place]) -> dict[str, Path]:
    """Module -> file of all code behind the numbers of a run of this regime whose kinds are in `places`."""
    # Files of one's own bear names below our package and lie elsewhere: `_file` knows where.
    theirs = [place for place in places if not place.module.startswith("weight_decay.")]
    roots = {"weight_decay": PACKAGE.parent, **{place.module.partition(".")[0]: place.root for place in theirs}}
    waiting = [ENTRY, f"{REGIMES}.{regime}", *(place.module for place in places)]
    files: dict[str, Path] = {}
    while waiting:
        module = waiting.pop()
        top, _, below = module.partition(".")
        if module in files or top not in roots or (top == "weight_decay" and below.partition(".")[0] in ("", *SILENT)):
            continue
        if (file := _file(module, roots[top])) is not None:
            files[module] = file
            waiting += [module.rpartition(".")[0], *_read(file)[1]]
    return files


@functools.cache
def _fingerprint(regime: str, kinds: frozenset[tuple[str, str]], _own_folder: str | None) -> str | None:
    by_setting = {registry.setting: registry for registry in REGISTRIES}
    places = [by_setting[setting].place(kind) for setting, kind in kinds]
    known = [place for place in places if place is not None]
    if len(known) < len(places):
        return None
    digest = hashlib.sha256()
    for module, file in sorted(sources(regime, known).items()):
        digest.update(f"{module}\0{_read(file)[0]}\0".encode())
    return digest.hexdigest()[:12]


def _file(module: str, root: Path) -> Path | None:
    """Where a module is written, below `root` or in the folder of `--config-dir`; None if it is only a name in one."""
    if module.startswith(f"{own.__name__}."):
        folder, parts = Path(os.environ.get(own.OWN_CONFIGS, "")), module.split(".")[3:]
    else:
        folder, parts = root, module.split(".")
    path = folder.joinpath(*parts)
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _read(file: Path) -> tuple[str, tuple[str, ...]]:
    """The essence of a file, and the modules that it imports."""
    return _read_at(file, file.stat().st_mtime_ns)


@functools.cache
def _read_at(file: Path, _changed: int) -> tuple[str, tuple[str, ...]]:
    source = file.read_text("utf-8")
    tree = ast.parse(source)
    return essence(source, tree), tuple(_imported(tree))


def _imported(tree: ast.Module) -> Iterator[str]:
    """All that is imported anywhere, also inside functions, and what may be a module: the names of a `from`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def essence(source: str, tree: ast.Module) -> str:
    """Python source without comments, docstrings, blank lines and trailing spaces; the same in every Python."""
    lines = source.encode().splitlines()  # positions in a tree count bytes
    strings = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)):
            strings.append(((node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0)))
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for statement in node.body:
                # Also the strings that stand below an attribute: they document and do nothing.
                value = statement.value if isinstance(statement, ast.Expr) else None
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    last = statement.end_lineno or statement.lineno
                    lines[statement.lineno - 1 : last] = [b""] * (last - statement.lineno + 1)
    for number, line in enumerate(lines, start=1):
        for sign in re.finditer(b"#", line):
            if not any(start <= (number, sign.start()) < end for start, end in strings):
                lines[number - 1] = line[: sign.start()]
                break
    return b"\n".join(line.rstrip() for line in lines if line.strip()).decode()
