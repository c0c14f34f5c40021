"""The level at which the training loss settles while the learning rate stays as it is (Fig 4's train loss)."""

from __future__ import annotations

from typing import Any

SHORTEST = 4


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
