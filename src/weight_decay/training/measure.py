"""What is measured of a training at a step: iterate and averages, evaluated and probed, and the snapshot ensemble."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from weight_decay.optim.averaging import restored_buffers
from weight_decay.probes.ensemble import SnapshotEnsemble, scores, total_variation
from weight_decay.training.loop import Training


class Measurements:
    """Metrics of a training where it stands; nothing here changes it.

    reestimated: evaluate the iterate also with re-estimated batch-norm statistics, as averages always are.
    curvature_of_averages: measure the curvature at the averages too.
    penalty: of a model, for λ = 1, to be added to its training loss; None: do not.
    """

    def __init__(
        self,
        training: Training,
        reestimated: bool,
        curvature_of_averages: bool,
        penalty: Callable[[nn.Module], Tensor] | None = None,
    ) -> None:
        self.training = training
        self.ensemble = SnapshotEnsemble()
        self._reestimated, self._curvature_of_averages = reestimated, curvature_of_averages
        self._penalty = penalty
        # Of the averages at the latest step that was measured: evaluation and probes there share one re-estimation.
        self._buffers: dict[str, list[Tensor]] = {}
        self._buffers_step = -1

    def evaluate(self) -> dict[str, Any]:
        """Loss and error of iterate and averages on the same fixed batches, and of the snapshot ensemble."""
        task, model = self.training.task, self.training.model
        metrics = self._evaluated(model)
        for prefix, average in self._averages():
            metrics |= _prefixed(prefix, self._evaluated(average))
            if prefix == "ema/" and self.ensemble.members:
                metrics |= self._against_ensemble(average)
        if self._reestimated:
            with restored_buffers(model):
                task.reestimate(model)
                metrics |= _prefixed("reestimated/", self._evaluated(model))
        return metrics

    def _evaluated(self, model: nn.Module) -> dict[str, Any]:
        metrics: dict[str, Any] = dict(self.training.task.evaluate(model))
        if self._penalty is not None:
            strength = self.training.weight_decay * self.training.decay_factor
            metrics["train/regularised_loss"] = metrics["train/loss"] + strength * self._penalty(model)
        return metrics

    def probe(self) -> dict[str, Any]:
        """The task's costly probes of iterate and averages."""
        task = self.training.task
        metrics = dict(task.probe(self.training.model))
        for prefix, average in self._averages():
            metrics |= _prefixed(prefix, task.probe(average))
        return metrics

    def curvature(self) -> dict[str, Any]:
        """The curvature probes of the iterate, and of the averages where asked for."""
        task = self.training.task
        metrics = dict(task.curvature(self.training.model))
        for prefix, average in self._averages() if self._curvature_of_averages else ():
            metrics |= _prefixed(prefix, task.curvature(average))
        return metrics

    def join_ensemble(self) -> dict[str, Any]:
        """Add the iterate's test predictions to the snapshot ensemble; there is nothing to record yet."""
        self.ensemble.add(self.training.task.predictions(self.training.model)[0])
        return {}

    def _against_ensemble(self, average: nn.Module) -> dict[str, Any]:
        """Error of the snapshot ensemble, and its distance from the EMA in total variation (Tables 2, 3)."""
        predicted, labels = self.training.task.predictions(average)
        together = self.ensemble.probabilities
        return {
            **_prefixed("ensemble/test/", scores(together, labels)),
            "ensemble/total_variation": total_variation(together, predicted),
            "ensemble/members": self.ensemble.members,
        }

    def _averages(self) -> Iterator[tuple[str, nn.Module]]:
        """Each average with its prefix, batch norm re-estimated; a model lives only until the next one is asked for.

        None before the first step, where every average is the iterate.
        """
        training = self.training
        if training.step == 0:
            return
        for index, decay in enumerate(training.averages.decays):
            prefix = "ema/" if index == 0 else f"ema_{decay:g}/"
            yield prefix, self._reestimated_once(prefix, training.averages.model_for(decay))
        if training.tail is not None and training.tail.count:
            yield "tail/", self._reestimated_once("tail/", training.tail.model())
        if training.epoch_average is not None:
            yield "within_epoch/", self._reestimated_once("within_epoch/", training.epoch_average.model())

    @torch.no_grad()
    def _reestimated_once(self, prefix: str, model: nn.Module) -> nn.Module:
        """The average with its re-estimated batch norm: from training data, or as it was found earlier at this step."""
        step = self.training.step
        if step != self._buffers_step:
            self._buffers, self._buffers_step = {}, step
        if prefix in self._buffers:
            for buffer, known in zip(model.buffers(), self._buffers[prefix], strict=True):
                buffer.copy_(known)
        else:
            self.training.task.reestimate(model)
            self._buffers[prefix] = [buffer.clone() for buffer in model.buffers()]
        return model


def _prefixed(prefix: str, metrics: dict[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in metrics.items()}
