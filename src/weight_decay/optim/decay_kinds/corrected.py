"""Decay in proportion to the square of the learning rate."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from weight_decay.config.groups import DecayConfig
from weight_decay.config.registry import DECAY_KINDS
from weight_decay.config.schema import check_pattern
from weight_decay.config.span import Clock
from weight_decay.errors import UserError
from weight_decay.optim.decay_kinds.rule import Decayed, Rule, RuleFactory, Step


class Corrected(Rule):
    """w <- w - η_t (η_t / η_max) λ w - η_t u for the parameters whose name matches, decoupled decay for the others.

    With the decay in proportion to η_t² the equilibrium ratio of gradient to weight, √(2 λ / η) under decoupled decay,
    no longer moves when the learning rate falls, so neither norm drifts at the end of a run. AdamC (Defazio,
    2506.02285) corrects the layers that a normalisation follows, in practice every matrix but the output layer's;
    Chou (2512.08217) finds η² to be right whatever the layer and the optimizer: `match` is then '.*'.
    """

    def __init__(self, decayed: Decayed, match: str = ".*") -> None:
        super().__init__(decayed)
        pattern = re.compile(match)
        self._split: list[tuple[list[Tensor], list[Tensor], float]] = []
        for group in decayed.groups:
            chosen = [bool(pattern.search(name)) for name in group.names]
            pairs = list(zip(group.weights, chosen, strict=True))
            self._split.append(([w for w, yes in pairs if yes], [w for w, yes in pairs if not yes], group.strength))
        if not any(yes for yes, _, _ in self._split):
            raise UserError(f"decay.corrected: no parameter that decays matches '{match}'; '.*' corrects all of them.")

    def before(self, step: Step) -> None:
        """Shrink the weights."""
        for corrected, others, strength in self._split:
            rate = step.lr * strength * step.factor
            if corrected:
                torch._foreach_mul_(corrected, 1.0 - rate * (step.lr / self.decayed.peak_lr))
            if others:
                torch._foreach_mul_(others, 1.0 - rate)


@DECAY_KINDS.add("corrected")
@dataclass(frozen=True)
class CorrectedDecay(DecayConfig):
    """Decay ∝ η² where `corrected` matches, so that norms stay put as η falls (AdamC 2506.02285; 2512.08217)."""

    corrected: str

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pattern(self.corrected, "corrected")

    def rule(self, clock: Clock) -> RuleFactory:
        """The rule with its settings."""
        return functools.partial(Corrected, match=self.corrected)
