"""Where every cell of an experiment stands, from the run folders alone."""

from __future__ import annotations

import json
import os
import textwrap
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weight_decay.errors import UserError
from weight_decay.report.tables.text_table import text_table
from weight_decay.runs.fingerprint import other_code
from weight_decay.runs.judge import judge
from weight_decay.runs.lock import take
from weight_decay.runs.read import FINISHED, UNREADABLE, Cell, DamagedRunError, Experiment, finite, read_experiments

ORDER = ("running", "waiting", "interrupted", "failed", "damaged", "stale", "diverged", "completed")
SILENT_AFTER = 120.0
"""Seconds without a new line in metrics.jsonl after which a running run is called silent."""

_TAIL_BYTES = 16384
_LONGEST_DETAIL = 100


@dataclass(frozen=True)
class State:
    """One cell as it stands: its status and what is worth knowing about it."""

    experiment: str
    scale: str
    cell: str
    status: str
    detail: str


def status_table(results: Path, experiment: str | None) -> str:
    """All cells of `experiment` at every scale it was started at, or a line per experiment for None.

    For each cell: waiting, running (step, speed, time left), completed, diverged, failed (last line of
    the error), interrupted, damaged, or stale: finished by code whose numbers may differ from the present
    code's. A run whose process is gone counts as interrupted: nobody holds its lock. Reads nothing but
    the experiment files, the summaries and, of unfinished runs, the end of metrics.jsonl and the lock.
    Raises UserError for an experiment that was never started.
    """
    experiments = read_experiments(results)
    if experiment is not None:
        # `NAME+3f2a1c` is NAME with settings of one's own: who asks for NAME wants to see it too.
        own = [item for item in experiments if item.name.partition("+")[0] == experiment or item.name == experiment]
        experiments = own or read_experiments(results, [experiment])
    if not experiments:
        raise UserError(f"No experiment was started under {results} yet: launch one first.")
    known: dict[Path, tuple[str, str]] = {}
    states = [state for item in experiments for state in _states(item, known)]
    table = _overview(experiments, states) if experiment is None else _cells(states)
    return f"{table}\n\n{_totals(states)}"


def _states(experiment: Experiment, known: dict[Path, tuple[str, str]]) -> list[State]:
    states = []
    for cell in experiment.cells:
        if cell.folder not in known:
            known[cell.folder] = cell_state(cell)
        states.append(State(experiment.name, experiment.scale, cell_name(cell.coordinates), *known[cell.folder]))
    return states


def cell_name(coordinates: dict[str, Any]) -> str:
    """The coordinates of a cell in short: `lr=0.3, strength=0.015, seed=0`."""
    return ", ".join(f"{name.rsplit('.', 1)[-1]}={value}" for name, value in coordinates.items())


def cell_state(cell: Cell) -> tuple[str, str]:
    """Status of the run that fills `cell`, and what is worth knowing about it."""
    try:
        summary = judge(cell.folder, cell.run_id, cell.coordinates)
    except DamagedRunError as error:
        begun = (cell.folder / "metrics.jsonl").exists() or (cell.folder / "summary.json").exists()
        return ("damaged", str(error)) if begun else ("waiting", "")
    status = summary["status"]
    if status in FINISHED and (code := other_code(summary)) is not None:
        return "stale", f"{status} with other code ({code}); stale=rerun or stale=keep"
    if status == "failed":
        last = str(summary.get("error") or "no error recorded").strip().splitlines()[-1]
        return status, textwrap.shorten(last, _LONGEST_DETAIL, placeholder=" …")
    if status == "diverged":
        return status, f"at step {summary.get('divergence_step')}"
    if status == "running" and owner_is_gone(cell.folder):
        marks = _marks(cell.folder / "metrics.jsonl")
        at = f"at {_step_of(marks[-1][0], summary)}; " if marks else ""
        return "interrupted", f"{at}its process is gone, the same command goes on"
    if status == "running":
        return status, _progress(cell.folder, summary)
    if status == "interrupted":
        return status, f"at {_step_of(summary.get('step'), summary)}; the same command goes on"
    seconds = finite(summary.get("seconds"))
    return status, "" if seconds is None else f"in {clock(seconds)}"


def owner_is_gone(folder: Path) -> bool:
    """Whether the lock of a run said to be running is free. False where that cannot be known."""
    try:
        with (folder / "run.lock").open("rb") as file:
            return take(file, shared=True)
    except OSError:
        return False


def _step_of(step: Any, summary: dict[str, Any]) -> str:
    total = summary.get("total_steps")
    return f"step {step}" if total is None else f"step {step} of {total}"


def _progress(folder: Path, summary: dict[str, Any]) -> str:
    """Step, speed and time left, from the last lines of metrics.jsonl."""
    path = folder / "metrics.jsonl"
    marks = _marks(path)
    if not marks:
        return "has recorded nothing yet"
    step, seconds = marks[-1]
    parts = [_step_of(step, summary)]
    first_step, first_seconds = marks[0]
    if step > first_step and seconds > first_seconds:
        speed = finite((step - first_step) / (seconds - first_seconds))
        if speed:
            parts.append(f"{speed:.3g} steps/s")
            end = finite(summary.get("total_steps"))
            if end is not None and (left := finite((end - step) / speed)) is not None:
                parts.append(f"{clock(left)} left")
    silent = time.time() - path.stat().st_mtime
    if silent > SILENT_AFTER:
        parts.append(f"silent for {clock(silent)}, perhaps dead: the same command goes on")
    return ", ".join(parts)


def _marks(path: Path) -> list[tuple[int, float]]:
    """(step, seconds since the start) of the last recorded lines, oldest first."""
    try:
        with path.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - _TAIL_BYTES))
            lines = stream.read().splitlines()
    except OSError:
        return []
    marks = []
    for line in lines:
        try:
            measured = json.loads(line)
            step, seconds = int(measured["step"]), finite(measured["time/seconds"])
            if seconds is not None and finite(step) is not None:
                marks.append((step, seconds))
        except UNREADABLE:
            continue  # the first line may be cut, the last still be in writing
    return marks


def clock(seconds: float) -> str:
    """A duration as h:mm:ss."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _cells(states: list[State]) -> str:
    several_names = len({state.experiment for state in states}) > 1
    several_scales = len({state.scale for state in states}) > 1
    rows = []
    for state in sorted(states, key=lambda state: (state.experiment, state.scale, ORDER.index(state.status))):
        of = " ".join([state.experiment] * several_names + [state.scale] * several_scales)
        rows.append([f"{of}: {state.cell}" if of else state.cell, state.status, state.detail])
    return text_table(["cell", "status", ""], rows, align="lll")


def _overview(experiments: list[Experiment], states: list[State]) -> str:
    rows = []
    for experiment in experiments:
        counted = Counter(
            state.status for state in states if (state.experiment, state.scale) == (experiment.name, experiment.scale)
        )
        counts = [str(counted[status] or "·") for status in ORDER]
        rows.append([experiment.name, experiment.scale, str(len(experiment.cells)), *counts])
    return text_table(["experiment", "scale", "cells", *ORDER], rows, align="ll" + "r" * (len(ORDER) + 1))


def _totals(states: list[State]) -> str:
    counted = Counter(state.status for state in states)
    listed = ", ".join(f"{counted[status]} {status}" for status in ORDER if counted[status])
    return f"{len(states)} cells: {listed}"
