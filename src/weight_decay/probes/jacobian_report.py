"""The Jacobian norm and the noise scale of a run, by the names they are recorded under."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from weight_decay.config.measurements import ProbeKind
from weight_decay.config.registry import PROBES
from weight_decay.device.memory import samples_at_once
from weight_decay.probes.jacobian import (
    DEFAULT_SAMPLES_AT_ONCE,
    jacobian_mean_square_estimate,
    jacobian_norm,
    scale_free_jacobian_norm,
)
from weight_decay.probes.noise import noise_scale
from weight_decay.probes.weights import global_norm, trainable_parameters
from weight_decay.seeds import generator

_AT_A_TIME = 250
"""Images of a Jacobian's piece on an accelerator, if they fit: a piece of a CPU's size would wait for its launches."""


@PROBES.add("jacobian")
@dataclass(frozen=True)
class JacobianProbe(ProbeKind):
    """Jacobian norm (both definitions, and free of the weights' scale) and noise scale σ.

    per_class: images of each class; draws: null for the exact norm, else the number of random vectors of the unbiased
    estimate, which is of the mean square alone and comes with its standard error. All in the precision of the weights,
    without autocast.
    """

    per_class: int
    draws: int | None
    regimes: ClassVar[tuple[str, ...]] = ("over_training",)

    def ready(self, task: Any, seed: int) -> Callable[[nn.Module], dict[str, Tensor]]:
        """The measurement on the task's images."""
        samples = task.samples(self.per_class, samples_at_once(task.device, 100, _AT_A_TIME))
        at_once = samples_at_once(task.device, DEFAULT_SAMPLES_AT_ONCE, _AT_A_TIME)
        return lambda model: self._measure(model, samples, at_once, seed)

    def _measure(
        self, model: nn.Module, samples: Iterable[tuple[Tensor, Tensor]], at_once: int, seed: int
    ) -> dict[str, Tensor]:
        images = (inputs for inputs, _ in samples)
        metrics: dict[str, Tensor] = {}
        if self.draws is None:
            norm = jacobian_norm(model, images, at_once)
            metrics["jacobian/mean_square"] = norm.mean_square
            metrics["jacobian/mean_norm"] = norm.mean_norm
        else:
            # The same vectors at every step: what changes along a run is then the network.
            vectors = generator(seed, "jacobian")
            estimate, error = jacobian_mean_square_estimate(model, images, vectors, self.draws, at_once)
            metrics["jacobian/mean_square"], metrics["jacobian/standard_error"] = estimate, error
        weight_norm = global_norm(trainable_parameters(model))
        metrics["jacobian/scale_free"] = scale_free_jacobian_norm(metrics["jacobian/mean_square"], weight_norm)
        metrics["noise/scale"] = noise_scale(model, samples)
        return metrics
