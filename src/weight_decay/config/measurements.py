"""The groups of averages, snapshot ensembles and curvature: measurements that go beyond the iterate's own."""

from __future__ import annotations

from dataclasses import dataclass, field

from weight_decay.config.schema import off, require
from weight_decay.config.span import Span


@dataclass(frozen=True)
class EnsembleConfig:
    """Snapshot ensemble (Tables 2, 3): test predictions of the iterate, averaged over snapshots along the run.

    start: the first snapshot; every: the distance between two; stop: none is taken after it.
    """

    start: Span
    every: Span
    stop: Span


@dataclass(frozen=True)
class AveragingConfig:
    """Averages along the run: of the weights, and (`ensemble`) of the predictions.

    ema: decays of exponential averages; the first of the list is "the" EMA of the metric names.
    reestimate_samples: training images for the batch-norm statistics of an average, null for the whole set.
    tail_start: where the uniform average of the weights begins (`tail/...`), null for none.
    """

    ema: tuple[float, ...]
    reestimate_samples: int | None
    tail_start: Span | None = field(metadata=off(None))
    ensemble: EnsembleConfig | None = field(metadata=off(None))

    def __post_init__(self) -> None:
        for beta in self.ema:
            require(0 < beta < 1, f"ema: every decay must lie strictly between 0 and 1, got {beta:g}")
        require(len(set(self.ema)) == len(self.ema), f"ema: the same decay is listed twice in {list(self.ema)}")
        samples = self.reestimate_samples
        require(samples is None or samples > 0, f"reestimate_samples: must be positive or null, got {samples}")


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
