"""Weight decay that is no rule beside the optimizer: done by it or through the gradient, in `DecayedOptimizer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from weight_decay.config.groups import DecayConfig
from weight_decay.config.registry import DECAY_KINDS
from weight_decay.config.span import Clock


@dataclass(frozen=True)
class OwnDecay(DecayConfig):
    """What the four kinds share."""

    own: ClassVar[bool] = True
    penalty: ClassVar[float | None] = 0.5

    def rule(self, clock: Clock) -> str:
        """The optimizer's own name for it."""
        return self.kind


@DECAY_KINDS.add("decoupled")
@dataclass(frozen=True)
class DecoupledDecay(OwnDecay):
    """w <- w - η λ w beside the step: AdamW's decay, and SGD's made the same (PAPER §1)."""


@DECAY_KINDS.add("l2")
@dataclass(frozen=True)
class L2Decay(OwnDecay):
    """The penalty (λ/2) ‖w‖² in the loss: λ w joins the gradient before clipping."""


@DECAY_KINDS.add("penalty")
@dataclass(frozen=True)
class PenaltyDecay(OwnDecay):
    """The penalty λ ‖w‖² in the loss: 2 λ w joins the gradient before clipping (Fig 21)."""

    penalty: ClassVar[float | None] = 1.0


@DECAY_KINDS.add("torch")
@dataclass(frozen=True)
class TorchOwnDecay(OwnDecay):
    """What torch's own optimizers do.

    SGD: λ w joins the gradient after clipping and before the momentum buffer, so that with momentum μ the decay is
    η λ / (1-μ) in the long run (Fig 22). AdamW and Muon: the same as decoupled.
    """

    optimizers: ClassVar[tuple[str, ...] | None] = ("sgd", "adamw", "muon")
