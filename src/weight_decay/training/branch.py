"""Branches: side runs from snapshots of a run, with another learning rate and decay (Figs 5, 6, 15)."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path

from weight_decay.config.groups import BranchConfig
from weight_decay.config.run import RunConfig, run_id
from weight_decay.config.span import Clock
from weight_decay.device.distributed import current
from weight_decay.errors import UserError
from weight_decay.runs.folder import ForeignFolderError, Labels, Standing, standing
from weight_decay.runs.progress import Progress
from weight_decay.runs.summary import identity, write_summary
from weight_decay.tasks.regime import Regime
from weight_decay.training.assemble import build_segment, build_training
from weight_decay.training.checkpoint import Owner
from weight_decay.training.course import Course
from weight_decay.training.loop import Event
from weight_decay.training.record import Telling, recorder, speaker
from weight_decay.training.stretch import BranchInterruptedError, Segment, Status


def check_branches(config: RunConfig, clock: Clock) -> None:
    """UserError if a branch could never start, or would have no step."""
    for number, branch in enumerate(config.branches):
        start, last = branch.start.steps(clock), clock.total_steps
        if start > last:
            raise UserError(
                f"branches[{number}].start: {branch.start} is step {start}, beyond the run's {last}; let it start "
                "earlier, or leave the branch out."
            )
        if branch.duration.steps(clock) < 1:
            raise UserError(f"branches[{number}].duration: {branch.duration} is less than one step; make it longer.")


def standing_for_all(folder: Path, config: RunConfig, branch: bool = False) -> Standing:
    """How a run or branch stands; ForeignFolderError if the folder is another's.

    Rank 0 decides for all: the others must not look at files that it is about to change.
    """
    ranks = current()
    stands = standing(folder, run_id(config), branch) if ranks.writes else Standing("unfinished")
    words = ("unfinished", "damaged", "finished", "foreign")
    status = words[ranks.agree(words.index(stands.status))]
    if status == "foreign":
        raise ForeignFolderError(folder, stands.reason)
    return Standing(status, stands.reason)


def branch_event(
    config: RunConfig, branch: BranchConfig, trunk: Segment, regime: Regime, labels: Labels, stop: Callable[[], bool]
) -> Event:
    """The event that runs `branch` from the trunk's weights at every step it is due."""
    start = branch.start.steps(regime.clock)
    every = branch.every.every(regime.clock) if branch.every is not None else sys.maxsize
    run_branch = functools.partial(_run_branch, config, branch, trunk, regime, labels, stop)
    return Event(trunk.timed(run_branch), every, start, also_last=False)


def _run_branch(
    config: RunConfig, branch: BranchConfig, trunk: Segment, regime: Regime, labels: Labels, stop: Callable[[], bool]
) -> None:
    trunk.save()
    first, duration = trunk.training.step, branch.duration.steps(regime.clock)
    folder = trunk.course.folder / "branches" / f"{branch.name}-{first:09d}"
    stands = standing_for_all(folder, config, branch=True)
    if stands.status == "finished":
        return
    if stop():
        raise BranchInterruptedError
    folder.mkdir(parents=True, exist_ok=True)
    origin = dataclasses.replace(trunk.course.origin, owner=Owner(run_id(config), folder.name))
    title = f"{labels.title} {branch.name}@{first}"
    say = speaker(title)
    progress = Progress(duration, title, config.execution.progress and current().writes)
    if stands.status == "damaged":
        say(f"is damaged ({stands.reason}) and is made again")
    course = Course(folder, first, first + duration, origin, branched=True)
    device = trunk.training.history.device
    training = build_training(config, regime, device, labels.scale, say, (trunk.training, branch))
    segment = build_segment(config, regime, training, course, Telling(recorder(folder), progress, say))
    segment.resume()
    status, divergence_step = segment.train(stop)
    progress.close()
    if current().writes:
        _finish(config, branch, labels, segment, status, divergence_step)
    segment.recorder.close()
    if status == "interrupted":
        raise BranchInterruptedError


def _finish(
    config: RunConfig,
    branch: BranchConfig,
    labels: Labels,
    segment: Segment,
    status: Status,
    divergence_step: int | None,
) -> None:
    course = segment.course
    summary = {
        **identity(config, labels),
        "branch": branch.name,
        "status": status,
        "start_step": course.first,
        "total_steps": course.last,
        "divergence_step": divergence_step,
        "final": {k: v for k, v in segment.recorder.latest.items() if k != "step"},
        "step": segment.training.step,
        "record": segment.recorder.seal(),
        "seconds": round(segment.recorder.seconds, 3),
        "stretches": segment.stretches,
    }
    write_summary(course.folder, summary)
    if status != "interrupted":
        for file in (course.folder / "checkpoints").glob("*"):
            file.unlink()
