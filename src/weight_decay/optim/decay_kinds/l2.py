"""Weight decay of kind l2: done by the optimizer or through the gradient, in `DecayedOptimizer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from weight_decay.config.groups import DecayConfig
from weight_decay.config.registry import DECAY_KINDS
from weight_decay.config.span import Clock


@DECAY_KINDS.add("l2")
@dataclass(frozen=True)
class L2Decay(DecayConfig):
    """The penalty (λ/2) ‖w‖² in the loss: λ w joins the gradient before clipping."""

    own: ClassVar[bool] = True
    penalty: ClassVar[float | None] = 0.5

    def rule(self, clock: Clock) -> str:
        """The optimizer's own name for it."""
        return "l2"
