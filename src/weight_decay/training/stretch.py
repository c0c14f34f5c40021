"""A stretch of training with its own record and checkpoints: a run itself, or one of its branches."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from weight_decay.config.groups import CheckpointConfig
from weight_decay.device.distributed import current
from weight_decay.device.memory import brought_to
from weight_decay.errors import UserError
from weight_decay.probes import weights
from weight_decay.probes.divergence import DivergenceMonitor
from weight_decay.probes.spikes import SpikeScore
from weight_decay.probes.stabilisation import StabilisationLevel
from weight_decay.runs.folder import ForeignFolderError
from weight_decay.runs.progress import Progress
from weight_decay.training import checkpoint
from weight_decay.training.cadence import Cadence
from weight_decay.training.loop import Event, Training, train
from weight_decay.training.measure import Measurements
from weight_decay.training.provenance import Origin, stretches_after
from weight_decay.training.record import Recorder
from weight_decay.training.saving import Saver

Status = Literal["completed", "diverged", "interrupted"]


class BranchInterruptedError(Exception):
    """Leaves the loop from inside a branch that was stopped; the trunk was saved before it entered the branch."""


class _DivergedError(Exception):
    """Leaves the loop from inside the log event; its argument is the step."""


class Segment:
    """Trains from `first` to `last` with logging, evaluation, probes, checkpoints and divergence watch.

    `train` gives the status; `resume` first goes back to the newest whole checkpoint in `folder`, if there is one.
    Step numbers are the run's own throughout, also in a branch, so that data and record line up.
    """

    def __init__(
        self,
        training: Training,
        folder: Path,
        first: int,
        last: int,
        cadence: Cadence,
        measurements: Measurements,
        monitor: DivergenceMonitor,
        checkpoints: CheckpointConfig,
        recorder: Recorder,
        progress: Progress,
        batch_size: int,
        say: Callable[[str], None],
        origin: Origin,
    ) -> None:
        self.training, self.folder, self.first, self.last = training, folder, first, last
        self.recorder, self.progress, self.monitor = recorder, progress, monitor
        self.branches: list[Event] = []
        self._spikes = {"stability/spike_score": SpikeScore()}
        if training.optimizer.clip_norm is not None:  # otherwise the gradient norm is not known at every step
            self._spikes["stability/grad_spike_score"] = SpikeScore()
        self._cadence, self._ranks = cadence, current()
        self._checkpoints, self._batch_size = checkpoints, batch_size
        self._say, self.origin = say, origin
        self._saver = Saver(folder / "checkpoints", checkpoints.keep, origin.owner)
        self.stretches = [{"from_step": first, **origin.now}]
        self._resumed = False
        self._logged = first
        self._mark = self._saved_at = time.monotonic()
        self._aside = 0.0
        self._stabilisation = StabilisationLevel()
        self._measuring = measurements
        # The ensemble takes in a step's snapshot before the evaluation of that step reads it.
        wanted = (
            (measurements.join_ensemble, cadence.ensemble),
            (measurements.evaluate, cadence.evaluate),
            (measurements.probe, cadence.probe),
            (measurements.curvature, cadence.curvature),
        )
        self._events = [
            Event(self.timed(self._recorded(measure)), when.every, when.start, when.also_last, when.stop)
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
        log = Event(self.log, self._cadence.log, self.first)
        events = [log, *self._events, *self.branches, save]
        try:
            for event in self.branches if self._resumed else [*self._events, *self.branches]:
                if event.due(self.training.step, self.last):
                    event.run()
            self._mark, self._aside = time.monotonic(), 0.0
            train(self.training, self.last, events, log, stop)
        except _DivergedError as diverged:
            return "diverged", int(diverged.args[0])
        except BranchInterruptedError:
            return "interrupted", None
        if self.training.step < self.last:
            # At its first step a run has nothing to save, and what it recorded there it will record again.
            if self.training.step > self.first:
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
        sizes = self._sizes()
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

    def _sizes(self) -> dict[str, Any]:
        """Learning rate (of several: their mean), weight norms and effective learning rates (PAPER §1)."""
        optimizer, given = self.training.optimizer, self.training.lr
        each = given.reshape(-1).cpu().tolist() if isinstance(given, torch.Tensor) else [given]
        lr = sum(each) / len(each)
        norms = optimizer.parameter_norms()
        norm = torch.linalg.vector_norm(norms)
        metrics = {
            "lr": lr,
            "weights/norm": norm,
            "weights/max": weights.largest_magnitude(optimizer.parameters),
            "effective_lr/adamw": weights.effective_lr_adamw(lr, norm),
            "effective_lr/sgd": weights.effective_lr_sgd(lr, norm),
        }
        if self.training.decayed:
            metrics["weights/decayed_norm"] = weights.global_norm(self.training.decayed)
        if moments := optimizer.second_moments():
            lrs = each if len(each) == len(moments) else [lr] * len(moments)
            metrics["effective_lr/adam_coordinate"] = weights.effective_lr_adam_coordinate(
                lrs, moments, [self.training.eps] * len(moments)
            )
        if self._cadence.parameter_norms:
            metrics |= {f"weights/norm/{name}": value for name, value in zip(optimizer.names, norms, strict=True)}
        return metrics

    def _recorded(self, measure: Callable[[], dict[str, Any]]) -> Callable[[], None]:
        def record() -> None:
            if metrics := measure():
                self.write(metrics)

        return record

    def write(self, metrics: dict[str, Any]) -> None:
        """Record `metrics` at the current step."""
        step = self.training.step
        position = {"epoch": self.training.stream.epoch(step), "samples": step * self._batch_size}
        self.recorder.write(step, {**position, **metrics, "time/seconds": self.recorder.seconds})
        self.progress.show(step - self.first, self.recorder.latest)

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
        if self.training.step < self.last and time.monotonic() - self._saved_at >= self._checkpoints.every_seconds:
            self.save()

    def save(self) -> None:
        """Save the full state as the checkpoint of the current step."""
        if not self._ranks.writes:
            return
        training = self.training
        state = {
            "data": self.origin.data,
            "evaluated": self.origin.evaluated,
            "reference": self.origin.reference,
            "stretches": self.stretches,
            "step": training.step,
            "model": training.model.state_dict(),
            "optimizer": training.optimizer.state_dict(),
            "averages": training.averages.state_dict(),
            "tail": training.tail.state_dict() if training.tail is not None else None,
            "epoch_average": training.epoch_average.state_dict() if training.epoch_average is not None else None,
            "ensemble": self._measuring.ensemble.state_dict(),
            "stabilisation": self._stabilisation.state_dict(),
            "scaler": training.scaler.state_dict() if training.scaler is not None else None,
            "history": training.history,
            "logged": self._logged,
            "observed": training.observed,
            "monitor": self.monitor.state_dict(),
            "spikes": {name: spikes.state_dict() for name, spikes in self._spikes.items()},
            "record": self.recorder.position(),
            "random": torch.get_rng_state(),
        }
        self._saver.save(training.step, state)
        self._saved_at = time.monotonic()

    def tidy(self, completed: bool) -> None:
        """Replace the checkpoints of a finished run by final.pt, its weights and averages, if they are of any use."""
        if not self._ranks.writes:
            return
        folder, training = self.folder / "checkpoints", self.training
        if self._checkpoints.final and completed:
            state = {
                "step": training.step,
                "model": training.model.state_dict(),
                "averages": training.averages.state_dict(),
            }
            checkpoint.write(folder / "final.pt", training.step, state, self.origin.owner)
        for file in folder.glob("step-*"):
            file.unlink()

    def resume(self) -> bool:
        """Go back to the newest whole checkpoint; False if there is none, and then the record starts afresh."""
        training = self.training
        try:
            # To the host: whoever takes a part of it brings that to the device, and no second model lies there.
            state = checkpoint.load_latest(
                self.folder / "checkpoints", torch.device("cpu"), self._say, self.origin.owner
            )
        except checkpoint.ForeignCheckpointError as error:
            raise ForeignFolderError(self.folder, str(error)) from None
        step = -1 if state is None else state["step"]
        if self._ranks.any(step != self._ranks.agree(step)):
            raise UserError(
                f"checkpoints: the processes of this run do not all see the same ones in {self.folder}; "
                "put execution.results on a file system that they share."
            )
        if state is None:
            self.recorder.rewind({"offset": 0, "seconds": 0.0, "latest": {}})
            return False
        if state["data"] != self.origin.data:
            raise UserError(
                f"data.root: {self.folder} began on other data ({state['data'][:12]}, now "
                f"{self.origin.data[:12]}); give it that data again, or choose another execution.results."
            )
        if state.get("evaluated", self.origin.evaluated) != self.origin.evaluated:
            raise UserError(
                f"data.root: {self.folder} was evaluated on other data so far ({state['evaluated'][:12]}, now "
                f"{self.origin.evaluated[:12]}); give it that data again, or choose another execution.results."
            )
        if state.get("reference", self.origin.reference) != self.origin.reference:
            raise UserError(
                f"schedule.reference: the run that {self.folder} is matched to was computed again since it began, with "
                "other numbers; delete this run's folder to start it again."
            )
        self.stretches = stretches_after(state, self.first, self.origin.now, self._say)
        training.step = state["step"]
        training.model.load_state_dict(state["model"])
        training.optimizer.load_state_dict(state["optimizer"])
        training.averages.load_state_dict(state["averages"])
        if training.tail is not None:
            training.tail.load_state_dict(state["tail"])
        if training.epoch_average is not None:
            training.epoch_average.load_state_dict(state["epoch_average"])
        self._measuring.ensemble.load_state_dict(brought_to(state["ensemble"], training.history.device))
        self._stabilisation.load_state_dict(state["stabilisation"])
        if training.scaler is not None:
            training.scaler.load_state_dict(state["scaler"])
        training.history.copy_(state["history"])
        training.observed = state["observed"]
        self._logged = state["logged"]
        self.monitor.load_state_dict(state["monitor"])
        for name, spikes in self._spikes.items():
            spikes.load_state_dict(state["spikes"][name])
        self.recorder.rewind(state["record"])
        torch.set_rng_state(state["random"])
        self.progress.show(training.step - self.first, self.recorder.latest)
        self._resumed = True
        self._say(f"goes on from step {training.step} of {self.last}")
        return True
