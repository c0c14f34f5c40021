"""Weight decay of kind decoupled: done by the optimizer or through the gradient, in `DecayedOptimizer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from weight_decay.config.groups import DecayConfig
from weight_decay.config.registry import DECAY_KINDS
from weight_decay.config.span import Clock


@DECAY_KINDS.add("decoupled")
@dataclass(frozen=True)
class DecoupledDecay(DecayConfig):
    """w <- w - η λ w beside the step: AdamW's decay, and SGD's made the same (PAPER §1)."""

    own: ClassVar[bool] = True
    penalty: ClassVar[float | None] = 0.5

    def rule(self, clock: Clock) -> str:
        """The optimizer's own name for it."""
        return "decoupled"
