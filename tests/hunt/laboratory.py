"""Runs so small that hundreds of them can be ruined, and what their tables must say."""

from __future__ import annotations

import csv
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import QUIET, TINY_TEXT
from weight_decay.cli import make_plan
from weight_decay.config.run import RunConfig
from weight_decay.errors import UserError
from weight_decay.experiments.plan import write_plan
from weight_decay.report.live.status import cell_state
from weight_decay.report.tables.collect import collect
from weight_decay.runs.folder import Labels
from weight_decay.runs.read import read_experiments
from weight_decay.runs.seal import sealed
from weight_decay.training.loop import Training
from weight_decay.training.run import run

LABELS = Labels("hunt", "micro", "hunt")
BRANCHES = (
    "branches=[{name: tail, start: 2 steps, every: 2 steps, duration: 3 steps, lr: 0.001, strength: 0.0, "
    "keep_optimizer_state: true}]"
)
_OF_THE_MACHINE = ("seconds", "git_commit", "device", "command", "provenance/changed")
"""Columns in which two repetitions of a run may differ."""


class Laboratory:
    """A folder for the hunt: `results`, which is ruined again and again, and the data that all runs share."""

    def __init__(self, root: Path) -> None:
        self.root, self.results = root, root / "results"
        self._kept = 0

    def words(self, seed: int = 0, *more: str) -> list[str]:
        """The command line of a tiny run with branches."""
        own = [f"data.root={self.root / 'data'}", f"execution.results={self.results}", f"seed={seed}", BRANCHES]
        return [*shlex.split(f"{TINY_TEXT} {QUIET}"), *own, *more]

    def config(self, seed: int = 0, *more: str) -> RunConfig:
        """Its config."""
        return make_plan(self.words(seed, *more))[0].cells[0].config

    def started(self, seeds: tuple[int, ...] = (0, 1), *more: str) -> list[RunConfig]:
        """Record an experiment of one run for each seed, of which none has been run; returns their configs."""
        clear(self.results)
        plans = [make_plan(self.words(seed, *more))[0] for seed in seeds]
        cells = []
        for seed, plan in zip(seeds, plans, strict=True):
            path = write_plan(self.results, plan)
            cells += [
                {**cell, "coordinates": {"seed": seed, "decay.strength": 0.1}}
                for cell in json.loads(path.read_text())["cells"]
            ]
        (self.results / "experiments").joinpath(path.name).unlink()
        path = write_plan(self.results, plans[0])
        path.write_text(json.dumps(sealed({**json.loads(path.read_text()), "cells": cells}), indent=2))
        return [plan.cells[0].config for plan in plans]

    def finished(self, *more: str) -> tuple[Path, dict[str, list[Any]]]:
        """A copy of results with two finished runs, and what their tables say."""
        for config in self.started((0, 1), *more):
            assert run(config, LABELS) == "completed"
        wanted = wanted_of(self.results)
        return self._put_aside(), wanted

    def half(self, step: int, *more: str) -> Path:
        """A copy of results with one finished run, and one that was stopped after `step` steps in all."""
        configs = self.started((0, 1), *more)
        assert run(configs[0], LABELS) == "completed"
        with at_step(step, lambda: os.kill(os.getpid(), signal.SIGTERM)):
            assert run(configs[1], LABELS) == "interrupted"
        return self._put_aside()

    def restore(self, kept: Path) -> None:
        """Put a copy back as the results."""
        clear(self.results)
        shutil.copytree(kept, self.results, symlinks=True)

    def copy_experiments(self, kept: Path) -> None:
        """Put the experiments of a copy into the results, without a run."""
        shutil.copytree(kept / "experiments", self.results / "experiments", dirs_exist_ok=True)

    def copy_all(self, kept: Path) -> None:
        """Put a copy into a results folder that is there."""
        shutil.copytree(kept, self.results, dirs_exist_ok=True)

    def _put_aside(self) -> Path:
        self._kept += 1
        return self.results.rename(self.root / f"kept-{self._kept}")


def clear(folder: Path) -> None:
    """Delete a folder, if it is there."""
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def laboratory() -> Iterator[Laboratory]:
    """A laboratory in memory where that is possible: what is lost with it is not worth a disk's time."""
    memory = Path("/dev/shm")
    place = memory if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 1 << 30 else None
    with tempfile.TemporaryDirectory(prefix="hunt-", dir=place) as folder:
        yield Laboratory(Path(folder))


@contextmanager
def at_step(step: int, do: Callable[[], object]) -> Iterator[None]:
    """Do something once, right after the training loop has made `step` steps in all, whichever run or branch."""
    advance, made = Training.advance, [0]

    def advancing(self: Training, observe: bool) -> None:
        advance(self, observe)
        made[0] += 1
        if made[0] == step:
            do()

    Training.advance = advancing  # type: ignore[method-assign]
    try:
        yield
    finally:
        Training.advance = advance  # type: ignore[method-assign]


def tables(results: Path) -> dict[str, list[Any]]:
    """All tables, without what differs between any two repetitions of a run."""
    found = {}
    for path in sorted((results / "tables").glob("*.csv")):
        with path.open(newline="") as file:
            found[path.name] = [
                {k: v for k, v in row.items() if k not in _OF_THE_MACHINE} for row in csv.DictReader(file)
            ]
    return found


def wanted_of(results: Path) -> dict[str, list[Any]]:
    """The tables of results that nobody has touched, which are then taken away."""
    collected = collect(results)
    assert not collected.damaged and not collected.unfinished and not collected.unsealed, collected.describe()
    found = tables(results)
    shutil.rmtree(results / "tables")
    return found


def outcome(results: Path, wanted: dict[str, list[Any]]) -> str:
    """ "survived" if the tables are the same, "refused" if somebody is told what is wrong, else "silent".

    `status` and `collect` must say the same of each cell, or it is "silent" too.
    """
    shutil.rmtree(results / "tables", ignore_errors=True)
    try:
        experiments = read_experiments(results)
        collected = collect(results)
    except UserError:
        return "refused"
    states = [cell_state(cell)[0] for experiment in experiments for cell in experiment.cells]
    if states.count("damaged") + states.count("waiting") < len(collected.damaged):
        return "silent"
    if (states.count("completed") != collected.finished) and not collected.stale:
        return "silent"
    if collected.damaged or collected.unfinished or collected.unsealed:
        return "refused"
    found = tables(results)
    if any(wanted.get(name) != table for name, table in found.items()):
        return "silent"
    return "survived" if found == wanted else "refused"
