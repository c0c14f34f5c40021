"""Decay of the norm towards a target that is not zero."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from weight_decay.config.groups import DecayConfig
from weight_decay.config.registry import DECAY_KINDS
from weight_decay.config.schema import require
from weight_decay.config.span import Clock
from weight_decay.optim.decay_kinds.rule import Decayed, Rule, RuleFactory, Step
from weight_decay.optim.norm import norms


class NormControl(Rule):
    """w <- w - η λ (1 - r ‖w₀‖ / ‖w‖) w - η u, with the norm of all decayed weights as one vector.

    Weight norm control (Loshchilov, 2311.11446, eq. 3, with the update rate k = η λ): the norm goes to r times its
    initial value at the rate at which decoupled decay takes it to 0; r = 0 is decoupled decay, and with k = 1 the norm
    is at its target at once. Below the target the weights grow.
    """

    def __init__(self, decayed: Decayed, ratio: float = 1.0) -> None:
        super().__init__(decayed)
        self.ratio = ratio
        # One norm of all of them, kept with each name so that a restart finds it whatever the grouping.
        start = torch.linalg.vector_norm(torch.stack(norms([w.detach() for w in decayed.weights])))
        self._start = [start.clone() for _ in decayed.names]

    def before(self, step: Step) -> None:
        """Move the norm towards its target."""
        now = torch.linalg.vector_norm(torch.stack(norms(self.decayed.weights)))
        pull = 1.0 - self.ratio * self._start[0] / now
        for group in self.decayed.groups:
            shrink = 1.0 - step.lr * group.strength * step.factor * pull
            torch._foreach_mul_(group.weights, shrink.to(group.weights[0].dtype))

    def state(self) -> dict[str, list[Tensor]]:
        """The norm at the start."""
        return {"start_norm": self._start}


@DECAY_KINDS.add("norm_control")
@dataclass(frozen=True)
class NormControlDecay(DecayConfig):
    """Decay of the whole norm towards `ratio` times its initial value (AdamWN 2311.11446)."""

    ratio: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.ratio >= 0, f"ratio: must not be negative, got {self.ratio:g}")

    def rule(self, clock: Clock) -> RuleFactory:
        """The rule with its settings."""
        return functools.partial(NormControl, ratio=self.ratio)
