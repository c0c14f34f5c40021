"""Decay only where it goes the way of the update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from weight_decay.config.groups import DecayConfig
from weight_decay.config.registry import DECAY_KINDS
from weight_decay.config.span import Clock
from weight_decay.optim.decay_kinds.rule import Rule, RuleFactory, Step


class Cautious(Rule):
    """w <- w - η (u + λ 1[u w >= 0] w), coordinate by coordinate.

    Decay acts where the update, too, makes the weight smaller in magnitude, and leaves alone what the update is
    growing (Chen et al., 2510.12402, Algorithm 1). u is the optimizer's whole update, momentum included.
    """

    takes_update: ClassVar[bool] = True

    def after(self, step: Step) -> None:
        """Put weights, update and masked decay together."""
        for group, old in zip(self.decayed.groups, self.old, strict=True):
            # group.weights is -η u, so the mask is where -η u · w is not positive: 1 - max(sign, 0).
            mask = torch._foreach_mul(group.weights, old)
            torch._foreach_sign_(mask)
            torch._foreach_clamp_min_(mask, 0)
            torch._foreach_sub_(mask, 1)  # 0 where it grows, -1 elsewhere
            torch._foreach_add_(group.weights, old)
            torch._foreach_addcmul_(group.weights, mask, old, value=step.lr * group.strength * step.factor)


@DECAY_KINDS.add("cautious")
@dataclass(frozen=True)
class CautiousDecay(DecayConfig):
    """Decay only where the update, too, shrinks the weight (2510.12402)."""

    def rule(self, clock: Clock) -> RuleFactory:
        """The rule with its settings."""
        return Cautious
