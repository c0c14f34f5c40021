"""Branches: side runs from snapshots of a run, with another learning rate and decay (Figs 5, 6, 15)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from weight_decay.config.groups import BranchConfig
from weight_decay.config.run import RunConfig
from weight_decay.device.distributed import current
from weight_decay.runs.folder import Labels, identity, read_status
from weight_decay.tasks.regime import Regime
from weight_decay.training.assemble import branched_training, build_segment
from weight_decay.training.loop import Event
from weight_decay.training.record import Progress, speaker, write_summary
from weight_decay.training.stretch import BranchInterruptedError, Segment, Status


def branch_event(
    config: RunConfig,
    branch: BranchConfig,
    trunk: Segment,
    regime: Regime,
    labels: Labels,
    stop: Callable[[], bool],
) -> Event:
    """The event that runs `branch` from the trunk's weights at every step it is due."""

    def run_branch() -> None:
        trunk.save()
        _run_branch(config, branch, trunk, regime, labels, stop)

    start = branch.start.steps(regime.clock)
    every = branch.every.every(regime.clock) if branch.every is not None else sys.maxsize
    return Event(trunk.timed(run_branch), every, start, also_last=False)


def _run_branch(
    config: RunConfig,
    branch: BranchConfig,
    trunk: Segment,
    regime: Regime,
    labels: Labels,
    stop: Callable[[], bool],
) -> None:
    parent = trunk.training
    first = parent.step
    folder = trunk.folder / "branches" / f"{branch.name}-{first:09d}"
    ranks = current()
    if ranks.agree(int(read_status(folder) in ("completed", "diverged"))):
        return
    if stop():
        raise BranchInterruptedError
    folder.mkdir(parents=True, exist_ok=True)
    data = regime.data["fingerprint"]
    title = f"{labels.title} {branch.name}@{first}"
    last = first + branch.duration.steps(regime.clock)
    training = branched_training(config, branch, parent, regime)
    progress = Progress(last - first, title, config.execution.progress and ranks.writes, labels.position)
    segment = build_segment(
        config, training, folder, first, last, regime.clock, True, None, progress, speaker(title), data
    )
    segment.resume()
    status, divergence_step = segment.train(stop)
    progress.close()
    segment.recorder.close()
    if ranks.writes:
        _finish(folder, config, branch, labels, status, first, last, divergence_step, segment)
    if status == "interrupted":
        raise BranchInterruptedError


def _finish(
    folder: Path,
    config: RunConfig,
    branch: BranchConfig,
    labels: Labels,
    status: Status,
    first: int,
    last: int,
    divergence_step: int | None,
    segment: Segment,
) -> None:
    summary = {
        **identity(config, labels),
        "branch": branch.name,
        "status": status,
        "start_step": first,
        "total_steps": last,
        "divergence_step": divergence_step,
        "final": {k: v for k, v in segment.recorder.latest.items() if k != "step"},
        "seconds": round(segment.recorder.seconds, 3),
    }
    write_summary(folder, summary)
    if status != "interrupted":
        for file in (folder / "checkpoints").glob("*"):
            file.unlink()
