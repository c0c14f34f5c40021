"""Snapshot ensembles and how far two predictive distributions are apart (Tables 2, 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from weight_decay.device.traits import widest_float


def total_variation(left: Tensor, right: Tensor) -> Tensor:
    """1/(2N) Σ_i Σ_j |p_ij - q_ij| of two sets of probabilities (N, classes): 0 if equal, 1 if disjoint."""
    return (_wide(left) - _wide(right)).abs().sum(1).mean() / 2


def scores(probabilities: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """`error` (a fraction) and `loss` (mean cross-entropy in nats) of probabilities (N, classes); labels (N,)."""
    chosen = _wide(probabilities).gather(1, labels[:, None]).squeeze(1)
    smallest = torch.finfo(torch.float32).tiny  # a probability that rounded to 0 must not cost infinitely much
    return {
        "error": _wide(probabilities.argmax(1) != labels).mean(),
        "loss": -chosen.clamp_min(smallest).log().mean(),
    }


class SnapshotEnsemble:
    """Mean of the class probabilities that snapshots of one run give to fixed inputs.

    Only the sum is kept, (N, classes) in float64 on `device`, so the cost does not grow with the number of snapshots.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.members, self._device = 0, device
        self._sum: Tensor | None = None

    def add(self, probabilities: Tensor) -> None:
        """Take in the probabilities (N, classes) of one more snapshot."""
        wide = _wide(probabilities)
        self._sum = wide if self._sum is None else self._sum + wide
        self.members += 1

    @property
    def probabilities(self) -> Tensor:
        """The ensemble's own prediction (N, classes)."""
        assert self._sum is not None, "the ensemble has no members yet"
        return self._sum / self.members

    def state_dict(self) -> dict[str, Any]:
        """The sum and the number of members, for a checkpoint."""
        return {"members": self.members, "sum": self._sum}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.members, together = saved["members"], saved["sum"]
        self._sum = None if together is None else together.to(self._device)


def _wide(values: Tensor) -> Tensor:
    return values.to(widest_float(values.device))
