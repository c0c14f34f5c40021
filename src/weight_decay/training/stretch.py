"""A stretch of training with its own record and checkpoints: a run itself, or one of its branches."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch

from weight_decay.config.run import RunConfig
from weight_decay.device.distributed import current
from weight_decay.errors import UserError
from weight_decay.probes.divergence import DivergenceMonitor
from weight_decay.probes.losses import SpikeScore, SpikeScores, StabilisationLevel
from weight_decay.runs.folder import ForeignFolderError
from weight_decay.training import checkpoint
from weight_decay.training.course import Cadence, Course, Every
from weight_decay.training.loop import Event, Training, train
from weight_decay.training.measure import Measurements
from weight_decay.training.provenance import stretches_after
from weight_decay.training.record import Telling

Status = Literal["completed", "diverged", "interrupted"]
Outcome = Literal["completed", "diverged", "failed", "interrupted", "skipped", "busy"]
"""How a stretch of training ended, and what came of a call of `run`."""


class BranchInterruptedError(Exception):
    """Leaves the loop from inside a branch that was stopped; the trunk was saved before it entered the branch."""


class _DivergedError(Exception):
    """Leaves the loop from inside the log event; its argument is the step."""


class Segment:
    """Trains along a course with logging, evaluation, probes, checkpoints and divergence watch.

    penalty: what the decay adds to the loss for λ = 1, of a model; None if nobody asks.

    `train` gives the status; `resume` first goes back to the newest whole checkpoint in the folder, if there is one.
    """

    def __init__(
        self,
        config: RunConfig,
        training: Training,
        course: Course,
        cadence: Cadence,
        monitor: DivergenceMonitor,
        telling: Telling,
        penalty: Callable[[torch.nn.Module], torch.Tensor] | None,
    ) -> None:
        self.training, self.course, self._cadence = training, course, cadence
        self.recorder, self.progress, self._say = telling.recorder, telling.progress, telling.say
        self.branches: list[Event] = []
        self.monitor, self._ranks = monitor, current()
        self._spikes = SpikeScores({"stability/spike_score": SpikeScore()})
        if training.optimizer.clip_norm is not None:  # otherwise the gradient norm is not known at every step
            self._spikes["stability/grad_spike_score"] = SpikeScore()
        self._checkpoints, self._batch_size = config.checkpoint, config.batch_size
        self._saver = checkpoint.Saver(course.folder / "checkpoints", config.checkpoint.keep, course.origin.owner)
        self.stretches = [{"from_step": course.first, **course.origin.now}]
        self._resumed = False
        self._logged = course.first
        self._mark = self._saved_at = time.monotonic()
        self._aside = 0.0
        self._stabilisation = StabilisationLevel()
        self._measurements = measurements = Measurements(training, config.probes, penalty)
        self._parts: dict[str, Any] = {
            "model": training.model,
            "optimizer": training.optimizer,
            "averages": training.averages,
            "tail": training.tail,
            "epoch_average": training.epoch_average,
            "ensemble": measurements.ensemble,
            "stabilisation": self._stabilisation,
            "scaler": training.scaler,
            "monitor": monitor,
            "spikes": self._spikes,
        }
        # The ensemble takes in a step's snapshot before the evaluation of that step reads it.
        wanted: list[tuple[Callable[[], dict[str, Any]], Every | None]] = [
            (measurements.join_ensemble, cadence.ensemble),
            (measurements.evaluate, cadence.evaluate),
            *((functools.partial(measurements.probe, probe), when) for probe, when in cadence.probes),
        ]
        self._events = [
            Event(
                self.timed(functools.partial(self._record, measure)), when.every, when.start, when.also_last, when.stop
            )
            for measure, when in wanted
            if when is not None
        ]

    # -- the loop ------------------------------------------------------------------------------------------------

    def train(self, stop: Callable[[], bool]) -> tuple[Status, int | None]:
        """Train to the end, a divergence or a stop; returns the status and the step of divergence."""
        try:
            with self._saver:
                return self._train(stop)
        finally:
            # Events hold this stretch: without them a finished run is freed at once, weights, averages and data.
            self._events, self.branches = [], []

    def _train(self, stop: Callable[[], bool]) -> tuple[Status, int | None]:
        # Saving comes last among a step's events, so what a checkpoint's own step recorded is in the record already.
        # Branches are the exception: the run saves before it enters one, and the branch may be unfinished.
        save = Event(self.timed(self.save_if_due), also_last=False)
        log = Event(self.log, self._cadence.log, self.course.first)
        events = [log, *self._events, *self.branches, save]
        try:
            for event in self.branches if self._resumed else [*self._events, *self.branches]:
                if event.due(self.training.step, self.course.last):
                    event.run()
            self._mark, self._aside = time.monotonic(), 0.0
            train(self.training, self.course.last, events, log, stop)
        except _DivergedError as diverged:
            return "diverged", int(diverged.args[0])
        except BranchInterruptedError:
            return "interrupted", None
        if self.training.step < self.course.last:
            # At its first step a run has nothing to save, and what it recorded there it will record again.
            if self.training.step > self.course.first:
                self.save()
            return "interrupted", None
        return "completed", None

    # -- what is recorded ----------------------------------------------------------------------------------------

    def log(self) -> None:
        """Record losses, norms and effective learning rates since the last log, and look for divergence."""
        training = self.training
        steps = training.step - self._logged
        if steps == 0:
            return
        losses, norms = training.history.cpu().double().unbind(1)
        order = torch.arange(self._logged, training.step) % len(losses)
        losses, norms = losses[order], norms[order]
        elapsed = time.monotonic() - self._mark - self._aside
        sizes = self._measurements.sizes()
        metrics: dict[str, Any] = {
            "weight_decay": training.weight_decay * training.decay_factor,
            "batch/loss": losses.mean(),
            **sizes,
            **training.optimizer.decay_metrics(),
            **training.observed,
            "time/step": elapsed / steps,
            "throughput/samples": steps * self._batch_size / max(elapsed, 1e-9),
        }
        if (level := self._stabilisation.update(sizes["lr"], float(losses.mean()))) is not None:
            metrics["train/stabilisation"] = level
        if training.scaler is not None:
            metrics["grad/scale"] = training.scaler.get_scale()
        if training.optimizer.clip_norm is not None:
            metrics["grad/clipped"] = (norms > training.optimizer.clip_norm).double().mean()
        diverged = self.monitor.update(self._logged, losses.tolist())
        metrics["divergence/score"] = self.monitor.score
        for (name, spikes), values in zip(self._spikes.items(), (losses, norms), strict=False):
            spikes.update(values.tolist())
            metrics[name] = spikes.score
        self.write(metrics)
        self._logged = training.step
        self._mark, self._aside = time.monotonic(), 0.0
        if diverged is not None:
            raise _DivergedError(diverged + 1)

    def _record(self, measure: Callable[[], dict[str, Any]]) -> None:
        if metrics := measure():
            self.write(metrics)

    def write(self, metrics: dict[str, Any]) -> None:
        """Record `metrics` at the current step."""
        step = self.training.step
        position = {"epoch": self.training.stream.epoch(step), "samples": step * self._batch_size}
        self.recorder.write(step, {**position, **metrics, "time/seconds": self.recorder.seconds})
        self.progress.show(step - self.course.first, self.recorder.latest)

    def timed(self, run: Callable[[], None]) -> Callable[[], None]:
        """`run`, with its duration kept out of the step time."""

        def timed() -> None:
            started = time.monotonic()
            run()
            self._aside += time.monotonic() - started

        return timed

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def save_if_due(self) -> None:
        """Save when the last checkpoint is old enough; never in the last step, whose summary says more."""
        self._saver.check()
        due = time.monotonic() - self._saved_at >= self._checkpoints.every_seconds
        if due and self.training.step < self.course.last:
            self.save()

    def save(self) -> None:
        """Save the full state as the checkpoint of the current step."""
        if not self._ranks.writes:
            return
        training = self.training
        state = {
            "data": self.course.origin.data,
            "evaluated": self.course.origin.evaluated,
            "reference": self.course.origin.reference,
            "stretches": self.stretches,
            "step": training.step,
            **{name: None if part is None else part.state_dict() for name, part in self._parts.items()},
            "history": training.history,
            "logged": self._logged,
            "observed": training.observed,
            "record": self.recorder.position(),
            "random": torch.get_rng_state(),
        }
        self._saver.save(training.step, state)
        self._saved_at = time.monotonic()

    def tidy(self, completed: bool) -> None:
        """Replace the checkpoints of a finished run by final.pt, its weights and averages, if they are of any use."""
        if not self._ranks.writes:
            return
        folder, training = self.course.folder / "checkpoints", self.training
        if self._checkpoints.final and completed:
            state = {
                "step": training.step,
                "model": training.model.state_dict(),
                "averages": training.averages.state_dict(),
            }
            checkpoint.write(folder / "final.pt", training.step, state, self.course.origin.owner)
        for file in folder.glob("step-*"):
            file.unlink()

    def resume(self) -> bool:
        """Go back to the newest whole checkpoint; False if there is none, and then the record starts afresh."""
        training = self.training
        try:
            # To the host: whoever takes a part of it brings that to the device, and no second model lies there.
            state = checkpoint.load_latest(
                self.course.folder / "checkpoints", torch.device("cpu"), self._say, self.course.origin.owner
            )
        except checkpoint.ForeignCheckpointError as error:
            raise ForeignFolderError(self.course.folder, str(error)) from None
        step = -1 if state is None else state["step"]
        if self._ranks.any(step != self._ranks.agree(step)):
            raise UserError(
                f"checkpoints: the processes of this run do not all see the same ones in {self.course.folder}; "
                "put execution.results on a file system that they share."
            )
        if state is None:
            self.recorder.rewind({"offset": 0, "seconds": 0.0, "latest": {}})
            return False
        self._check_origin(state)
        self.stretches = stretches_after(state, self.course.first, self.course.origin.now, self._say)
        training.step = state["step"]
        for name, part in self._parts.items():
            if part is not None:
                part.load_state_dict(state[name])
        training.history.copy_(state["history"])
        training.observed = state["observed"]
        self._logged = state["logged"]
        self.recorder.rewind(state["record"])
        torch.set_rng_state(state["random"])
        self.progress.show(training.step - self.course.first, self.recorder.latest)
        self._resumed = True
        self._say(f"goes on from step {training.step} of {self.course.last}")
        return True

    def _check_origin(self, state: Mapping[str, Any]) -> None:
        """UserError if a checkpoint's numbers come from other data, or another reference, than are there now."""
        folder, origin = self.course.folder, self.course.origin
        for before, now, how in (
            (state["data"], origin.data, "began on other data"),
            (state.get("evaluated", origin.evaluated), origin.evaluated, "was evaluated on other data so far"),
        ):
            if before != now:
                raise UserError(
                    f"data.root: {folder} {how} ({before[:12]}, now {now[:12]}); give it that data again, or choose "
                    "another execution.results."
                )
        if state.get("reference", origin.reference) != origin.reference:
            raise UserError(
                f"schedule.reference: the run that {folder} is matched to was computed again since it began, with "
                "other numbers; delete this run's folder to start it again."
            )
