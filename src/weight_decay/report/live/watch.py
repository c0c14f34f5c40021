"""What a live view shows, from the run folders alone: each look asks the disk only for what has changed."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weight_decay.errors import UserError
from weight_decay.report.live.status import SILENT_AFTER, cell_name, cell_state, owner_is_gone
from weight_decay.report.live.tail import Tail
from weight_decay.runs.read import Cell, DamagedRunError, Experiment, finite, read_experiments, read_summary

ENDED = ("completed", "diverged", "failed")
JACOBIAN = "ema/jacobian/mean_square"

_LOSSES = ("batch/loss", "train/loss")
_EFFECTIVE_LR = {"over_training": "effective_lr/sgd", "under_training": "effective_lr/adamw"}
_FINAL = ("test/error", "val/loss", "train/loss")
_SILENT_ENOUGH = 10.0
"""Seconds without a new line after which a running run's lock is looked at: one that writes is surely alive."""


@dataclass(frozen=True)
class Running:
    """A running cell: where it stands and the courses of its loss, effective learning rate and Jacobian norm."""

    experiment: str
    cell: str
    step: int | None
    total: int | None
    speed: float | None
    silent: float | None
    loss: list[tuple[int, float]]
    effective_lr: list[tuple[int, float]]
    jacobian: list[tuple[int, float]]

    @property
    def seconds_left(self) -> float | None:
        """At the present speed; None where it cannot be told."""
        if self.speed is None or self.step is None or self.total is None:
            return None
        left = (self.total - self.step) / self.speed
        return left if math.isfinite(left) else None


@dataclass(frozen=True)
class Ended:
    """A cell that has completed, diverged or failed, and when (seconds of the Unix clock)."""

    experiment: str
    cell: str
    status: str
    detail: str
    at: float


@dataclass(frozen=True)
class Counted:
    """One experiment at one scale, and how many of its cells stand how."""

    experiment: str
    scale: str
    counts: Counter[str]


@dataclass(frozen=True)
class View:
    """One look: running cells (the first of them, if a limit was set), experiments, last ended cells first."""

    running: list[Running]
    running_in_all: int
    experiments: list[Counted]
    ended: list[Ended]

    def containing(self, text: str) -> View:
        """Only the cells and experiments whose name contains `text`, in any case."""

        def shown(*names: str) -> bool:
            return any(text.lower() in name.lower() for name in names)

        running = [one for one in self.running if shown(one.cell, one.experiment)]
        names = {one.experiment for one in running}
        return View(
            running,
            len(running),
            [one for one in self.experiments if shown(one.experiment) or one.experiment in names],
            [one for one in self.ended if shown(one.cell, one.experiment, one.status)],
        )


@dataclass
class _Known:
    """What is remembered of a run; `mark` tells whether its summary is still the one that was read."""

    mark: tuple[int, int, int] | None
    status: str
    detail: str
    summary: dict[str, Any]
    tail: Tail | None = None


class Watch:
    """Looks again and again at the cells of one experiment, or of all (None).

    Raises UserError, from the start, if there is no such experiment.
    """

    def __init__(self, results: Path, experiment: str | None) -> None:
        self._results, self._names = results, None if experiment is None else [experiment]
        self._listed: list[tuple[str, int, int]] | None = None
        self._experiments: list[Experiment] = []
        self._known: dict[Path, _Known] = {}
        self._read_experiments()
        if not self._experiments:
            raise UserError(f"No experiment was started under {results} yet: launch one first.")

    def look(self, limit: int | None = None, last: int = 5) -> View:
        """How everything stands now; of the running cells only the first `limit` are read and described."""
        self._read_experiments()
        running: dict[Path, tuple[Experiment, Cell]] = {}
        ended: dict[Path, tuple[Experiment, Cell]] = {}
        counted = []
        looked: set[Path] = set()
        for experiment in self._experiments:
            counts: Counter[str] = Counter()
            for cell in experiment.cells:
                if cell.folder not in looked:
                    looked.add(cell.folder)
                    self._refresh(cell)
                known = self._known[cell.folder]
                counts[known.status] += 1
                if known.status == "running":
                    running.setdefault(cell.folder, (experiment, cell))
                elif known.status in ENDED:
                    ended.setdefault(cell.folder, (experiment, cell))
            counted.append(Counted(experiment.name, experiment.scale, counts))
        newest = sorted(ended, key=lambda folder: -(self._known[folder].mark or (0,))[0])[:last]
        return View(
            [self._running(*running[folder]) for folder in list(running)[:limit]],
            len(running),
            counted,
            [self._ended(*ended[folder]) for folder in newest],
        )

    def _read_experiments(self) -> None:
        folder = self._results / "experiments"
        try:
            found = [entry for entry in os.scandir(folder) if entry.name.endswith(".json")]
            listed = sorted((entry.name, entry.stat().st_mtime_ns, entry.stat().st_size) for entry in found)
        except OSError:
            listed = []
        if listed == self._listed:
            return
        try:
            self._experiments = read_experiments(self._results, self._names)
        except UserError:
            # A file that is put aside while we look takes nothing from the view; at the start it is a mistake.
            if self._listed is None:
                raise
        self._listed = listed
        self._varying = {(one.name, one.scale): _varying(one) for one in self._experiments}

    def _refresh(self, cell: Cell) -> None:
        """Bring what is known of a run up to date; nothing is read of one that has not changed."""
        known = self._known.get(cell.folder)
        try:
            found = (cell.folder / "summary.json").stat()
            mark = (found.st_mtime_ns, found.st_size, found.st_ino)
        except OSError:
            mark = None
        if known is None or known.mark != mark or mark is None:
            try:
                summary = read_summary(cell.folder) if mark is not None else {}
            except DamagedRunError:
                summary = {}
            tail = None if known is None else known.tail
            known = self._known[cell.folder] = _Known(mark, "running", "", summary, tail)
        elif known.summary.get("status") != "running":
            return
        if known.summary.get("status") != "running":
            begun = mark is not None or (cell.folder / "metrics.jsonl").exists()
            known.status, known.detail = cell_state(cell) if begun else ("waiting", "")
            known.tail = None
            return
        gone = time.time() - _modified(cell.folder) > _SILENT_ENOUGH and owner_is_gone(cell.folder)
        known.status = "interrupted" if gone else "running"

    def _short_name(self, experiment: Experiment, cell: Cell) -> str:
        varying = self._varying[experiment.name, experiment.scale]
        short = {name: value for name, value in cell.coordinates.items() if name in varying}
        return cell_name(short or cell.coordinates)

    def _running(self, experiment: Experiment, cell: Cell) -> Running:
        known = self._known[cell.folder]
        effective = _EFFECTIVE_LR.get(experiment.regime, "effective_lr/adamw")
        if known.tail is None:
            known.tail = Tail(cell.folder / "metrics.jsonl", [*_LOSSES, effective, JACOBIAN])
        tail = known.tail
        tail.refresh()
        silent = time.time() - tail.modified
        total = known.summary.get("total_steps")
        loss = next((tail.points[name] for name in _LOSSES if tail.points[name]), [])
        return Running(
            experiment=experiment.name,
            cell=self._short_name(experiment, cell),
            step=tail.step,
            total=total if isinstance(total, int) and finite(total) is not None else None,
            speed=tail.speed,
            silent=silent if tail.step is not None and silent > SILENT_AFTER else None,
            loss=loss,
            effective_lr=tail.points[effective],
            jacobian=tail.points[JACOBIAN],
        )

    def _ended(self, experiment: Experiment, cell: Cell) -> Ended:
        known = self._known[cell.folder]
        final = known.summary.get("final")
        detail = [known.detail]
        if known.status == "completed" and isinstance(final, dict):
            detail.append(_final(final))
        at = 0.0 if known.mark is None else known.mark[0] / 1e9
        return Ended(
            experiment.name, self._short_name(experiment, cell), known.status, ", ".join(filter(None, detail)), at
        )


def _varying(experiment: Experiment) -> set[str]:
    """The coordinates that tell the cells of an experiment apart."""
    first = experiment.cells[0].coordinates if experiment.cells else {}
    return {
        name
        for cell in experiment.cells
        for name, value in cell.coordinates.items()
        if name not in first or value != first[name]
    }


def _modified(folder: Path) -> float:
    """When a run last wrote something; long ago if that cannot be told."""
    try:
        return max((folder / name).stat().st_mtime for name in ("summary.json", "metrics.jsonl"))
    except OSError:
        return 0.0


def _final(final: dict[str, Any]) -> str:
    for name in _FINAL:
        value = finite(final.get(name))
        if value is not None:
            return f"{name} {100 * value:.1f} %" if name.endswith("error") else f"{name} {value:.4g}"
    return ""
