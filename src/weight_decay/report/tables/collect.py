"""From run folders to tidy tables: results/tables/<experiment>-<scale>.{summary,curves}.csv."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from weight_decay.runs.files import replacing
from weight_decay.runs.fingerprint import code_fingerprint
from weight_decay.runs.judge import Record, read_run
from weight_decay.runs.read import Cell, DamagedRunError, Experiment, read_experiments
from weight_decay.runs.seal import is_sealed

NOT_IN_TABLES = ("time/", "throughput/", "stage/")
"""Metrics of the machine, not of the run: they would change the tables at every repetition."""

_IDENTITY = ["run_id", "experiment", "scale", "data", "seed"]
_SUMMARY = [
    "data_split", "data_fingerprint", "regime", "git_commit", "status", "start_step", "divergence_step",
    "parameters", "device", "seconds", "figure", "title", "command",
]  # fmt: skip
_AXES = ["step", "epoch", "samples"]


@dataclass(frozen=True)
class Damaged:
    """A run folder left out of the tables, and why."""

    experiment: str
    folder: Path
    reason: str


@dataclass
class Collected:
    """What `collect` wrote and what it left out."""

    tables: list[Path] = field(default_factory=list)
    finished: int = 0
    unfinished: int = 0
    stale: int = 0
    unsealed: int = 0
    damaged: list[Damaged] = field(default_factory=list)
    without: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """A few lines for the terminal: how much is in the tables, and each folder that is not."""
        lines = [f"{len(self.tables)} tables from {self.finished} finished runs; {self.unfinished} not finished"]
        if self.stale:
            lines.append(f"{self.stale} of them hold numbers of other code than the present one's; see `status`")
        if self.unsealed:
            lines.append(
                f"{self.unsealed} of them are not sealed (from W&B or an older version), so changes go unnoticed"
            )
        lines += [f"{stem}: no finished run, so no table is written or replaced" for stem in self.without]
        lines += [f"left out, damaged: {item.folder} ({item.reason})" for item in self.damaged]
        return "\n".join(lines)


def collect(
    results: Path, experiments: list[str] | None = None, tables: Path | None = None, empty: bool = True
) -> Collected:
    """Write the tables of all experiments under `results` (or of those named) from their run folders.

    They go to `tables`, or to `results`/tables where none is given; without `empty`, a table that would have no row
    is not written.

    Two tables for each experiment and scale: `.summary.csv`, one row per run and branch with its
    final metrics; `.curves.csv`, one row per run, branch and recorded step, empty where a metric was
    not measured and `nan` where it was not finite. Only finished runs (completed or diverged) enter;
    damaged folders are named in the result and left out. Memory does not grow with the number of
    runs. Files are replaced atomically, and only when their content changes.
    """
    collected = Collected()
    for experiment in read_experiments(results, experiments):
        _collect_one(experiment, tables or results / "tables", collected, empty)
    return collected


def _collect_one(experiment: Experiment, tables: Path, collected: Collected, empty: bool) -> None:
    before = collected.finished
    coordinates = sorted({name for cell in experiment.cells for name in cell.coordinates} - {"seed"})
    identity = [*_IDENTITY, *coordinates, "branch"]
    with _Table([*identity, *_SUMMARY]) as summary, _Table([*identity, "git_commit", *_AXES]) as curves:
        for cell in experiment.cells:
            try:
                if not cell.folder.is_dir():
                    collected.unfinished += 1
                    continue
                run, records = read_run(cell)
            except DamagedRunError as error:
                collected.damaged.append(Damaged(experiment.name, cell.folder, str(error)))
                continue
            if not records:
                collected.unfinished += 1
                continue
            collected.finished += 1
            collected.unsealed += not is_sealed(run)
            collected.stale += run.get("code_fingerprint") not in (None, code_fingerprint())
            for record in records:
                named = _identity(experiment, cell, run, record, coordinates)
                summary.add([*named, *_described(experiment, run, record)], [record.summary["final"]])
                curves.add([*named, _commit(run)], record.rows)
        stem = f"{experiment.name}-{experiment.scale}"
        if collected.finished == before and not empty:
            collected.without.append(stem)
            return
        for table, kind in ((summary, "summary"), (curves, "curves")):
            path = tables / f"{stem}.{kind}.csv"
            with replacing(path) as stream:
                table.write(stream)
            collected.tables.append(path)


def _identity(
    experiment: Experiment, cell: Cell, run: dict[str, Any], record: Record, coordinates: list[str]
) -> list[str]:
    where = [_text(cell.coordinates[name]) if name in cell.coordinates else "" for name in coordinates]
    data = str(run["data"]["name"])
    return [cell.run_id, experiment.name, experiment.scale, data, str(run["seed"]), *where, record.branch]


def _described(experiment: Experiment, run: dict[str, Any], record: Record) -> list[str]:
    own = {**run, **record.summary}
    return [
        _split(run["data"].get("split")), _text(run["data"].get("fingerprint")), str(run["regime"]),
        _commit(run), str(record.summary["status"]), _text(record.summary.get("start_step", 0)),
        _text(record.summary["divergence_step"]),
        _text(own.get("parameters")), _text(own.get("device")), _text(own.get("seconds")),
        experiment.figure, experiment.title, experiment.command,
    ]  # fmt: skip


def _commit(run: dict[str, Any]) -> str:
    return str(run["git_commit"] or "not recorded")


def _split(split: Any) -> str:
    if isinstance(split, dict):
        return "; ".join(f"{role}: {chosen}" for role, chosen in split.items())
    return _text(split)


def _text(value: Any) -> str:
    """A value as the tables spell it; six significant digits are more than any of them deserves."""
    if value is None:
        return ""
    if isinstance(value, float):
        return format(value, ".6g")
    if isinstance(value, (str, int)):
        return str(value)
    return json.dumps(value, sort_keys=True)


class _Table(contextlib.AbstractContextManager["_Table"]):
    """Rows on their way to a CSV file whose columns are known only when the last row has been seen.

    Rows are spooled to a temporary file with the columns known so far. `write` puts the header first
    and pads the earlier, shorter rows, so nothing but the column names stays in memory.
    """

    def __init__(self, fixed: list[str]) -> None:
        self.fixed = fixed
        self.metrics: dict[str, int] = {}
        self.spool: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8", newline="")  # noqa: SIM115
        self.widths: list[tuple[int, int]] = []  # (metrics known, rows written with that many)

    def __exit__(self, *_: object) -> None:
        self.spool.close()

    def add(self, named: list[str], rows: Iterable[dict[str, Any]]) -> None:
        """Add rows that share the leading columns `named`; the axes among the fixed come from the row."""
        prefix = _csv_line(named)
        axes = self.fixed[len(named) :]
        lines = []
        for row in rows:
            for name in row:
                if name not in self.metrics and name not in _AXES and not name.startswith(NOT_IN_TABLES):
                    self.metrics[name] = len(self.metrics)
            cells = [_number(row[name]) if name in row else "" for name in axes]
            cells += [_number(row[name]) if name in row else "" for name in self.metrics]
            lines.append(",".join([prefix, *cells]) + "\n")
            known = len(self.metrics)
            if self.widths and self.widths[-1][0] == known:
                self.widths[-1] = (known, self.widths[-1][1] + 1)
            else:
                self.widths.append((known, 1))
        self.spool.writelines(lines)

    def write(self, stream: IO[bytes]) -> None:
        """Write the header and all rows."""
        stream.write((_csv_line([*self.fixed, *self.metrics]) + "\n").encode())
        self.spool.seek(0)
        for known, count in self.widths:
            padding = "," * (len(self.metrics) - known)
            for _ in range(count):
                stream.write(f"{self.spool.readline()[:-1]}{padding}\n".encode())


def _number(value: Any) -> str:
    """`nan` says measured but not finite, unlike an empty cell, which says not measured."""
    if value is None:
        return "nan"
    return format(value, ".6g") if isinstance(value, float) else str(value)


def _csv_line(cells: list[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow([cell.replace("\n", " ") for cell in cells])
    return line.getvalue()
