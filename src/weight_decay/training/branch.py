"""Branches: side runs from snapshots of a run, with another learning rate and decay (Figs 5, 6, 15)."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable

from weight_decay.config.groups import BranchConfig
from weight_decay.config.run import RunConfig, run_id
from weight_decay.config.span import Clock
from weight_decay.device.distributed import current
from weight_decay.errors import UserError
from weight_decay.runs.folder import ForeignFolderError, Labels, Standing, standing
from weight_decay.runs.progress import Progress
from weight_decay.runs.summary import identity, write_summary
from weight_decay.training.checkpoint import Owner
from weight_decay.training.course import Course
from weight_decay.training.loop import Event
from weight_decay.training.record import Telling, recorder, speaker
from weight_decay.training.stretch import BranchInterruptedError, Segment, Status

BuildBranch = Callable[[BranchConfig, Course, Telling], Segment]
"""What makes the stretch of a branch along a course, from the trunk where it stands."""


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


def branch_event(
    config: RunConfig,
    branch: BranchConfig,
    trunk: Segment,
    clock: Clock,
    labels: Labels,
    build: BuildBranch,
    stop: Callable[[], bool],
) -> Event:
    """The event that runs `branch`, made by `build`, from the trunk's weights at every step it is due."""
    duration = branch.duration.steps(clock)

    def run_branch() -> None:
        trunk.save()
        _run_branch(config, branch, trunk, duration, labels, build, stop)

    start = branch.start.steps(clock)
    every = branch.every.every(clock) if branch.every is not None else sys.maxsize
    return Event(trunk.timed(run_branch), every, start, also_last=False)


def _run_branch(
    config: RunConfig,
    branch: BranchConfig,
    trunk: Segment,
    duration: int,
    labels: Labels,
    build: BuildBranch,
    stop: Callable[[], bool],
) -> None:
    first = trunk.training.step
    folder = trunk.course.folder / "branches" / f"{branch.name}-{first:09d}"
    ranks = current()
    stands = standing(folder, run_id(config), branch=True) if ranks.writes else Standing("unfinished")
    words = ("unfinished", "damaged", "finished", "foreign")
    status_there = words[ranks.agree(words.index(stands.status))]
    if status_there == "finished":
        return
    if status_there == "foreign":
        raise ForeignFolderError(folder, stands.reason)
    if stop():
        raise BranchInterruptedError
    folder.mkdir(parents=True, exist_ok=True)
    origin = dataclasses.replace(trunk.course.origin, owner=Owner(run_id(config), folder.name))
    title = f"{labels.title} {branch.name}@{first}"
    say = speaker(title)
    progress = Progress(duration, title, config.execution.progress and ranks.writes)
    if status_there == "damaged":
        say(f"is damaged ({stands.reason}) and is made again")
    course = Course(folder, first, first + duration, origin, branched=True)
    segment = build(branch, course, Telling(recorder(folder), progress, say))
    segment.resume()
    status, divergence_step = segment.train(stop)
    progress.close()
    if ranks.writes:
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
