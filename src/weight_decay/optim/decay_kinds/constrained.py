"""An upper bound on each matrix's norm instead of a decay strength: constrained parameter regularisation."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from weight_decay.config.groups import DecayConfig
from weight_decay.config.registry import DECAY_KINDS
from weight_decay.config.schema import require
from weight_decay.config.span import Clock, Span
from weight_decay.optim.decay_kinds.rule import CountingRule, Decayed, RuleFactory, Step, in_dtype
from weight_decay.optim.norm import norms


class Constrained(CountingRule):
    """After the update: m <- max(0, m + (λ/n) (‖w‖² - κ)), then w <- w - 2 m w, for each parameter with n entries.

    CPR (Franke et al., 2311.09058, and the authors' `pytorch_cpr`): an augmented Lagrangian that keeps ‖w‖² below κ.
    λ is their `kappa_update` (1 there), the step of the multiplier m; a parameter under its bound does not decay. κ is
    `bound` times ‖w‖² after `bound_after` steps: 0 steps with a bound of its own are their "dependent"
    initialisation, later ones with bound 1 their "warm start". Their inflection-point detection is left out.
    `decay/multiplier`: mean of m.
    """

    def __init__(self, decayed: Decayed, bound: float = 1.0, bound_after: int = 0) -> None:
        super().__init__(decayed)
        self.bound, self.bound_after = bound, bound_after
        weights = [weight.detach() for weight in decayed.weights]
        self._multipliers = [torch.zeros_like(norm) for norm in norms(weights)]
        self._bounds = [self.bound * norm.square() for norm in norms(weights)]

    def after(self, step: Step) -> None:
        """Update the multipliers, then shrink."""
        self.count()
        if self.steps < self.bound_after:
            return
        squares = norms(self.decayed.weights)
        torch._foreach_mul_(squares, squares)
        if self.steps == self.bound_after:
            torch._foreach_copy_(self._bounds, squares)
            torch._foreach_mul_(self._bounds, self.bound)
            return
        torch._foreach_sub_(squares, self._bounds)
        for group, at in self.decayed.windows():
            multipliers, excess = self._multipliers[at], squares[at]
            torch._foreach_mul_(excess, [group.strength * step.factor / w.numel() for w in group.weights])
            torch._foreach_add_(multipliers, excess)
            torch._foreach_clamp_min_(multipliers, 0)
            shrink = torch._foreach_mul(multipliers, -2.0)
            torch._foreach_add_(shrink, 1.0)
            torch._foreach_mul_(group.weights, in_dtype(shrink, group.weights))

    def metrics(self) -> dict[str, Tensor | float]:
        """`decay/multiplier`: mean Lagrange multiplier."""
        return {"decay/multiplier": torch.stack(self._multipliers).mean().float()}

    def state(self) -> dict[str, list[Tensor]]:
        """Multipliers, bounds, and how many steps were made."""
        return {"multiplier": self._multipliers, "bound": self._bounds, **super().state()}


@DECAY_KINDS.add("constrained")
@dataclass(frozen=True)
class ConstrainedDecay(DecayConfig):
    """An upper bound on each ‖w‖², kept by a multiplier whose step is λ (CPR 2311.09058)."""

    bound: float
    bound_after: Span

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.bound > 0, f"bound: must be positive, got {self.bound:g}")

    def rule(self, clock: Clock) -> RuleFactory:
        """The rule with its settings."""
        return functools.partial(Constrained, bound=self.bound, bound_after=self.bound_after.steps(clock))
