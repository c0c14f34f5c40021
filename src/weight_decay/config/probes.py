"""What is measured of a run and how often, with the probes that are older than their kinds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from weight_decay.config.measurements import ProbeKind
from weight_decay.config.registry import PROBES
from weight_decay.config.schema import off, require
from weight_decay.config.span import Span


@dataclass(frozen=True)
class CurvatureConfig:
    """Curvature on the first `per_class` training images of each class, first after `every`; 0 leaves a part out.

    trace_draws: random vectors of the Hessian's trace; top_steps: Lanczos steps for its largest eigenvalue (Fig 5).
    similarity_draws: vectors of the cosines between Hessian, Gauss-Newton part and gradient noise (Fig 13).
    spectrum_steps, spectrum_draws: quadrature nodes of the gradient noise's spectrum, with and without decoupling
    (Figs 16-18). averages: measure the averaged weights too, not only the iterate.
    """

    every: Span
    per_class: int
    trace_draws: int
    top_steps: int
    similarity_draws: int
    spectrum_steps: int
    spectrum_draws: int
    averages: bool

    def __post_init__(self) -> None:
        require(self.every.value > 0, f'every: must be a positive length, got "{self.every}"')
        require(self.per_class > 0, f"per_class: must be positive, got {self.per_class}")
        for name in ("trace_draws", "similarity_draws"):
            draws = getattr(self, name)
            require(draws == 0 or draws >= 2, f"{name}: must be 0 or at least 2 (for a standard error), got {draws}")
        for name in ("top_steps", "spectrum_steps"):
            require(getattr(self, name) >= 0, f"{name}: must not be negative, got {getattr(self, name)}")
        require(
            self.spectrum_steps == 0 or self.spectrum_draws > 0,
            f"spectrum_draws: a spectrum needs at least 1, got {self.spectrum_draws}",
        )


@dataclass(frozen=True)
class ProbeConfig:
    """What is measured and how often; null switches a probe off. All probes run off the hot path.

    log_every: training loss, norms, the effective learning rates, divergence check.
    evaluate_every: loss and error of iterate and averages on fixed batches of both sets.
    evaluation_train_samples: at most so many of the training set, all where it has fewer; null: all of a set of images
        and `data.evaluation_windows` of a text.
    reestimated: also those of the iterate with batch-norm statistics re-estimated as for an average (`reestimated/`).
    jacobian_every: Jacobian norm of iterate and averages and the noise scale, on `jacobian_per_class` images a class.
    jacobian_draws: null for the exact norm, else the number of random vectors of the unbiased estimate.
    within_branches: evaluate and probe a branch as often as the run; false: only where the branch ends.
    stability_every: largest attention logit, activation and output logit on `stability_windows` fixed windows (text).
    parameter_norms: with every log, the norm of each parameter by name (what matching per matrix needs, Fig 7).
    token_error: evaluate also the share of tokens that are not the likeliest (`train/error`, `val/error`; text).
    layer_gradients: with every log, the norm of the gradient of each layer before clipping (`grad/norm/<layer>`).
    regularised_loss: evaluate also the training loss plus the penalty that the decay is the gradient of
        (`train/regularised_loss`).
    replay: strengths λ whose fate in bfloat16 weights is measured when the run ends: its own gradients, step by step,
        drive copies with and without λ in every rounding and kernel (`replay/foreach/kept_0.05`).
    more: further probes, each by its kind, such as one of your own: [{kind: dead_units, every: 5 epochs}].
    """

    log_every: Span
    evaluate_every: Span
    evaluation_batch: int
    evaluation_train_samples: int | None
    reestimated: bool = field(metadata=off(False))
    jacobian_every: Span | None
    jacobian_per_class: int
    jacobian_draws: int | None = field(metadata=off(None))
    curvature: CurvatureConfig | None = field(metadata=off(None))
    within_branches: bool
    stability_every: Span | None = field(metadata=off(None))
    stability_windows: int
    parameter_norms: bool = field(metadata=off(False))
    token_error: bool = field(metadata=off(False))
    layer_gradients: bool = field(metadata=off(False))
    regularised_loss: bool = field(metadata=off(False))
    replay: tuple[float, ...] = field(metadata=off(()))
    more: tuple[Annotated[ProbeKind, PROBES], ...] = field(metadata=off(()))

    def __post_init__(self) -> None:
        require(
            len(set(self.replay)) == len(self.replay) and all(strength > 0 for strength in self.replay),
            f"replay: must be different strengths above 0 such as [0.05], got {list(self.replay)}",
        )
        for name in ("log_every", "evaluate_every", "jacobian_every", "stability_every"):
            span = getattr(self, name)
            require(span is None or span.value > 0, f'{name}: must be a positive length, got "{span}"')
        samples = self.evaluation_train_samples
        require(samples is None or samples > 0, f"evaluation_train_samples: must be positive or null, got {samples}")
        for name in ("evaluation_batch", "jacobian_per_class", "stability_windows"):
            require(getattr(self, name) > 0, f"{name}: must be positive, got {getattr(self, name)}")
        draws = self.jacobian_draws
        require(draws is None or draws > 0, f"jacobian_draws: must be positive, or null for exact, got {draws}")
        settings = {"jacobian": self.jacobian_every, "stability": self.stability_every, "curvature": self.curvature}
        kinds = [kind for kind, setting in settings.items() if setting is not None] + [one.kind for one in self.more]
        require(len(set(kinds)) == len(kinds), f"more: each kind of probe once, got {', '.join(kinds)}")

    def wanted(self) -> tuple[ProbeKind, ...]:
        """All probes of a run; those that are older than their kinds from their settings here."""
        probes: list[ProbeKind] = []
        if (every := self.jacobian_every) is not None:
            per_class, draws = self.jacobian_per_class, self.jacobian_draws
            probes.append(PROBES["jacobian"](kind="jacobian", every=every, per_class=per_class, draws=draws))
        if (every := self.stability_every) is not None:
            probes.append(PROBES["stability"](kind="stability", every=every, windows=self.stability_windows))
        if self.curvature is not None:
            probes.append(PROBES["curvature"](kind="curvature", **vars(self.curvature)))
        return (*probes, *self.more)
