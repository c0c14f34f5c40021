"""Decay divided by the root mean second moment: stable for a loss or a gradient of any scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from weight_decay.config.groups import DecayConfig
from weight_decay.config.registry import DECAY_KINDS
from weight_decay.config.span import Clock
from weight_decay.errors import UserError
from weight_decay.optim.decay_kinds.rule import Decayed, Rule, RuleFactory, Step


class Stable(Rule):
    """w <- w - η λ / √v̄ · w - η u, with v̄ the mean of Adam's bias-corrected second moment over all parameters.

    AdamS (Xie et al., 2011.11152, and the authors' `swd_optim/adams.py`): v̄ is that of this step, its gradient
    included. With SGD it is SGDS of `swd_optim/sgds.py`: w <- w - η λ (1 - dampening) / (1 - μ) · w - η u.
    """

    def __init__(self, decayed: Decayed) -> None:
        super().__init__(decayed)
        groups = decayed.optimizer.param_groups
        self._adam = all("betas" in group for group in groups)
        if not self._adam and not all("dampening" in group for group in groups):
            raise UserError("decay.kind: stable is for Adam and SGD; choose another kind, or another optimizer.")
        self._count = sum(weight.numel() for weight in decayed.every)

    def before(self, step: Step) -> None:
        """Shrink the weights."""
        scale = self._scale()
        for group in self.decayed.groups:
            rate = step.lr * group.strength * step.factor
            shrink: float | Tensor = 1.0 - rate * scale
            if isinstance(shrink, Tensor):
                shrink = shrink.to(group.weights[0].dtype)
            torch._foreach_mul_(group.weights, shrink)

    def _scale(self) -> float | Tensor:
        optimizer = self.decayed.optimizer
        group = optimizer.param_groups[0]
        if not self._adam:
            return (1.0 - float(group["dampening"])) / (1.0 - float(group["momentum"]))
        beta = float(group["betas"][1])
        gradients = [p.grad for p in self.decayed.every if p.grad is not None]
        dtype = torch.promote_types(gradients[0].dtype, torch.float32)
        # The mean of β v + (1-β) g² from the two means: the optimizer has not yet taken this gradient in.
        squares = torch.stack(torch._foreach_norm(gradients, 2, dtype=dtype)).square().sum()
        states = [optimizer.state[p] for p in self.decayed.every if "exp_avg_sq" in optimizer.state.get(p, {})]
        if not states:
            return (squares / self._count).rsqrt()  # the first step, whose bias correction undoes 1 - β
        moments = [state["exp_avg_sq"] for state in states]
        total = torch.stack(torch._foreach_norm(moments, 1, dtype=dtype)).sum()
        correction = 1.0 - beta ** (states[0]["step"] + 1).to(total.device, dtype)
        return ((beta * total + (1 - beta) * squares) / (correction * self._count)).rsqrt()


@DECAY_KINDS.add("stable")
@dataclass(frozen=True)
class StableDecay(DecayConfig):
    """Decay divided by the root of Adam's mean second moment (AdamS, SGDS; 2011.11152)."""

    optimizers: ClassVar[tuple[str, ...] | None] = ("sgd", "adamw")

    def rule(self, clock: Clock) -> RuleFactory:
        """The rule with its settings."""
        return Stable
