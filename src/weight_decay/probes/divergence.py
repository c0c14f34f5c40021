"""Divergence: a verdict over the training loss, reached on the host from losses that were copied there anyway."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

BLOCK = 20
"""Steps whose mean loss is one level: a single step says little about where a run is."""
REFERENCE_BLOCKS = 5
"""Levels averaged for what a text run had reached: the lowest of many single ones would be luck."""
NOISE_FACTOR = 6.0
"""A rise must also be so many standard deviations of a level's own noise."""
RETURNING = 0.75
"""A level with less than this share of its peak's excess is on its way back."""


@dataclass
class DivergenceMonitor:
    """Watches the training loss and says at which step a run diverged.

    A run has diverged when its loss is NaN or infinite, or when its level, the mean loss of `BLOCK` steps, has gone
    over a bar and has not come back for `patience` steps, outside the first `grace` steps. There are two bars.

    Share of progress, for every run: best + threshold · max(start - best, start / 2), with `start` the first level
    and `best` the lowest so far. Unlike a multiple of the recent loss it means the same for a language model, whose
    loss cannot go below the entropy of the text, and for an interpolating classifier, whose loss goes to zero.

    Rise in nats, where `rise` is given: reference + max(rise, 6 σ), with the reference the lowest mean of five levels
    within the last `horizon` steps and σ the noise of a level, from the differences of successive ones. It is for a
    language model in one pass, which the paper calls diverged where its loss goes from 3.08 past 3.43 and does not
    return (Fig 8): 4 % of its progress from 10.9. It is not for images: their loss hovers at a large learning rate,
    and with decay it goes up by far more than that and comes back. The horizon lets a level that climbs slowly pass,
    as with a large λ in the middle of a run.

    After a rise the level has come back when half of the rise is gone, so a loss that flickers around the bar counts
    as over it; from the first bar, as soon as it is below, since a hovering loss may touch it. A level that is on its
    way back, a quarter of the excess of its peak gone, is given three times the patience: what took long to learn may
    take long to learn again. The step given is the first of the block that went over, also when a NaN follows before
    the patience is over: there a reader of the curve would put it.

    `score`, for the record, is (loss - best) / max(start - best, start / 10), step by step.
    """

    threshold: float
    patience: int
    grace: int
    rise: float | None = None
    horizon: int = 2500
    start: float = math.inf
    best: float = math.inf
    score: float = 0.0
    levels: list[float] = field(default_factory=list)
    block_sum: float = 0.0
    block_count: int = 0
    over_since: int | None = None
    base: float = 0.0
    back_below: float = math.inf
    peak: float = 0.0
    level: float = math.inf

    def update(self, first_step: int, losses: Sequence[float]) -> int | None:
        """Take the losses of consecutive steps starting at `first_step`; the step of divergence, or None."""
        for step, given in enumerate(losses, start=first_step):
            loss = float(given)  # of tensors in bfloat16 no mean could be taken
            if not math.isfinite(loss):
                self.score = math.inf
                return step if self.over_since is None else self.over_since
            self.block_sum += loss
            self.block_count += 1
            if self.block_count == BLOCK:
                self._judge(self.block_sum / BLOCK, step)
                self.block_sum, self.block_count = 0.0, 0
            if math.isfinite(self.best):
                self.score = max(0.0, (loss - self.best) / max(self.start - self.best, self.start / 10, 1e-12))
            if self.over_since is not None:
                returning = self.level - self.base < RETURNING * (self.peak - self.base)
                if step - self.over_since + 1 >= (3 if returning else 1) * self.patience:
                    return self.over_since
        return None

    def _judge(self, level: float, step: int) -> None:
        """Take in a finished block: over a bar, back below it, or neither."""
        if math.isinf(self.start):
            self.start = level
        self.best = min(self.best, level)
        self.level, self.peak = level, max(self.peak, level)
        if self.over_since is None:
            first = step - BLOCK + 1
            if first >= self.grace and (bar := self._bar_below(level)) is not None:
                self.base, self.back_below = bar
                self.over_since, self.peak = first, level
        elif level < self.back_below:
            self.over_since = None
        if self.over_since is None:
            # What is over the bar is no part of what the run had reached.
            self.levels = [*self.levels, level][-max(self.horizon // BLOCK, 2 * REFERENCE_BLOCKS) :]

    def _bar_below(self, level: float) -> tuple[float, float] | None:
        """None below both bars, else what the bar rests on, and the level from which on the run has come back."""
        allowed = self.threshold * max(self.start - self.best, self.start / 2)
        if level >= self.best + allowed > self.best:
            return self.best, self.best + allowed
        if self.rise is not None and len(self.levels) >= 2 * REFERENCE_BLOCKS:
            sums = [sum(self.levels[i : i + REFERENCE_BLOCKS]) for i in range(len(self.levels) - REFERENCE_BLOCKS + 1)]
            reference = min(sums) / REFERENCE_BLOCKS
            if level >= reference + self.rise:
                allowed = max(self.rise, NOISE_FACTOR * self._noise())
                return (reference, reference + allowed / 2) if level >= reference + allowed else None
        return None

    def _noise(self) -> float:
        """Standard deviation of a level around its trend, robust: from the median size of successive differences."""
        differences = [abs(b - a) for a, b in zip(self.levels, self.levels[1:], strict=False)]
        return statistics.median(differences) / (0.6745 * math.sqrt(2))

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for the checkpoint."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`; threshold, patience, grace, rise and horizon stay those of the config."""
        settings = ("threshold", "patience", "grace", "rise", "horizon")
        for name, value in state.items():
            if name not in settings:
                setattr(self, name, list(value) if name == "levels" else value)
