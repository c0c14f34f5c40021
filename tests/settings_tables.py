"""The tables of docs/over-training.md and docs/under-training.md that hold our settings beside the paper's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from declared import plan
from weight_decay.config.execution import is_execution_setting
from weight_decay.config.plain import to_dict

HEADER = "| experiment | setting | paper, released code | ours | remark |"


@dataclass(frozen=True)
class Row:
    """One line of such a table; `experiments` is empty where it holds for all that have no line of their own."""

    experiments: tuple[str, ...]
    setting: str
    paper: str
    ours: str
    remark: str


def rows(document: Path) -> list[Row]:
    """Every row of the tables with that header."""
    found: list[Row] = []
    inside = False
    for line in document.read_text().splitlines():
        inside = line == HEADER or (inside and line.startswith("|"))
        cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        if inside and line != HEADER and not line.startswith("|--"):
            names, *others = cells
            found.append(Row(() if names == "all" else tuple(names.split(", ")), *others))
    return found


def settings(experiment: str) -> dict[str, str]:
    """Each setting of an experiment at scale paper, with the different values that its cells have, in order."""
    values: dict[str, set[str]] = {}
    for cell in plan(experiment, "paper").cells:
        for name, value in _flat("", to_dict(cell.config)):
            if not is_execution_setting(name.partition(".")[0]) and name != "data.root":
                values.setdefault(name, set()).add(value)
    return {name: ", ".join(sorted(found, key=_order)) for name, found in values.items()}


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    if prefix == "decay.rules":
        assert all(rule["module"] == ".*" for rule in value)  # none of the paper's goes by it
        yield prefix, "; ".join(f"{rule['match']} × {rule['scale']:g}" for rule in value)
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(f"{prefix}.{name}" if prefix else name, inner)
    elif prefix == "branches":
        for branch in value:
            yield from ((f"branches.{name}", inner) for name, inner in _flat("", branch))
    else:
        yield prefix, said(value)


def said(value: Any) -> str:
    """A value as the tables write it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(said, value))}]"
    return f"{value:.10g}" if isinstance(value, int | float) else str(value)


def _order(value: str) -> tuple[bool, float, str]:
    try:
        return False, float(value.rstrip("%")), value
    except ValueError:
        return True, 0.0, value
