"""Any torch optimizer, with weight decay as an explicit choice of kind, strength and order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from weight_decay.config.groups import OptimizerConfig
from weight_decay.device.traits import traits
from weight_decay.errors import UserError
from weight_decay.optim.decay import ParameterGroup
from weight_decay.optim.decay_kinds.rule import Decayed, Group, Rule, RuleFactory, Step
from weight_decay.optim.norm import norms, total_norm

DecayKind = Literal["decoupled", "torch", "penalty", "l2"]
_PENALTY_GRADIENT = {"l2": 1.0, "penalty": 2.0}
"""The gradient of a penalty of strength λ, in units of λ w."""


@dataclass(frozen=True)
class Method:
    """How weights are updated: all of an optimizer and its decay but the weights and the strengths.

    optimizer: its kind and its settings; its `lr` is the largest η of the schedule, which some rules need.
    decay_kind: one of the four below, or a rule of `decay_kinds`, which then acts beside an optimizer that decays
    nothing by itself:
      "decoupled": `w <- w - η λ w` beside the update (PAPER §1; for plain SGD this is also ℓ2);
      "torch": left to torch. Its SGD adds λ w to the gradient after clipping and before the momentum buffer,
      so with momentum μ the weights shrink by ηλ/(1-μ) a step in the long run (Fig 22); its AdamW is decoupled;
      "penalty": 2λ w is added to the gradient before clipping, momentum and the adaptive step, which is what
      the penalty λ‖w‖² in the loss does (Fig 21). The reported gradient norm then includes it;
      "l2": the same with λ w, which is what (λ/2)‖w‖² does.
    per_parameter_lr: give every parameter a learning rate of its own (Fig 7 per matrix); needs fused kernels.

    The gradient is clipped as torch clips: g · min(1, clip / (‖g‖ + 1e-6)).

    Raises UserError for a combination that means nothing.
    """

    optimizer: OptimizerConfig
    decay_kind: DecayKind | RuleFactory
    per_parameter_lr: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.decay_kind, str) and self.decay_kind not in get_args(DecayKind):
            raise UserError(f"decay.kind is '{self.decay_kind}'; use 'decoupled', 'torch', 'penalty' or 'l2'.")
        if self.per_parameter_lr and self.optimizer.kernel != "fused":
            raise UserError("per-parameter learning rates need the fused optimizer; set optimizer.kernel to fused.")


class DecayedOptimizer:
    """One optimizer step: unscale, ℓ2 term, clip, decay, torch's own update.

    method: everything but the weights and how strongly each group decays.

    `names` and `parameters` list what is optimized, group after group; `second_moments`,
    `parameter_norms` and a per-parameter learning rate use that order. Nothing here waits for the
    device, except a scaler without the fused kernels (torch then reads back whether the step is skipped).

    Hyperparameters are not part of `state_dict`: they belong to the config, and a branch must be able
    to load its parent's moments under another λ (Figs 5, 6). The caller sets the learning rate per step.

    Raises UserError if there is nothing to optimize.
    """

    def __init__(self, groups: Sequence[ParameterGroup], method: Method) -> None:
        self.settings, decay_kind = method.optimizer, method.decay_kind
        self.kind, self.clip_norm, self.decay_kind = self.settings.kind, self.settings.clip_norm, decay_kind
        self.fused, self.per_parameter_lr = self.settings.kernel == "fused", method.per_parameter_lr
        self.names = tuple(name for group in groups for name in group.names)
        self.parameters: list[nn.Parameter] = [p for group in groups for p in group.parameters]
        if not self.parameters:
            raise UserError("the model has no trainable parameter; there is nothing to optimize.")
        self._device = self.parameters[0].device

        decoupled = decay_kind == "decoupled"
        built_in = decay_kind == "torch" or (decoupled and self.settings.decoupled)
        decayed = [g for g in groups if g.weight_decay > 0]
        self._shrunk = decayed if decoupled and not built_in else []
        self._penalised = decayed if decay_kind in _PENALTY_GRADIENT else []
        strengths = [group.weight_decay if built_in else 0.0 for group in groups]
        self._torch: torch.optim.Optimizer = self.settings.build(
            torch_groups(groups, strengths, each_alone=self.per_parameter_lr)
        )
        self.settings.begin(self._torch)
        self._strengths = [group["weight_decay"] for group in self._torch.param_groups]
        self._factor = 1.0
        self._lr: float | Tensor = self.settings.lr
        self.rule: Rule | None = None
        if callable(decay_kind) and decayed:
            chosen = [Group(g.names, list[Tensor](g.parameters), g.weight_decay) for g in decayed]
            rule = decay_kind(Decayed(chosen, self._torch, self.settings.lr, list[Tensor](self.parameters)))
            self.rule = rule
            self._torch.register_step_post_hook(lambda *_: rule.leave(self._rule_step()))
        # A step pre-hook runs only once torch knows whether a scaler skips the step.
        self._torch.register_step_pre_hook(lambda *_: self._enter())

        # On an accelerator the learning rate lives in device memory, so a captured graph can be replayed.
        self._lr_tensor: Tensor | None = None
        if self.per_parameter_lr or (self.fused and traits(self._device).learning_rate_on_device):
            self._use_lr_tensor(self.settings.lr)

    def set_lr(self, lr: float | Tensor) -> None:
        """Set η: a number, a 0-d device tensor, or, with per_parameter_lr, a 1-D tensor in `names` order."""
        self._lr = lr
        if isinstance(lr, Tensor):
            if not self.fused:
                raise ValueError("a tensor learning rate needs the fused optimizer")
            if self._lr_tensor is None:
                self._use_lr_tensor(0.0)
            assert self._lr_tensor is not None
            self._lr_tensor.copy_(lr)
        else:
            if self._lr_tensor is not None:
                self._lr_tensor.fill_(lr)
            for group in self._torch.param_groups:
                if not isinstance(group["lr"], Tensor):
                    group["lr"] = lr

    def set_decay_factor(self, factor: float) -> None:
        """Multiply every strength by this from now on: a window or a schedule of the decay."""
        self._factor = factor
        for group, strength in zip(self._torch.param_groups, self._strengths, strict=True):
            group["weight_decay"] = strength * factor

    @torch.no_grad()
    def step(self, scaler: torch.amp.GradScaler | None = None, return_norm: bool = False) -> Tensor | None:
        """Update the weights from the gradients that are there.

        scaler: for float16 autocast; the caller scales the loss, this unscales, steps or skips, and
        updates the scale.
        Returns the 2-norm of the whole gradient after unscaling and the ℓ2 term and before clipping, as a
        0-d float32 device tensor, if clip_norm is set or return_norm asks for it; otherwise None.
        """
        if scaler is not None:
            scaler.unscale_(self._torch)
        for group in self._penalised:
            held: list[Tensor] = [p for p in group.parameters if p.grad is not None]
            assert isinstance(self.decay_kind, str)
            alpha = _PENALTY_GRADIENT[self.decay_kind] * group.weight_decay * self._factor
            torch._foreach_add_([_gradient(p) for p in held], held, alpha=alpha)

        gradients = [_aligned_gradient(p) for p in self.parameters if p.grad is not None]
        norm = None
        if gradients and (self.clip_norm is not None or return_norm):
            norm = total_norm(gradients)
            if self.clip_norm is not None:
                # clamp instead of a test: a test would wait for the device.
                torch._foreach_mul_(gradients, (self.clip_norm / (norm + 1e-6)).clamp(max=1.0))

        if scaler is None:
            self._torch.step()
        else:
            scaler.step(self._torch)
            scaler.update()
        return norm

    def zero_grad(self) -> None:
        """Drop all gradients."""
        self._torch.zero_grad(set_to_none=True)

    @torch.no_grad()
    def parameter_norms(self) -> Tensor:
        """Return the 2-norm of every parameter, shape (len(names),), float32, on the device."""
        return torch.stack(norms(self.parameters)).float()

    def second_moments(self) -> list[Tensor]:
        """Return Adam's running mean of squared gradients (no bias correction), one tensor per parameter that has one.

        None has before the first step, and under SGD.
        """
        state = self._torch.state
        return [state[p]["exp_avg_sq"] for p in self.parameters if "exp_avg_sq" in state.get(p, {})]

    def decay_metrics(self) -> dict[str, Tensor | float]:
        """Return what the decay rule has to say: scalars on the device, by metric name."""
        return {} if self.rule is None else self.rule.metrics()

    def state_dict(self) -> dict[str, Any]:
        """Return {"kind", "state": {parameter name: {"exp_avg": tensor, ...}}}; tensors are not copied.

        A decay rule that keeps something adds "rule".
        """
        state = {
            name: {key: value for key, value in self._torch.state[p].items() if isinstance(value, Tensor)}
            for name, p in zip(self.names, self.parameters, strict=True)
            if p in self._torch.state
        }
        kept = {} if self.rule is None else self.rule.state_dict()
        return {"kind": self.kind, "state": state} | ({"rule": kept} if kept else {})

    @torch.no_grad()
    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore moments by parameter name, whatever the decay strengths or grouping they were saved under.

        Raises UserError if the state is of another kind of optimizer or of other parameters.
        """
        if saved["kind"] != self.kind:
            raise UserError(
                f"the optimizer state is of '{saved['kind']}' but this run uses '{self.kind}'; "
                "start from a checkpoint of the same optimizer."
            )
        by_name = dict(zip(self.names, self.parameters, strict=True))
        unknown = sorted(set(saved["state"]) - set(by_name))
        # Either every parameter has moments or, before the first step, none has.
        missing = sorted(set(by_name) - set(saved["state"])) if saved["state"] else []
        wrong = [
            name
            for name, entry in saved["state"].items()
            if name in by_name and any(v.dim() and v.shape != by_name[name].shape for v in entry.values())
        ]
        if unknown or missing or wrong:
            raise UserError(
                f"the optimizer state does not fit the model's parameter '{(unknown + missing + wrong)[0]}'; "
                "start from a checkpoint of the same model and optimizer."
            )
        self._torch.state.clear()
        for name, entry in saved["state"].items():
            parameter = by_name[name]
            self._torch.state[parameter] = {
                # The momentum has its parameter's memory layout, as in torch; counters stay where they live.
                key: torch.empty_like(parameter, dtype=value.dtype).copy_(value)
                if value.dim() or key != "step"
                else value.detach().clone().to(self._device if self.fused else "cpu")
                for key, value in entry.items()
            }
        if not saved["state"]:
            self.settings.begin(self._torch)
        # A branch without decay has no rule, and one that decays where its run did not starts the rule anew.
        if self.rule is not None and "rule" in saved:
            self.rule.load_state_dict(saved["rule"])

    def _rule_step(self) -> Step:
        assert not isinstance(self._lr, Tensor)
        return Step(self._lr, self._factor)

    def _enter(self) -> None:
        if self.rule is not None:
            self.rule.enter(self._rule_step())
            return
        found_inf = getattr(self._torch, "found_inf", None)
        applied: float | Tensor = 1.0 if found_inf is None else 1.0 - found_inf
        for group in self._shrunk:
            weights: list[Tensor] = list(group.parameters)
            strength = group.weight_decay * self._factor
            if self._lr_tensor is not None and self.per_parameter_lr:
                start = self.names.index(group.names[0])
                lrs = self._lr_tensor[start : start + len(weights)]
                torch._foreach_mul_(weights, (1.0 - lrs * strength * applied).unbind())
            else:
                lr = self._torch.param_groups[0]["lr"]
                torch._foreach_mul_(weights, 1.0 - lr * strength * applied)

    def _use_lr_tensor(self, lr: float) -> None:
        # Fused kernels read η from the device; what else an optimizer has, as Muon's part, multiplies on the host.
        groups = [group for group in self._torch.param_groups if group.get("fused")]
        shape = (len(groups),) if self.per_parameter_lr else ()
        self._lr_tensor = torch.full(shape, lr, dtype=torch.float32, device=self._device)
        views = self._lr_tensor.unbind() if self.per_parameter_lr else [self._lr_tensor] * len(groups)
        for group, view in zip(groups, views, strict=True):
            group["lr"] = view


def torch_groups(
    groups: Sequence[ParameterGroup], strengths: Sequence[float], each_alone: bool = False
) -> list[dict[str, Any]]:
    """The groups as torch takes them, each with its strength; `each_alone`, every parameter in one of its own."""
    made = []
    for group, strength in zip(groups, strengths, strict=True):
        pairs = list(zip(group.names, group.parameters, strict=True))
        for part in [[pair] for pair in pairs] if each_alone else [pairs]:
            names, parameters = zip(*part, strict=True) if part else ((), ())
            made.append({"params": list(parameters), "names": names, "weight_decay": strength})
    return made


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _aligned_gradient(parameter: nn.Parameter) -> Tensor:
    """Return the gradient in its parameter's memory layout.

    The fused CPU kernels walk raw memory and give silently wrong weights when the layouts differ.
    """
    gradient = _gradient(parameter)
    if gradient.stride() != parameter.stride():
        gradient = torch.empty_like(parameter, requires_grad=False).copy_(gradient)
        parameter.grad = gradient
    return gradient
