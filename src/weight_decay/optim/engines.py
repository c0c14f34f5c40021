"""The torch optimizers that make the step: SGD, AdamW, and Muon with AdamW for what is not a hidden matrix."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from weight_decay.errors import UserError
from weight_decay.optim.decay import ParameterGroup

OptimizerKind = Literal["sgd", "adamw", "muon"]


def engine(
    kind: OptimizerKind,
    groups: Sequence[ParameterGroup],
    strengths: Sequence[float],
    apart: bool,
    fused: bool,
    lr: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    betas: tuple[float, float],
    eps: float,
    matrices: str,
) -> torch.optim.Optimizer:
    """A torch optimizer whose decay of each group is of the given strength.

    apart: a torch group of its own for each parameter, so that each can have a learning rate.
    """
    options = {"fused": True} if fused else {"foreach": True}
    if kind == "muon":
        return MuonWithAdamW(groups, strengths, lr, momentum, nesterov, betas, eps, matrices, options)
    torch_groups: list[dict[str, Any]] = []
    for group, strength in zip(groups, strengths, strict=True):
        parts = [[p] for p in group.parameters] if apart else [group.parameters]
        torch_groups += [{"params": part, "weight_decay": strength} for part in parts]
    if kind == "sgd":
        return torch.optim.SGD(torch_groups, lr, momentum, dampening, nesterov=nesterov, **options)
    return torch.optim.AdamW(torch_groups, lr, betas=betas, eps=eps, **options)


class MuonWithAdamW(torch.optim.Optimizer):
    """torch's Muon for the parameters of two dimensions whose name matches `matrices`, torch's AdamW for the others.

    Muon's update is scaled to the root mean square of AdamW's (`adjust_lr_fn="match_rms_adamw"`: 0.2 √max(rows,
    columns) times the orthogonalised momentum; Liu et al., 2502.16982), so one η and one λ serve both. Both decay
    decoupled. Muon's momentum is `momentum`.

    Raises UserError if no parameter is a matrix whose name matches.
    """

    def __init__(
        self,
        groups: Sequence[ParameterGroup],
        strengths: Sequence[float],
        lr: float,
        momentum: float,
        nesterov: bool,
        betas: tuple[float, float],
        eps: float,
        matrices: str,
        options: dict[str, bool],
    ) -> None:
        pattern = re.compile(matrices)
        hidden: list[dict[str, Any]] = []
        others: list[dict[str, Any]] = []
        for group, strength in zip(groups, strengths, strict=True):
            chosen = [
                p.dim() == 2 and bool(pattern.search(name))
                for name, p in zip(group.names, group.parameters, strict=True)
            ]
            for wanted, into in ((True, hidden), (False, others)):
                part = [p for p, yes in zip(group.parameters, chosen, strict=True) if yes is wanted]
                if part:
                    into.append({"params": part, "weight_decay": strength})
        if not hidden:
            raise UserError(
                f"optimizer.matrices: no parameter of two dimensions matches '{matrices}', so muon has nothing to do; "
                "correct the pattern, or choose optimizer=adamw."
            )
        super().__init__([p for group in hidden + others for p in group["params"]], {"lr": lr})
        self._parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(hidden, lr, momentum=momentum, nesterov=nesterov, adjust_lr_fn="match_rms_adamw")
        ]
        if others:
            self._parts.append(torch.optim.AdamW(others, lr, betas=betas, eps=eps, **options))
        self.param_groups = [group for part in self._parts for group in part.param_groups]
        for engine_part in self._parts:
            engine_part.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of both; gradients are there."""
        assert closure is None
        for part in self._parts:
            part.step()


def check_hyperparameters(
    kind: str,
    lr: float,
    momentum: float,
    betas: tuple[float, float],
    eps: float,
    nesterov: bool,
    clip_norm: float | None,
    dampening: float,
) -> None:
    """Refuse what means nothing; the error names the setting."""
    if kind not in ("sgd", "adamw", "muon"):
        raise UserError(f"optimizer.kind is '{kind}'; use 'sgd', 'adamw' or 'muon'.")
    if not lr >= 0:
        raise UserError(f"optimizer.lr is {lr}; use a number that is 0 or more.")
    if not 0 <= momentum < 1:
        raise UserError(f"optimizer.momentum is {momentum}; use a number in [0, 1).")
    if not all(0 <= beta < 1 for beta in betas):
        raise UserError(f"optimizer.betas are {tuple(betas)}; use two numbers in [0, 1).")
    if not eps > 0:
        raise UserError(f"optimizer.eps is {eps}; use a number above 0.")
    if nesterov and momentum == 0:
        raise UserError("optimizer.nesterov needs momentum; set optimizer.momentum above 0.")
    if clip_norm is not None and not clip_norm > 0:
        raise UserError(f"optimizer.clip_norm is {clip_norm}; use a number above 0, or null for no clipping.")
    if dampening and (not 0 <= dampening < 1 or nesterov or momentum == 0):
        raise UserError(
            f"optimizer.dampening is {dampening}; use a number in [0, 1), with momentum and without nesterov."
        )
