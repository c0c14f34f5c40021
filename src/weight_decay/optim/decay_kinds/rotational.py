"""Rotational variants: each matrix turns by the angle that decay would give it in equilibrium."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from weight_decay.config.groups import DecayConfig
from weight_decay.config.registry import DECAY_KINDS
from weight_decay.config.span import Clock
from weight_decay.errors import UserError
from weight_decay.optim.decay_kinds.rule import CountingRule, Decayed, RuleFactory, Step, dots, in_dtype
from weight_decay.optim.norm import norms

_FORGET = 0.9
_EPS = 1e-8


class Rotational(CountingRule):
    """w <- R N(w - η_r R û / (s + 1e-8)), R = ‖w₀‖, for each decayed parameter.

    û is the update without its part along w, s² the bias-corrected average of ‖û‖² (decay 0.9), and η_r the angle per
    step at which decay of strength λ settles: AdamW √(2 η λ (1-β₁)/(1+β₁)), SGD √(2 η λ / (1+μ)). So there is decay's
    effective learning rate from the first step and no drift of the norm (Kosson et al., 2305.17212, and the authors'
    `rotational_wrapper.py`, with one angle for each parameter and no centring: their per_neuron=False,
    zero_mean=False). A step with η = 0 changes nothing.
    """

    takes_update: ClassVar[bool] = True

    def __init__(self, decayed: Decayed) -> None:
        super().__init__(decayed)
        group = decayed.optimizer.param_groups[0]
        if "betas" in group and all("betas" in g for g in decayed.optimizer.param_groups):
            beta = float(group["betas"][0])
            self._share = 2 * (1 - beta) / (1 + beta)
        elif "dampening" in group:
            self._share = 2 / (1 + float(group["momentum"]))
        else:
            raise UserError("decay.kind: rotational is for Adam and SGD; choose another kind, or another optimizer.")
        self._radius = norms([weight.detach() for weight in decayed.weights])
        self._squares = [torch.zeros_like(radius) for radius in self._radius]

    def after(self, step: Step) -> None:
        """Turn each parameter, its norm fixed."""
        if step.lr == 0:
            # At the start of a warm-up -η u says nothing of u.
            for group, old in zip(self.decayed.groups, self.old, strict=True):
                torch._foreach_copy_(group.weights, old)
            return
        self.count()
        for (group, at), old in zip(self.decayed.windows(), self.old, strict=True):
            radius, squares = self._radius[at], self._squares[at]
            # group.weights is -η u; remove the part along w.
            along = dots(group.weights, old)
            torch._foreach_div_(along, torch._foreach_mul(radius, radius))
            torch._foreach_neg_(along)
            torch._foreach_add_(group.weights, torch._foreach_mul(old, in_dtype(along, old)))
            torch._foreach_mul_(group.weights, 1.0 / step.lr)  # now -û
            sizes = norms(group.weights)
            torch._foreach_mul_(sizes, sizes)
            torch._foreach_lerp_(squares, sizes, 1 - _FORGET)
            average = torch._foreach_div(squares, 1 - _FORGET**self.steps)
            torch._foreach_sqrt_(average)
            torch._foreach_add_(average, _EPS)
            angle = math.sqrt(self._share * step.lr * group.strength * step.factor)
            scale = torch._foreach_div(radius, average)
            torch._foreach_mul_(scale, angle)
            torch._foreach_mul_(group.weights, in_dtype(scale, group.weights))
            torch._foreach_add_(group.weights, old)
            back = torch._foreach_div(radius, norms(group.weights))
            torch._foreach_mul_(group.weights, in_dtype(back, group.weights))

    def state(self) -> dict[str, list[Tensor]]:
        """Radii, averages of the squared updates, and how many steps were made."""
        return {"radius": self._radius, "square": self._squares, **super().state()}


@DECAY_KINDS.add("rotational")
@dataclass(frozen=True)
class RotationalDecay(DecayConfig):
    """Each norm fixed, each turn the one that decay λ settles at (rotational variants, 2305.17212)."""

    optimizers: ClassVar[tuple[str, ...] | None] = ("sgd", "adamw")

    def rule(self, clock: Clock) -> RuleFactory:
        """The rule with its settings."""
        return Rotational
