"""Which figures are already what their tables would give again: those need no drawing."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import matplotlib

import weight_decay.report
from weight_decay.report.figures.demo import DrawnFigure
from weight_decay.report.figures.reference import reference_file
from weight_decay.runs.files import write_if_changed

FOLDER = ".drawn"
"""In the folder of the figures, a file for each experiment and scale. It may be removed: then all are drawn again."""


def made_of(results: Path, name: str, scale: str, dark: bool) -> str:
    """Digest of all that decides how an experiment's figures look: its tables, the paper's curves, code, matplotlib."""
    digest = hashlib.sha256(f"{_code()} {matplotlib.__version__} {dark}".encode())
    for path in (*sorted((results / "tables").glob(f"{name}-{scale}.*")), reference_file(results)):
        digest.update(path.name.encode() + _digest(path).encode())
    return digest.hexdigest()


def up_to_date(results: Path, name: str, scale: str, made: str) -> bool:
    """Whether the figures were drawn from `made` and their files are as they were then."""
    try:
        told = json.loads(_record(results, name, scale).read_text(encoding="utf-8"))
        files = told["files"].items()
        return bool(told["made_of"] == made and all(_digest(results / "figures" / file) == of for file, of in files))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def remember(results: Path, name: str, scale: str, made: str, figures: Iterable[DrawnFigure], dark: bool) -> None:
    """Write down from what the figures were drawn, and what their files are."""
    endings = (".png", ".pdf", *((".dark.png",) if dark else ()))
    paths = [figure.path.with_name(figure.path.stem + ending) for figure in figures for ending in endings]
    if not all(path.is_file() for path in paths):  # somebody draws without keeping
        return
    content = {"made_of": made, "files": {path.name: _digest(path) for path in paths}}
    write_if_changed(_record(results, name, scale), json.dumps(content, indent=1).encode())


def _record(results: Path, name: str, scale: str) -> Path:
    return results / "figures" / FOLDER / f"{name}-{scale}.json"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@functools.cache
def _code() -> str:
    """Of every module of the report: what a figure shows may be computed in any of them."""
    (root,) = weight_decay.report.__path__
    digest = hashlib.sha256()
    for path in sorted(Path(root).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
