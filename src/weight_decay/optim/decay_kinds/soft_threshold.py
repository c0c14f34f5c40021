"""ℓ1 and elastic net: a decoupled soft threshold, alone or with decay."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from weight_decay.config.groups import DecayConfig
from weight_decay.config.registry import DECAY_KINDS
from weight_decay.config.schema import require
from weight_decay.config.span import Clock
from weight_decay.device.traits import traits
from weight_decay.optim.decay_kinds.rule import Decayed, Rule, RuleFactory, Step


class SoftThreshold(Rule):
    """w <- S(w (1 - η (1-ρ) λ) - η u, η ρ λ), with S(x, t) = sign(x) max(|x| - t, 0).

    The proximal step of η ρ λ ‖w‖₁ after the optimizer's update (iterative soft thresholding: Beck & Teboulle 2009,
    eq. 1.4), decoupled from Adam's scaling as decay is in AdamW. ρ = 1 is ℓ1; below 1 it is the elastic net with
    penalty λ (ρ ‖w‖₁ + (1-ρ)/2 ‖w‖²), in the parametrisation of scikit-learn's `ElasticNet` (`alpha`, `l1_ratio`;
    Zou & Hastie 2005). Weights become exactly zero: `weights/zero_share` is their share.
    """

    def __init__(self, decayed: Decayed, l1_ratio: float = 1.0) -> None:
        super().__init__(decayed)
        self.l1_ratio = l1_ratio

    def before(self, step: Step) -> None:
        """Decay by the quadratic part."""
        if self.l1_ratio < 1:
            for group in self.decayed.groups:
                torch._foreach_mul_(group.weights, 1.0 - step.lr * (1 - self.l1_ratio) * group.strength * step.factor)

    def after(self, step: Step) -> None:
        """Move every weight towards zero by η ρ λ, not beyond it."""
        for group in self.decayed.groups:
            threshold = step.lr * self.l1_ratio * group.strength * step.factor
            # x - clamp(x, -t, t) is S(x, t).
            cut = torch._foreach_clamp_max(group.weights, threshold)
            torch._foreach_clamp_min_(cut, -threshold)
            torch._foreach_sub_(group.weights, cut)

    @torch.no_grad()
    def metrics(self) -> dict[str, Tensor | float]:
        """`weights/zero_share`: the share of decayed weights that are exactly zero."""
        weights = self.decayed.weights
        nonzero = torch.stack(torch._foreach_norm(weights, 0)).to(traits(weights[0].device).sums).sum()
        return {"weights/zero_share": (1 - nonzero / sum(w.numel() for w in weights)).float()}


@DECAY_KINDS.add("l1")
@dataclass(frozen=True)
class L1Decay(DecayConfig):
    """ℓ1: a soft threshold of η λ after each step, so that weights become exactly zero (Beck & Teboulle 2009)."""

    def rule(self, clock: Clock) -> RuleFactory:
        """The rule with its settings."""
        return SoftThreshold


@DECAY_KINDS.add("elastic_net")
@dataclass(frozen=True)
class ElasticNetDecay(DecayConfig):
    """A soft threshold of η λ ρ with decay of η λ (1-ρ), ρ being `l1_ratio` (Zou & Hastie 2005)."""

    l1_ratio: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.l1_ratio <= 1, f"l1_ratio: must be in [0, 1], got {self.l1_ratio:g}")

    def rule(self, clock: Clock) -> RuleFactory:
        """The rule with its settings."""
        return functools.partial(SoftThreshold, l1_ratio=self.l1_ratio)
