"""What the losses of a run say along it: the share of spikes, and the level at which they settle (Fig 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SHORTEST = 4
"""Entries of a phase before its level is defined."""


@dataclass
class SpikeScore:
    """Share of steps so far whose loss, or gradient norm, exceeds the mean of those before by `DEVIATIONS` of theirs.

    Mean and standard deviation are those of the last `WINDOW` finite values; the first `WARM_UP` steps have too few
    before them and cannot be spikes. A NaN or an infinity is a spike and does not enter the window.
    """

    recent: list[float] = field(default_factory=list)
    steps: int = 0
    spikes: int = 0

    WINDOW = 1000
    WARM_UP = 100
    DEVIATIONS = 7.0

    @property
    def score(self) -> float:
        """Spikes per step; 0 before the first."""
        return self.spikes / max(self.steps, 1)

    def update(self, values: Sequence[float]) -> None:
        """Take in the values of successive steps, on the host."""
        new = np.asarray(values, dtype=np.float64)
        self.steps += len(new)
        self.spikes += int((~np.isfinite(new)).sum())
        new = new[np.isfinite(new)]
        before = len(self.recent)
        series = np.concatenate([np.asarray(self.recent, dtype=np.float64), new])
        if len(new) and len(series) > self.WARM_UP:
            # Running sums of values around zero: no cancellation to speak of in their differences.
            centred = series - series.mean()
            sums, squares = (np.concatenate([[0.0], np.cumsum(x)]) for x in (centred, centred**2))
            ends = np.arange(max(before, self.WARM_UP), len(series))
            starts = np.maximum(ends - self.WINDOW, 0)
            counts = ends - starts
            mean = (sums[ends] - sums[starts]) / counts
            variance = np.maximum((squares[ends] - squares[starts]) / counts - mean**2, 0.0)
            self.spikes += int((centred[ends] > mean + self.DEVIATIONS * np.sqrt(variance) + 1e-12).sum())
        self.recent = series[-self.WINDOW :].tolist()

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for the checkpoint."""
        return {"recent": self.recent, "steps": self.steps, "spikes": self.spikes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.recent, self.steps, self.spikes = list(state["recent"]), state["steps"], state["spikes"]


class SpikeScores(dict[str, SpikeScore]):
    """Spike scores by the names of their metrics, kept in a checkpoint together."""

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for the checkpoint."""
        return {name: score.state_dict() for name, score in self.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        for name, score in self.items():
            score.load_state_dict(state[name])


class StabilisationLevel:
    """Mean training loss over the later half of what has been logged since the learning rate last changed.

    Gradient noise keeps the loss of SGD at a constant learning rate from falling below a level of its own; over the
    later half of the phase the fall to it is behind. Undefined (None) for the first `SHORTEST` entries of a phase,
    and so throughout for a schedule that moves the learning rate all the time.
    """

    def __init__(self) -> None:
        self._lr: float | None = None
        self._losses: list[float] = []

    def update(self, lr: float, loss: float) -> float | None:
        """Take in the mean loss (nats) of the latest stretch of steps at learning rate `lr`; returns the level."""
        if lr != self._lr:
            self._lr, self._losses = lr, []
        self._losses.append(loss)
        if len(self._losses) < SHORTEST:
            return None
        later = self._losses[len(self._losses) // 2 :]
        return sum(later) / len(later)

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {"lr": self._lr, "losses": self._losses}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._lr, self._losses = saved["lr"], list(saved["losses"])
