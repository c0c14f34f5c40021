"""The learning rate at which a cell begins to diverge, found by bisection: a continuous outcome for yes or no."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

from weight_decay.config.run import RunConfig
from weight_decay.errors import UserError


@dataclass(frozen=True)
class Critical:
    """The bracket: `stable` completed (0: no rate did), `diverged` did so (infinite: no rate did)."""

    stable: float
    diverged: float
    runs: int

    @property
    def lr(self) -> float:
        """The geometric middle of the bracket; NaN if it is open."""
        return math.sqrt(self.stable * self.diverged) if self.stable > 0 and math.isfinite(self.diverged) else math.nan


def at_rate(config: RunConfig, lr: float) -> RunConfig:
    """The same cell at another peak learning rate; the decay per step, λ·η, stays what it was.

    Otherwise the rate that diverges would also be a measurement of stronger decay.
    """
    strength = config.decay.strength * config.optimizer.lr / lr
    return dataclasses.replace(
        config,
        optimizer=dataclasses.replace(config.optimizer, lr=lr),
        decay=dataclasses.replace(config.decay, strength=float(f"{strength:.6g}")),
    )


def critical_lr(diverges: Callable[[float], bool], start: float, factor: float, bisections: int) -> Critical:
    """Bracket the critical rate from `start` in steps of `factor`, then halve the bracket `bisections` times.

    Halves are of the logarithm. Rates are rounded to four digits, so that an interrupted search meets the same runs
    again. At most six steps are made in search of a bracket. UserError for a start or factor that brackets nothing.
    """
    if not (factor > 1 and bisections >= 0 and start > 0):
        raise UserError(
            f"critical_lr: start {start}, factor {factor} and bisections {bisections} must be above 0, 1, -1."
        )
    stable, diverged, runs, rate = 0.0, math.inf, 0, start
    while runs < 7 and not (stable > 0 and math.isfinite(diverged)):
        runs += 1
        if diverges(rate):
            diverged = rate
        else:
            stable = rate
        rate = _four(diverged / factor if math.isfinite(diverged) else stable * factor)
    if stable > 0 and math.isfinite(diverged):
        for _ in range(bisections):
            middle, runs = _four(math.sqrt(stable * diverged)), runs + 1
            stable, diverged = (stable, middle) if diverges(middle) else (middle, diverged)
    return Critical(stable, diverged, runs)


def _four(value: float) -> float:
    return float(f"{value:.4g}")
