"""What is measured of a training at a step: iterate and averages, evaluated and probed, and the snapshot ensemble."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from weight_decay.config.probes import ProbeConfig
from weight_decay.optim.averaging import restored_buffers
from weight_decay.probes import weights
from weight_decay.probes.ensemble import SnapshotEnsemble, scores, total_variation
from weight_decay.tasks.regime import Probe

if TYPE_CHECKING:
    from weight_decay.training.loop import Training


class Measurements:
    """Metrics of a training where it stands, as the config wants them; nothing here changes it."""

    def __init__(
        self, training: Training, wanted: ProbeConfig, penalty: Callable[[nn.Module], Tensor] | None = None
    ) -> None:
        """penalty: of a model, for λ = 1, to be added to its training loss; None: do not."""
        self.training = training
        self.ensemble = SnapshotEnsemble(training.history.device)
        self._reestimated, self._parameter_norms, self._penalty = wanted.reestimated, wanted.parameter_norms, penalty
        # Of the averages at the latest step that was measured: evaluation and probes there share one re-estimation.
        self._buffers: dict[str, list[Tensor]] = {}
        self._buffers_step = -1

    def sizes(self) -> dict[str, Any]:
        """Learning rate (of several: their mean), weight norms and effective learning rates (PAPER §1)."""
        optimizer, given = self.training.optimizer, self.training.lr
        each = given.reshape(-1).cpu().tolist() if isinstance(given, torch.Tensor) else [given]
        lr = sum(each) / len(each)
        norms = optimizer.parameter_norms()
        metrics = {"lr": lr, **weights.sizes(lr, torch.linalg.vector_norm(norms), optimizer.parameters)}
        if self.training.decayed:
            metrics["weights/decayed_norm"] = weights.global_norm(self.training.decayed)
        if moments := optimizer.second_moments():
            lrs = each if len(each) == len(moments) else [lr] * len(moments)
            metrics["effective_lr/adam_coordinate"] = weights.effective_lr_adam_coordinate(
                lrs, moments, [self.training.eps] * len(moments)
            )
        if self._parameter_norms:
            metrics |= {f"weights/norm/{name}": value for name, value in zip(optimizer.names, norms, strict=True)}
        return metrics

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

    def probe(self, probe: Probe) -> dict[str, Any]:
        """What the probe finds of the iterate, and of the averages where its kind says so."""
        metrics: dict[str, Any] = dict(probe.measure(self.training.model))
        for prefix, average in self._averages() if probe.kind.of_averages else ():
            metrics |= _prefixed(prefix, probe.measure(average))
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
