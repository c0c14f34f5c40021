"""How decay and noise shape the weights of a run, without running it.

The model (van Laarhoven 1706.05350; Kosson et al. 2305.17212; Wang & Aitchison 2405.13698): an update of relative
size u·η that points anywhere is added to weights that decay by ηλ a step,

    ‖w_{t+1}‖² = (1 - η_t λ)² ‖w_t‖² + η_t² U²,      U² = u² · (number of parameters).

For AdamW every coordinate moves by about η, so that u is near 1 if gradients are noise and larger if they agree from
step to step. For SGD the update is the gradient itself, whose norm nobody knows beforehand: only timescales follow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

MOST_STEPS = 20_000
"""Longer runs are integrated in as many equal pieces: the norm changes little within one of them."""


@dataclass(frozen=True)
class Schedule:
    """η over the run: linear warm-up, then `shape` down to `final_fraction` of the peak.

    shape: `constant`, `cosine`, `linear`, or `drop` (the peak until `drop_at`, a fraction of the run).
    """

    shape: str
    peak: float
    steps: int
    warmup: int = 0
    final_fraction: float = 0.1
    drop_at: float = 0.5

    def lr(self, step: float) -> float:
        """Learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.peak * step / self.warmup
        progress = (step - self.warmup) / max(self.steps - self.warmup, 1)
        if self.shape == "constant":
            return self.peak
        if self.shape == "drop":
            return self.peak * (1.0 if step < self.drop_at * self.steps else self.final_fraction)
        rest = 1 - progress if self.shape == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
        return self.peak * (self.final_fraction + (1 - self.final_fraction) * rest)

    def pieces(self) -> Iterator[tuple[float, float]]:
        """The run in at most MOST_STEPS pieces: (steps in the piece, η in its middle)."""
        count = min(self.steps, MOST_STEPS)
        width = self.steps / count
        for index in range(count):
            # Whole steps stand where they begin, as the loop takes them.
            yield width, self.lr(index if width == 1 else (index + 0.5) * width)

    @property
    def last_lr(self) -> float:
        """η of the last step."""
        return self.lr(self.steps - 1)

    @property
    def total(self) -> float:
        """Σ η_t over the run."""
        return sum(width * lr for width, lr in self.pieces())


def timescale(lr: float, weight_decay: float) -> float:
    """Steps in which decay alone shrinks the weights by a factor e; infinite without decay."""
    return math.inf if lr * weight_decay == 0 else 1 / (lr * weight_decay)


def equilibrium_norm(lr: float, weight_decay: float, drive: float) -> float:
    """‖w‖ at which decay and the updates' noise balance: U √(η / 2λ); infinite without decay."""
    return math.inf if weight_decay == 0 else drive * math.sqrt(lr / (2 * weight_decay))


def relative_update(lr: float, weight_decay: float) -> float:
    """Relative size of an update, ‖Δw‖/‖w‖, in equilibrium: √(2ηλ), whatever the gradients are (2305.17212)."""
    return math.sqrt(2 * lr * weight_decay)


def norms(schedule: Schedule, weight_decay: float, start: float, drive: float) -> list[tuple[float, float, float]]:
    """(step, η, ‖w‖) along a run that starts at ‖w‖ = `start` and whose updates have norm η·`drive`."""
    square, step = start * start, 0.0
    path = [(0.0, schedule.lr(0), start)]
    for width, lr in schedule.pieces():
        kept = max(1 - lr * weight_decay, 0.0) ** 2
        shrunk = kept**width
        # The sum over the piece of what each step adds and later steps of the piece shrink again.
        added = width if kept == 1 else (1 - shrunk) / (1 - kept)
        square = shrunk * square + added * (lr * drive) ** 2
        step += width
        path.append((step, lr, math.sqrt(square)))
    return path


def final_norm(schedule: Schedule, weight_decay: float, start: float, drive: float) -> float:
    """‖w‖ at the end of the run."""
    return norms(schedule, weight_decay, start, drive)[-1][2]


HALF_STEP = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24}
"""Half the distance between neighbouring numbers in [1, 2): a smaller change is rounded away."""


def rounded_away(lr: float, weight_decay: float, weights: str) -> float:
    """Share of weights that round w(1 - ηλ) back to w when stored as `weights` and decayed in a step of its own.

    A weight m·2^e, 1 <= m < 2, keeps its value where m·ηλ is below half a step; m is taken as log-uniform.
    """
    if lr * weight_decay == 0:
        return 0.0
    return min(max(math.log2(HALF_STEP[weights] / (lr * weight_decay)), 0.0), 1.0)


def forgotten_at(schedule: Schedule, weight_decay: float) -> float | None:
    """The step by which decay has shrunk the initial weights by a factor e (λ Σ η = 1); None if the run is shorter."""
    step = travelled = 0.0
    for width, lr in schedule.pieces():
        step, travelled = step + width, travelled + width * lr
        if weight_decay * travelled >= 1:
            return step
    return None
