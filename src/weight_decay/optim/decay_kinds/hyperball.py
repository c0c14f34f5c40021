"""A fixed norm and a fixed step for each matrix: effective learning rate without decay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from weight_decay.config.groups import DecayConfig
from weight_decay.config.registry import DECAY_KINDS
from weight_decay.config.span import Clock
from weight_decay.optim.decay_kinds.rule import Decayed, Rule, RuleFactory, Step, in_dtype
from weight_decay.optim.norm import norms


class Hyperball(Rule):
    """w <- R N(w - η λ R N(u)), N(x) = x / ‖x‖_F and R = ‖w₀‖_F, for each decayed parameter.

    Hyperball (Wen et al., 2606.16899; also HeavyBall's `hyperball_step_`): weights and updates of every matrix have
    fixed Frobenius norms, so its effective learning rate is η λ by construction. λ is 1 in the paper; here it is the
    matrices' rate in units of η, which the other parameters follow. A parameter that starts at zero stays zero: give
    the rule matrices (decay=hyperball exempts norms and biases).
    """

    takes_update: ClassVar[bool] = True

    def __init__(self, decayed: Decayed) -> None:
        super().__init__(decayed)
        self._radius = norms([weight.detach() for weight in decayed.weights])

    def after(self, step: Step) -> None:
        """Normalise the update, make the step, go back to the radius."""
        for (group, at), old in zip(self.decayed.windows(), self.old, strict=True):
            radius = self._radius[at]
            rate = step.lr * group.strength * step.factor
            # group.weights is -η u, of which only the direction is used.
            scale = torch._foreach_div(radius, torch._foreach_clamp_min(norms(group.weights), 1e-30))
            torch._foreach_mul_(scale, rate)
            torch._foreach_mul_(group.weights, in_dtype(scale, group.weights))
            torch._foreach_add_(group.weights, old)
            back = torch._foreach_div(radius, torch._foreach_clamp_min(norms(group.weights), 1e-30))
            torch._foreach_mul_(group.weights, in_dtype(back, group.weights))

    def state(self) -> dict[str, list[Tensor]]:
        """The radii."""
        return {"radius": self._radius}


@DECAY_KINDS.add("hyperball")
@dataclass(frozen=True)
class HyperballDecay(DecayConfig):
    """Each norm fixed, each step η λ of it: effective learning rate without decay (2606.16899)."""

    def rule(self, clock: Clock) -> RuleFactory:
        """The rule with its settings."""
        return Hyperball
