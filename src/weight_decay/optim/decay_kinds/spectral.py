"""A strength for each matrix from its spectrum."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from weight_decay.config.groups import DecayConfig
from weight_decay.config.registry import DECAY_KINDS
from weight_decay.config.schema import check_pattern, require
from weight_decay.config.span import Clock, Span
from weight_decay.optim.decay_kinds.rule import CountingRule, Decayed, RuleFactory, Step


class Spectral(CountingRule):
    """Decoupled decay with λ_i = λ · (s₁ + (s₂ - s₁) (α_i - α_min) / (α_max - α_min)), set anew every `every` steps.

    AlphaDecay (He et al., 2506.14562, and the authors' `WeightDecayUnbalance.py`): α_i is the exponent of a power law
    fitted to the larger half of the squared singular values of matrix i (Hill's estimator, their `pl_fitting`
    "median"). A heavy tail, small α, is a matrix that has learnt much: it decays less. `match` chooses the matrices
    whose strengths are set (theirs: all linear layers but the first and the last, with 50 singular values or more);
    the others keep λ. `lowest` and `highest` are s₁ and s₂ (their scripts for AdamW: 0.6666 and 5). Convolutions are
    taken as (channels out) x (the rest). `decay/strongest` and `decay/weakest`: the ends of λ_i / λ.
    """

    def __init__(
        self,
        decayed: Decayed,
        match: str = ".*",
        every: int = 100,
        lowest: float = 0.6666,
        highest: float = 5.0,
        smallest: int = 50,
    ) -> None:
        super().__init__(decayed)
        self.every, self.lowest, self.highest = every, lowest, highest
        pattern = re.compile(match)
        self._chosen = [
            index
            for index, (name, weight) in enumerate(zip(decayed.names, decayed.weights, strict=True))
            if weight.dim() >= 2 and pattern.search(name) and min(weight.flatten(1).shape) >= smallest
        ]
        self._factors = [torch.ones((), dtype=torch.float64) for _ in decayed.names]
        self._place()

    def before(self, step: Step) -> None:
        """Look at the spectra if it is time, then shrink."""
        if self.steps % self.every == 0:
            self._assign()
        self.count()
        for group, at in self.decayed.windows():
            rate = step.lr * group.strength * step.factor
            shrink = (1.0 - rate * self._vector[at]).to(group.weights[0].dtype)
            torch._foreach_mul_(group.weights, list(shrink.unbind()))

    def _assign(self) -> None:
        # Waits for the device, once in `every` steps. Rounded, so that kernels which differ in the last digits agree.
        weights = self.decayed.weights
        alphas = [float(f"{float(hill_exponent(weights[index])):.4g}") for index in self._chosen]
        if len(alphas) > 1 and max(alphas) > min(alphas):
            for index, alpha in zip(self._chosen, alphas, strict=True):
                share = (alpha - min(alphas)) / (max(alphas) - min(alphas))
                self._factors[index].fill_(self.lowest + (self.highest - self.lowest) * share)
        self._place()

    def _place(self) -> None:
        weight = self.decayed.weights[0]
        self._numbers = [float(factor) for factor in self._factors]
        dtype = torch.promote_types(weight.dtype, torch.float32)
        self._vector = torch.tensor(self._numbers, dtype=dtype).to(weight.device)

    def metrics(self) -> dict[str, Tensor | float]:
        """The largest and the smallest λ_i / λ."""
        return {"decay/strongest": max(self._numbers), "decay/weakest": min(self._numbers)}

    def state(self) -> dict[str, list[Tensor]]:
        """The factors, and how many steps were made."""
        return {"factor": self._factors, **super().state()}

    def restored(self) -> None:
        """Take factors and number of steps back from the checkpoint."""
        super().restored()
        self._place()


def hill_exponent(weight: Tensor) -> Tensor:
    """α = 1 + n / Σ ln(e_i / e_min) over the larger half of the eigenvalues e of w wᵀ; n their number."""
    eigenvalues = torch.linalg.svdvals(weight.detach().flatten(1).float()).square().sort().values
    tail = eigenvalues[len(eigenvalues) // 2 :]
    logs = tail.clamp_min(torch.finfo(torch.float32).tiny).log()
    return 1 + len(tail) / (logs.sum() - len(tail) * logs[0])


@DECAY_KINDS.add("spectral")
@dataclass(frozen=True)
class SpectralDecay(DecayConfig):
    """A strength for each matrix from its spectrum, set anew `every` so often (AlphaDecay 2506.14562)."""

    match: str
    every: Span
    lowest: float
    highest: float
    smallest: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pattern(self.match, "match")
        require(0 <= self.lowest <= self.highest, f"lowest: must be in [0, {self.highest:g}], got {self.lowest:g}")
        require(self.smallest > 1, f"smallest: must be at least 2 singular values, got {self.smallest}")

    def rule(self, clock: Clock) -> RuleFactory:
        """The rule with its settings."""
        return functools.partial(
            Spectral,
            match=self.match,
            every=self.every.every(clock),
            lowest=self.lowest,
            highest=self.highest,
            smallest=self.smallest,
        )
