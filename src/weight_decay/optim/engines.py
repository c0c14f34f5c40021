"""The torch optimizers that make the step: SGD, AdamW, and Muon with AdamW for what is not a hidden matrix."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from weight_decay.errors import UserError
from weight_decay.optim.decay import ParameterGroup
from weight_decay.optim.decay_kinds.rule import RuleFactory

OptimizerKind = Literal["sgd", "adamw", "muon"]
DecayKind = Literal["decoupled", "torch", "penalty", "l2"]


@dataclass(frozen=True)
class Method:
    """How weights are updated: all of an optimizer and its decay but the weights and the strengths.

    kind: "sgd" (momentum μ, optionally Nesterov), "adamw" (β₁, β₂, eps) or "muon" (momentum μ for the matrices whose
    names match `matrices`, AdamW for the rest).
    decay_kind: one of the four below, or a rule of `decay_kinds`, which then acts beside an optimizer that decays
    nothing by itself:
      "decoupled": `w <- w - η λ w` beside the update (PAPER §1; for plain SGD this is also ℓ2);
      "torch": left to torch. Its SGD adds λ w to the gradient after clipping and before the momentum buffer,
      so with momentum μ the weights shrink by ηλ/(1-μ) a step in the long run (Fig 22); its AdamW is decoupled;
      "penalty": 2λ w is added to the gradient before clipping, momentum and the adaptive step, which is what
      the penalty λ‖w‖² in the loss does (Fig 21). The reported gradient norm then includes it;
      "l2": the same with λ w, which is what (λ/2)‖w‖² does.
    dampening: as in torch's SGD, 1 - dampening times the gradient enters the buffer, except at the first step.
    clip_norm: largest 2-norm of the whole gradient, as torch clips: g · min(1, clip / (‖g‖ + 1e-6)).
    fused: True uses torch's fused kernels, False its foreach ones.
    per_parameter_lr: give every parameter a learning rate of its own (Fig 7 per matrix); needs fused.
    peak_lr: the largest η of the schedule, which some rules need; None takes `lr`.

    Raises UserError for a hyperparameter, or a combination, that means nothing.
    """

    kind: OptimizerKind
    lr: float
    momentum: float
    betas: tuple[float, float]
    eps: float
    nesterov: bool
    decay_kind: DecayKind | RuleFactory
    clip_norm: float | None
    fused: bool = True
    per_parameter_lr: bool = False
    dampening: float = 0.0
    matrices: str = ".*"
    peak_lr: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("sgd", "adamw", "muon"):
            raise UserError(f"optimizer.kind is '{self.kind}'; use 'sgd', 'adamw' or 'muon'.")
        if not self.lr >= 0:
            raise UserError(f"optimizer.lr is {self.lr}; use a number that is 0 or more.")
        if not 0 <= self.momentum < 1:
            raise UserError(f"optimizer.momentum is {self.momentum}; use a number in [0, 1).")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas are {tuple(self.betas)}; use two numbers in [0, 1).")
        if not self.eps > 0:
            raise UserError(f"optimizer.eps is {self.eps}; use a number above 0.")
        if self.nesterov and self.momentum == 0:
            raise UserError("optimizer.nesterov needs momentum; set optimizer.momentum above 0.")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise UserError(f"optimizer.clip_norm is {self.clip_norm}; use a number above 0, or null for no clipping.")
        if self.dampening and (not 0 <= self.dampening < 1 or self.nesterov or self.momentum == 0):
            raise UserError(
                f"optimizer.dampening is {self.dampening}; use a number in [0, 1), with momentum and without nesterov."
            )
        if isinstance(self.decay_kind, str) and self.decay_kind not in get_args(DecayKind):
            raise UserError(f"decay.kind is '{self.decay_kind}'; use 'decoupled', 'torch', 'penalty' or 'l2'.")
        if self.per_parameter_lr and not self.fused:
            raise UserError("per-parameter learning rates need the fused optimizer; set optimizer.fused.")


def engine(method: Method, groups: Sequence[ParameterGroup], strengths: Sequence[float]) -> torch.optim.Optimizer:
    """A torch optimizer whose decay of each group is of the given strength."""
    options = {"fused": True} if method.fused else {"foreach": True}
    lr, momentum = method.lr, method.momentum
    if method.kind == "muon":
        return MuonWithAdamW(method, groups, strengths)
    torch_groups: list[dict[str, Any]] = []
    for group, strength in zip(groups, strengths, strict=True):
        parts = [[p] for p in group.parameters] if method.per_parameter_lr else [group.parameters]
        torch_groups += [{"params": part, "weight_decay": strength} for part in parts]
    if method.kind == "sgd":
        return torch.optim.SGD(torch_groups, lr, momentum, method.dampening, nesterov=method.nesterov, **options)
    return torch.optim.AdamW(torch_groups, lr, betas=method.betas, eps=method.eps, **options)


class MuonWithAdamW(torch.optim.Optimizer):
    """torch's Muon for the parameters of two dimensions whose name matches `matrices`, torch's AdamW for the others.

    Muon's update is scaled to the root mean square of AdamW's (`adjust_lr_fn="match_rms_adamw"`: 0.2 √max(rows,
    columns) times the orthogonalised momentum; Liu et al., 2502.16982), so one η and one λ serve both. Both decay
    decoupled. Muon's momentum is `momentum`.

    Raises UserError if no parameter is a matrix whose name matches.
    """

    def __init__(self, method: Method, groups: Sequence[ParameterGroup], strengths: Sequence[float]) -> None:
        options = {"fused": True} if method.fused else {"foreach": True}
        matrices, lr, momentum = method.matrices, method.lr, method.momentum
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
            torch.optim.Muon(hidden, lr, momentum=momentum, nesterov=method.nesterov, adjust_lr_fn="match_rms_adamw")
        ]
        if others:
            self._parts.append(torch.optim.AdamW(others, lr, betas=method.betas, eps=method.eps, **options))
        self.param_groups = [group for part in self._parts for group in part.param_groups]
        for engine_part in self._parts:
            engine_part.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of both; gradients are there."""
        assert closure is None
        for part in self._parts:
            part.step()
