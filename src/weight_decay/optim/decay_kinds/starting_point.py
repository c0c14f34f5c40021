"""Decay towards the weights one started from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weight_decay.config.groups import DecayConfig
from weight_decay.config.registry import DECAY_KINDS
from weight_decay.config.span import Clock
from weight_decay.optim.decay_kinds.rule import Decayed, Rule, RuleFactory, Step


class StartingPoint(Rule):
    """w <- w - η λ (w - w₀) - η u, with w₀ the weights at the start of the run.

    L2-SP (Li et al., 1802.01483) penalises (α/2) ‖w - w₀‖² with w₀ the pre-trained weights; here its gradient is
    decoupled from the optimizer, as decay is in AdamW (for SGD without momentum the two are one). A branch that drops
    its optimizer state starts anew and is pulled towards the weights it branched from: fine-tuning, as in the paper.
    """

    def __init__(self, decayed: Decayed) -> None:
        super().__init__(decayed)
        self._start = [weight.detach().clone() for weight in decayed.weights]

    def before(self, step: Step) -> None:
        """Move the weights towards where they were."""
        for group, at in self.decayed.windows():
            torch._foreach_lerp_(group.weights, self._start[at], step.lr * group.strength * step.factor)

    def state(self) -> dict[str, list[Tensor]]:
        """The weights at the start."""
        return {"start": self._start}


@DECAY_KINDS.add("starting_point")
@dataclass(frozen=True)
class StartingPointDecay(DecayConfig):
    """Decay towards the weights at the start of the run or of the branch (L2-SP 1802.01483)."""

    def rule(self, clock: Clock) -> RuleFactory:
        """The rule with its settings."""
        return StartingPoint
