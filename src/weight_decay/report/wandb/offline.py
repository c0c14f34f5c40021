"""Offline W&B runs on their way to W&B: one W&B run for each run folder, also where it was interrupted and resumed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from weight_decay.errors import UserError
from weight_decay.runs.read import read_experiments


def offline_runs(results: Path, experiments: list[str] | None) -> dict[Path, list[Path]]:
    """W&B's folders of each run under `results` (or of those of some experiments) that are not uploaded yet.

    A run that was interrupted has one for each time it was started, in that order.
    """
    if experiments is None:
        folders = sorted((results / "runs").glob("*"))
    else:
        cells = [cell for experiment in read_experiments(results, experiments) for cell in experiment.cells]
        folders = sorted({cell.folder for cell in cells})
    found = {folder: sorted((folder / "wandb").glob("offline-run-*")) for folder in folders}
    # W&B leaves a mark beside what it has uploaded.
    waiting = {folder: [run for run in runs if not list(run.glob("*.synced"))] for folder, runs in found.items()}
    return {folder: runs for folder, runs in waiting.items() if runs}


def sync_commands(waiting: dict[Path, list[Path]]) -> list[list[str]]:
    """The `wandb sync` command of each run: with the run's own id, so that a resumed run continues itself."""
    wandb = [sys.executable, "-m", "wandb", "sync", "--yes"]
    return [
        [*wandb, "--id", folder.name.rpartition("-")[2], *(str(run) for run in runs)]
        for folder, runs in waiting.items()
    ]


def sync(commands: Sequence[Sequence[str]]) -> int:
    """Run the commands one by one; returns how many runs were uploaded. UserError at the first that W&B refuses."""
    for done, command in enumerate(commands):
        finished = subprocess.run(command, check=False, capture_output=True, text=True)
        if finished.returncode:
            told = (finished.stderr.strip() or finished.stdout.strip() or "no reason given").splitlines()[-1]
            raise UserError(f"sync: W&B refused the run {command[6]} after {done} were uploaded ({told}).")
    return len(commands)
