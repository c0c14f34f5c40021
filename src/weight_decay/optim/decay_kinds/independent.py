"""Decay independent of the learning rate's size."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from weight_decay.config.groups import DecayConfig
from weight_decay.config.registry import DECAY_KINDS
from weight_decay.config.span import Clock
from weight_decay.optim.decay_kinds.rule import Rule, RuleFactory, Step


class Independent(Rule):
    """w <- w - s_t λ w - η_t u, with the schedule's factor s_t = η_t / η_max alone.

    λ is not multiplied by the learning rate, so changing η_max leaves the decay as it is: the form in which Loshchilov
    & Hutter (1711.05101, their schedule multiplier η_t) state AdamW, and Wortsman et al. (2309.14322, "independent
    weight decay") recommend it. Decoupled decay of strength λ / η_max is the same.
    """

    def before(self, step: Step) -> None:
        """Shrink the weights."""
        for group in self.decayed.groups:
            share = step.lr / self.decayed.peak_lr
            torch._foreach_mul_(group.weights, 1.0 - share * group.strength * step.factor)


@DECAY_KINDS.add("independent")
@dataclass(frozen=True)
class IndependentDecay(DecayConfig):
    """w <- w - s λ w with the schedule's factor s alone, λ not multiplied by η (1711.05101, 2309.14322)."""

    def rule(self, clock: Clock) -> RuleFactory:
        """The rule with its settings."""
        return Independent
