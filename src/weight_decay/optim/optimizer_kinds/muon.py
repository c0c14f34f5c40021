"""Muon for the hidden matrices of a language model, AdamW for the rest."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from weight_decay.config.registry import OPTIMIZERS
from weight_decay.errors import UserError
from weight_decay.optim.optimizer_kinds.settings import TorchOptimizer


@OPTIMIZERS.add("muon")
@dataclass(frozen=True)
class Muon(TorchOptimizer):
    """w <- w - 0.2 η √(max(rows, columns)) · orthogonalised momentum; AdamW for what is not a hidden matrix."""

    def unfit(self, regime: str, precision: str) -> str | None:
        """Images, and a gradient scaler."""
        if regime != "under_training":
            return "kind: torch's muon takes matrices only and convolutions are none; choose sgd or adamw"
        if precision == "float16_autocast":
            return "kind: muon does not know a gradient scaler; choose another precision than float16_autocast"
        return None

    @property
    def decoupled(self) -> bool:
        """Always."""
        return True

    def build(self, groups: Sequence[dict[str, Any]]) -> MuonWithAdamW:
        """Both, as one optimizer."""
        return MuonWithAdamW(self, groups)


class MuonWithAdamW(torch.optim.Optimizer):
    """torch's Muon for the parameters of two dimensions whose name matches `matrices`, torch's AdamW for the others.

    Muon's update is scaled to the root mean square of AdamW's (`adjust_lr_fn="match_rms_adamw"`: 0.2 √max(rows,
    columns) times the orthogonalised momentum; Liu et al., 2502.16982), so one η and one λ serve both. Both decay
    decoupled. Muon's momentum is `momentum`.

    Raises UserError if no parameter is a matrix whose name matches.
    """

    def __init__(self, settings: Muon, groups: Sequence[dict[str, Any]]) -> None:
        lr, pattern = settings.lr, re.compile(settings.matrices)
        hidden: list[dict[str, Any]] = []
        others: list[dict[str, Any]] = []
        for group in groups:
            chosen = [
                p.dim() == 2 and bool(pattern.search(name))
                for name, p in zip(group["names"], group["params"], strict=True)
            ]
            for wanted, into in ((True, hidden), (False, others)):
                part = [p for p, yes in zip(group["params"], chosen, strict=True) if yes is wanted]
                if part:
                    into.append({"params": part, "weight_decay": group["weight_decay"]})
        if not hidden:
            raise UserError(
                f"optimizer.matrices: no parameter of two dimensions matches '{settings.matrices}', so muon has "
                "nothing to do; correct the pattern, or choose optimizer=adamw."
            )
        super().__init__([p for group in hidden + others for p in group["params"]], {"lr": lr})
        momentum, nesterov = settings.momentum, settings.nesterov
        self._parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(hidden, lr, momentum=momentum, nesterov=nesterov, adjust_lr_fn="match_rms_adamw")
        ]
        if others:
            adamw = torch.optim.AdamW(others, lr, betas=settings.betas, eps=settings.eps, **settings.kernels)
            self._parts.append(adamw)
        self.param_groups = [group for part in self._parts for group in part.param_groups]
        for part_of_both in self._parts:
            part_of_both.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of both; gradients are there."""
        assert closure is None
        for part in self._parts:
            part.step()
