"""The curvature probes of a run, by the names they are recorded under."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from weight_decay.config.measurements import ProbeKind
from weight_decay.config.probes import CurvatureConfig
from weight_decay.config.registry import PROBES
from weight_decay.probes.curvature import Curvature
from weight_decay.probes.lanczos import Estimate, cosine_similarity, spectrum, top_eigenvalue, trace
from weight_decay.seeds import generator as stream

TOLERANCE = 1e-2
"""Relative residual at which the search for the largest eigenvalue ends."""


_AT_A_TIME = 100


@PROBES.add("curvature")
@dataclass(frozen=True)
class CurvatureProbe(CurvatureConfig, ProbeKind):
    """Hessian, Gauss-Newton part and gradient noise: trace, largest eigenvalue, cosines and spectra.

    In the precision of the weights, without autocast. Not at the first step: an untrained net's batch-norm statistics
    are placeholders, and its curvature is not worth its cost.
    """

    regimes: ClassVar[tuple[str, ...]] = ("over_training",)
    at_start: ClassVar[bool] = False

    @property
    def of_averages(self) -> bool:
        """As the settings say."""
        return self.averages

    def ready(self, task: Any, seed: int) -> Callable[[nn.Module], dict[str, Tensor]]:
        """The measurement on the task's images."""
        samples = task.samples(self.per_class, _AT_A_TIME)
        return lambda model: measure_curvature(model, list(samples), self, stream(seed, "curvature"))


def measure_curvature(
    model: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    wanted: CurvatureConfig,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Scalars on the model's device; `batches` are (inputs, labels), the model is read in eval mode.

    - `hessian/trace` with `hessian/trace_error` (standard error), `hessian/top` with `hessian/top_residual` (some
      eigenvalue lies this close): Figs 5, 14, 15.
    - `similarity/hessian_noise`, `similarity/gauss_newton_noise`, `similarity/hessian_gauss_newton`, each with its
      standard error in `.._error`: E_v cos(A v, B v), Fig 13.
    - `spectrum/noise/node_<k>` and `.../weight_<k>`, and the same under `spectrum/decoupled/`: quadrature of the
      eigenvalue density of the gradient noise without and with decoupling, k over draws × steps (Figs 16-18).
    """
    with warnings.catch_warnings():
        # torch's own forward-mode rules still go through its deprecated compiler; nobody here can change that.
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)
        return _measure(Curvature(model, batches), wanted, generator)


def _measure(curvature: Curvature, wanted: CurvatureConfig, generator: torch.Generator) -> dict[str, Tensor]:
    like = curvature.weights
    metrics: dict[str, Tensor] = {}

    def put(name: str, estimate: Estimate) -> None:
        metrics[name], metrics[f"{name}_error"] = estimate.value, estimate.standard_error

    if wanted.trace_draws:
        put("hessian/trace", trace(curvature.hessian, like, generator, wanted.trace_draws))
    if wanted.top_steps:
        top = top_eigenvalue(curvature.hessian, like, generator, wanted.top_steps, TOLERANCE)
        metrics["hessian/top"], metrics["hessian/top_residual"] = top.value, top.residual
    if wanted.similarity_draws:
        products = {
            "hessian": curvature.hessian,
            "gauss_newton": curvature.gauss_newton,
            "noise": curvature.gradient_noise,
        }
        for left, right in (("hessian", "noise"), ("gauss_newton", "noise"), ("hessian", "gauss_newton")):
            pair = cosine_similarity(products[left], products[right], like, generator, wanted.similarity_draws)
            put(f"similarity/{left}_{right}", pair)
    if wanted.spectrum_steps:
        for name, product in (("noise", curvature.gradient_noise), ("decoupled", curvature.decoupled_noise)):
            density = spectrum(product, like, generator, wanted.spectrum_steps, wanted.spectrum_draws)
            for k, (node, weight) in enumerate(zip(density.nodes.flatten(), density.weights.flatten(), strict=True)):
                metrics[f"spectrum/{name}/node_{k:03d}"] = node
                metrics[f"spectrum/{name}/weight_{k:03d}"] = weight / wanted.spectrum_draws
    return metrics
