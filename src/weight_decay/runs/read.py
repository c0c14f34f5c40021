"""Reading experiments and run folders, one at a time, and telling which are damaged."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weight_decay.errors import UserError

STATUSES = ("completed", "diverged", "failed", "interrupted", "running")
FINISHED = ("completed", "diverged")
MAIN_BRANCH = "main"
"""The name, in tables, of the run itself, beside its branches."""

Row = dict[str, float]
"""What was measured at one step: metric name -> value; a value recorded as null is NaN."""


class DamagedRunError(Exception):
    """A run folder that cannot be believed; the message says what is wrong with it."""


@dataclass(frozen=True)
class Cell:
    """One cell of an experiment: the run that fills it and where on the grid it stands."""

    run_id: str
    folder: Path
    coordinates: dict[str, Any]


@dataclass(frozen=True)
class Experiment:
    """One file of results/experiments: an experiment at one scale."""

    name: str
    scale: str
    title: str
    figure: str
    regime: str
    data: str
    command: str
    cells: list[Cell]


def read_experiments(results: Path, names: list[str] | None = None) -> list[Experiment]:
    """All experiments recorded under `results`, or those named, sorted by name and scale.

    Raises UserError when a named experiment was never started or a file cannot be understood.
    """
    found = [read_experiment(path, results) for path in sorted((results / "experiments").glob("*.json"))]
    if names is None:
        return found
    known = {experiment.name for experiment in found}
    for name in names:
        if name not in known:
            # Settings of one's own give an experiment a name of its own; see `Plan.name`.
            changed = sorted(other for other in known if other.partition("+")[0] == name)
            if changed:
                raise UserError(
                    f"No experiment named '{name}' was started under {results} with its declared settings; "
                    f"its runs with changed settings are named {', '.join(changed)}: give that name."
                )
            raise UserError(
                f"No experiment named '{name}' was started under {results}; "
                f"there is {', '.join(sorted(known)) or 'none yet'}: launch it first."
            )
    return [experiment for experiment in found if experiment.name in names]


UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""What reading a file that is not what it should be can raise."""


def read_experiment(path: Path, results: Path) -> Experiment:
    """One experiment file. Folders in it are taken relative to `results`/runs when only a name."""
    try:
        return experiment_of(json.loads(path.read_text(encoding="utf-8")), results)
    except UNREADABLE as error:
        raise UserError(
            f"The experiment file {path} cannot be read ({type(error).__name__}: {error}); "
            "delete it and launch the experiment again, finished runs are kept."
        ) from error


def experiment_of(record: Any, results: Path) -> Experiment:
    """An experiment from what its file holds. Raises one of UNREADABLE if that is not an experiment."""
    cells = [
        Cell(_words(cell, "run_id"), _run_folder(results, _words(cell, "folder")), dict(cell["coordinates"]))
        for cell in record["cells"]
    ]
    return Experiment(
        name=_words(record, "experiment"),
        scale=_words(record, "scale"),
        title=_words(record, "title"),
        figure=str(record["figure"] or ""),
        regime=_words(record, "regime"),
        data=_data_name(record["data"]),
        command=_words(record, "command"),
        cells=cells,
    )


def _words(record: dict[str, Any], key: str) -> str:
    value = record[key]
    if not isinstance(value, str):
        raise TypeError(f"{key} is {value!r}, not text")
    return value


def _run_folder(results: Path, folder: str) -> Path:
    """Where a run lies now: a results folder may have been moved or copied since the run."""
    return results / "runs" / Path(folder).name


def _data_name(data: Any) -> str:
    return str(data["name"]) if isinstance(data, dict) else str(data)


def finite(value: Any) -> float | None:
    """A number of a record as a float; None for what is no number, not finite, or too large for one."""
    try:
        number = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def read_summary(folder: Path) -> dict[str, Any]:
    """summary.json of a run or branch folder. Raises DamagedRunError, naming what is wrong."""
    try:
        summary = json.loads((folder / "summary.json").read_bytes())
    except FileNotFoundError as error:
        raise DamagedRunError("summary.json is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedRunError(f"summary.json cannot be read ({error})") from error
    if not isinstance(summary, dict) or summary.get("status") not in STATUSES:
        raise DamagedRunError("summary.json has no known status")
    return summary


def read_metrics(path: Path) -> list[Row]:
    """Rows of metrics.jsonl in step order, one per step; lines of the same step are merged.

    After a resume, steps can be recorded a second time: the later record stands. Raises
    DamagedRunError when a line is not a flat JSON object of numbers with a step.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError as error:
        raise DamagedRunError(f"{path.name} is missing") from error
    except OSError as error:
        raise DamagedRunError(f"{path.name} cannot be read ({error})") from error
    rows: list[Row] = []
    for number, line in enumerate(_parsed(lines), start=1):
        try:
            measured = json.loads(line) if isinstance(line, bytes) else line
            step = measured["step"]
            row = {name: float("nan") if value is None else value for name, value in measured.items()}
        except UNREADABLE as error:
            raise DamagedRunError(f"line {number} of {path.name} is not a record of metrics") from error
        if not all(isinstance(value, (int, float)) for value in row.values()):
            raise DamagedRunError(f"line {number} of {path.name} holds a value that is not a number")
        while rows and rows[-1]["step"] > step:
            rows.pop()
        if rows and rows[-1]["step"] == step:
            rows[-1].update(row)
        else:
            rows.append(row)
    return rows


def _parsed(lines: list[bytes]) -> list[Any]:
    """The lines as objects; as they are if one is broken, for the caller to find. All at once is twice as fast."""
    try:
        found = json.loads(b"[" + b",".join(lines) + b"]")
    except (ValueError, RecursionError):
        return lines
    return found if len(found) == len(lines) else lines


@dataclass(frozen=True)
class Record:
    """A run, or one of its branches, as read: its summary and its rows."""

    branch: str
    summary: dict[str, Any]
    rows: list[Row]


def read_run(cell: Cell) -> tuple[dict[str, Any], list[Record]]:
    """The summary of a finished run and the records of the run and its finished branches.

    The records are empty when the run has not finished. Raises DamagedRunError when something in the
    folder contradicts what a finished run must have.
    """
    summary = read_summary(cell.folder)
    if summary["status"] not in FINISHED:
        return summary, []
    for name in ("run_id", "seed", "scale", "data", "regime", "git_commit", "seconds"):
        if name not in summary:
            raise DamagedRunError(f"summary.json lacks {name}")
    if summary["run_id"] != cell.run_id:
        raise DamagedRunError(f"summary.json belongs to run {summary['run_id']}, not {cell.run_id}")
    records = [Record(MAIN_BRANCH, summary, _rows(cell.folder, summary))]
    for name in _branches(cell.folder):
        folder = cell.folder / "branches" / name
        try:
            branch = read_summary(folder)
            if branch["status"] in FINISHED:
                records.append(Record(name, branch, _rows(folder, branch)))
        except DamagedRunError as error:
            raise DamagedRunError(f"branch {name}: {error}") from error
    return summary, records


def _rows(folder: Path, summary: dict[str, Any]) -> list[Row]:
    rows = read_metrics(folder / "metrics.jsonl")
    if not rows:
        raise DamagedRunError("metrics.jsonl is empty")
    if not isinstance(summary.get("final"), dict):
        raise DamagedRunError("summary.json has no final metrics")
    if "divergence_step" not in summary:
        raise DamagedRunError("summary.json lacks divergence_step")
    return rows


def _branches(folder: Path) -> Iterator[str]:
    with_branches = folder / "branches"
    if with_branches.is_dir():
        yield from sorted(entry.name for entry in os.scandir(with_branches) if entry.is_dir())
