"""Divergence: a verdict over the training loss, reached on the host from losses that were copied there anyway."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class DivergenceMonitor:
    """Watches the training loss and says at which step a run diverged.

    A run has diverged when its loss is NaN or infinite, or when the score below stays at or above `threshold` for
    `patience` consecutive steps, outside the first `grace` steps. The score is the share of the run's progress that
    has been lost again:

        score_t = (loss_t - best) / max(start - best, start / 10)

    with `start` the mean loss of the first `WINDOW` steps and `best` the lowest mean so far of the blocks of
    `WINDOW` steps that follow one another. Unlike a multiple of the recent loss it means the same for a language
    model, whose loss cannot go below the entropy of the text, and for an interpolating classifier, whose loss goes
    to zero.
    """

    threshold: float
    patience: int
    grace: int
    start: float = math.inf
    best: float = math.inf
    bad_steps: int = 0
    score: float = 0.0
    window_sum: float = 0.0
    window_count: int = 0

    WINDOW = 20

    def update(self, first_step: int, losses: Sequence[float]) -> int | None:
        """Take the losses of consecutive steps starting at `first_step`; the step of divergence, or None.

        The step returned is where the trouble began: the NaN itself, or the first of the `patience` bad steps.
        """
        for step, loss in enumerate(losses, start=first_step):
            if not math.isfinite(loss):
                self.score = math.inf
                return step
            self._track_level(loss)
            if math.isfinite(self.best):
                self.score = max(0.0, (loss - self.best) / max(self.start - self.best, self.start / 10, 1e-12))
            bad = self.score >= self.threshold and step >= self.grace
            self.bad_steps = self.bad_steps + 1 if bad else 0
            if self.bad_steps >= self.patience:
                return step - self.patience + 1
        return None

    def _track_level(self, loss: float) -> None:
        self.window_sum += loss
        self.window_count += 1
        if self.window_count == self.WINDOW:
            mean = self.window_sum / self.WINDOW
            self.start = mean if math.isinf(self.start) else self.start
            self.best = min(self.best, mean)
            self.window_sum, self.window_count = 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for the checkpoint."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`; threshold, patience and grace stay those of the config."""
        for name in ("start", "best", "bad_steps", "score", "window_sum", "window_count"):
            setattr(self, name, state[name])
