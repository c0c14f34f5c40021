"""Weight decay of kind penalty: done by the optimizer or through the gradient, in `DecayedOptimizer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from weight_decay.config.groups import DecayConfig
from weight_decay.config.registry import DECAY_KINDS
from weight_decay.config.span import Clock


@DECAY_KINDS.add("penalty")
@dataclass(frozen=True)
class PenaltyDecay(DecayConfig):
    """The penalty λ ‖w‖² in the loss: 2 λ w joins the gradient before clipping (Fig 21)."""

    own: ClassVar[bool] = True
    penalty: ClassVar[float | None] = 1.0

    def rule(self, clock: Clock) -> str:
        """The optimizer's own name for it."""
        return "penalty"
