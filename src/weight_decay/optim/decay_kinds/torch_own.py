"""Weight decay of kind torch: done by the optimizer or through the gradient, in `DecayedOptimizer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from weight_decay.config.groups import DecayConfig
from weight_decay.config.registry import DECAY_KINDS
from weight_decay.config.span import Clock


@DECAY_KINDS.add("torch")
@dataclass(frozen=True)
class TorchOwnDecay(DecayConfig):
    """What torch's own optimizers do.

    SGD: λ w joins the gradient after clipping and before the momentum buffer, so that with momentum μ the decay is
    η λ / (1-μ) in the long run (Fig 22). AdamW and Muon: the same as decoupled.
    """

    own: ClassVar[bool] = True
    penalty: ClassVar[float | None] = 0.5
    optimizers: ClassVar[tuple[str, ...] | None] = ("sgd", "adamw", "muon")

    def rule(self, clock: Clock) -> str:
        """The optimizer's own name for it."""
        return "torch"
