"""Reading experiments and run folders, one at a time, and telling which are damaged."""

from __future__ import annotations

import errno
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weight_decay.errors import UserError
from weight_decay.runs.files import read_bounded
from weight_decay.runs.seal import BrokenSealError, is_sealed

STATUSES = ("completed", "diverged", "failed", "interrupted", "running")
FINISHED = ("completed", "diverged")
MAIN_BRANCH = "main"
"""The name, in tables, of the run itself, beside its branches."""

LARGEST_RECORD = 4 << 30
"""Bytes that a record without a seal may have."""

Row = dict[str, float]
"""What was measured at one step: metric name -> value; a value recorded as null is NaN."""


class DamagedRunError(Exception):
    """A run folder that cannot be believed; the message says, in one line, what is wrong with it."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


@dataclass(frozen=True)
class Cell:
    """One cell of an experiment: the run that fills it and where on the grid it stands."""

    run_id: str
    folder: Path
    coordinates: dict[str, Any]


def is_coordinate(key: str, value: Any) -> bool:
    """Whether a grid key is an axis of figures: what is only averaged or branched off is none, nor are lists.

    Nor is the data's own seed, which goes with the run's: cells that differ in it are draws of the same cell.
    """
    return (
        key != "data.seed"
        and key.partition(".")[0] not in ("averaging", "branches")
        and not isinstance(value, list | dict)
    )


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
        record = json.loads(read_bounded(path))
        is_sealed(record)
        return experiment_of(record, results)
    except (*UNREADABLE, BrokenSealError) as error:
        raise UserError(
            f"The experiment file {path} cannot be read ({type(error).__name__}: {error}); "
            "delete it and launch the experiment again, finished runs are kept."
        ) from error


def experiment_of(record: Any, results: Path) -> Experiment:
    """An experiment from what its file holds. Raises one of UNREADABLE if that is not an experiment."""
    cells = [
        # A results folder may have been moved or copied since the run.
        Cell(_words(cell, "run_id"), results / "runs" / Path(_words(cell, "folder")).name, dict(cell["coordinates"]))
        for cell in record["cells"]
    ]
    data = record["data"]
    return Experiment(
        name=_words(record, "experiment"),
        scale=_words(record, "scale"),
        title=_words(record, "title"),
        figure=str(record["figure"] or ""),
        regime=_words(record, "regime"),
        data=str(data["name"]) if isinstance(data, dict) else str(data),
        command=_words(record, "command"),
        cells=cells,
    )


def _words(record: dict[str, Any], key: str) -> str:
    value = record[key]
    if not isinstance(value, str):
        raise TypeError(f"{key} is {value!r}, not text")
    return value


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
        summary = json.loads(read_bounded(folder / "summary.json"))
    except FileNotFoundError as error:
        raise DamagedRunError("summary.json is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedRunError(f"summary.json cannot be read ({_reason(error)})") from error
    if not isinstance(summary, dict) or str(summary.get("status")) not in STATUSES:
        raise DamagedRunError("summary.json has no known status")
    try:
        is_sealed(summary)
    except BrokenSealError as error:
        raise DamagedRunError(f"summary.json was changed after it was written ({error})") from error
    return summary


def readable_summary(folder: Path) -> dict[str, Any]:
    """The content of summary.json as it stands, unchecked; empty if there is no readable one."""
    try:
        found = json.loads(read_bounded(folder / "summary.json"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def read_status(folder: Path) -> str | None:
    """The status in summary.json; None if there is no readable one."""
    return readable_summary(folder).get("status")


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def read_record(path: Path, sealed: Any = None) -> bytes:
    """The bytes of metrics.jsonl. Raises DamagedRunError if it is not there or cannot be read.

    Nothing is read of a file that is longer than it was when it was `sealed` (its length and SHA-256).
    """
    length = sealed.get("bytes") if isinstance(sealed, dict) else None
    try:
        return read_bounded(path, length if isinstance(length, int) else LARGEST_RECORD)
    except FileNotFoundError as error:
        raise DamagedRunError(f"{path.name} is missing") from error
    except OSError as error:
        if error.errno == errno.EFBIG and length is not None:
            raise DamagedRunError(
                f"{path.name} was changed after it was written ({path.stat().st_size} bytes, sealed with {length})"
            ) from error
        raise DamagedRunError(f"{path.name} cannot be read ({_reason(error)})") from error


def rows_of(content: bytes) -> list[Row]:
    """The rows in the bytes of metrics.jsonl in step order, one per step; lines of the same step are merged.

    After a resume, steps can be recorded a second time: the later record stands. Raises
    DamagedRunError when a line is not a flat JSON object of numbers with a step.
    """
    rows: list[Row] = []
    for number, line in enumerate(_parsed(content.splitlines()), start=1):
        try:
            measured = json.loads(line) if isinstance(line, bytes) else line
            step = measured["step"]
            row = {metric: float("nan") if value is None else value for metric, value in measured.items()}
        except UNREADABLE as error:
            raise DamagedRunError(f"line {number} of metrics.jsonl is not a record of metrics") from error
        if not all(isinstance(value, (int, float)) for value in row.values()):
            raise DamagedRunError(f"line {number} of metrics.jsonl holds a value that is not a number")
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
