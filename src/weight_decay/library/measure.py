"""Measure weight decay at work in any training loop: `measure.step()` after every optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from weight_decay.device.memory import to_host
from weight_decay.device.traits import widest_float
from weight_decay.errors import UserError
from weight_decay.library.jacobian import jacobian_norm
from weight_decay.probes import weights

if TYPE_CHECKING:
    import pandas as pd

Log = Callable[[int, dict[str, float]], None]


class Measure:
    """Weight norms, effective learning rates, rotation, and on request the Jacobian norm, under this project's names.

    every: record after every so many steps.
    batch: inputs for the Jacobian norm (see `jacobian_norm`), measured with every `jacobian_every`-th record.
    log: called with step and metrics at each record, e.g. `lambda step, metrics: wandb.log(metrics, step=step)`;
      it makes the host wait for the device once per record. Without it, nothing waits until `records` is read.

    Metrics: `lr` (over several groups, the mean over weights), `weight_decay` (the largest of the groups), `batch/loss`
    (mean since the last record, if `step` is given losses), `weights/norm`, `weights/decayed_norm`, `weights/max`,
    `effective_lr/adamw` = η/‖w‖, `effective_lr/sgd` = η/‖w‖², `effective_lr/adam_coordinate` (if the optimizer keeps
    second moments), `effective_lr/rotation` in radians, `update/norm`, `grad/norm` (of the gradient that the optimizer
    is given, so after clipping), `stability/bf16_lost_updates`, `jacobian/mean_square`, `jacobian/mean_norm`,
    `jacobian/standard_error`, `jacobian/scale_free`.

    The weights are copied before each recorded step and the copy is dropped after it: between records a step costs
    nothing, and no memory is held. Raises UserError if the optimizer has none of the model's trainable parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        every: int = 50,
        batch: Tensor | Mapping[str, Any] | None = None,
        jacobian_every: int = 1,
        log: Log | None = None,
    ) -> None:
        if every < 1 or jacobian_every < 1:
            raise UserError("Measure: every and jacobian_every must be at least 1.")
        self.model, self.every, self.log = model, every, log
        self.steps = 0
        self._batch, self._jacobian_every = batch, jacobian_every
        self._optimizer = innermost(optimizer, "Measure")
        if not self._groups():
            raise UserError("Measure: the optimizer has none of the model's trainable parameters; give it both.")
        self._before: list[Tensor] | None = None
        self._at_step: list[dict[str, Any]] = []
        self._gradient: Tensor | None = None
        self._loss: Tensor | float | None = None
        self._losses = 0
        self._pending: list[dict[str, Any]] = []
        self._read: list[dict[str, float]] = []
        self._hook = self._optimizer.register_step_pre_hook(self._about_to_step)

    def step(self, loss: Tensor | float | None = None) -> None:
        """Count one optimizer step that has been made, and record if it is due; `loss`: that step's training loss."""
        self.steps += 1
        if loss is not None:
            # A sum of many losses in bfloat16 or float16 stands still, or is infinite.
            value = loss.detach().to(widest_float(loss.device)) if isinstance(loss, Tensor) else loss
            self._loss = value if self._loss is None else self._loss + value
            self._losses += 1
        if self.steps % self.every == 0:
            self._record()

    def see_gradient(self) -> None:
        """Take in the gradient now, where the optimizer's step makes it itself (a closure, as in Lightning)."""
        if self._due():
            self._gradient = _gradient_norm(_parameters(self._groups()), self._optimizer)

    @property
    def records(self) -> list[dict[str, float]]:
        """All records so far, oldest first: `step` and metrics as floats. Waits for the device."""
        self._read += [to_host(metrics) for metrics in self._pending]
        self._pending.clear()
        return self._read

    def frame(self) -> pd.DataFrame:
        """The records as a table, a row each; needs pandas."""
        try:
            import pandas as pd
        except ModuleNotFoundError:
            raise UserError("Measure.frame: pandas is missing; run: pip install 'weight-decay[report]'.") from None
        return pd.DataFrame(self.records)

    def plot(self, names: list[str], path: str | Path) -> None:
        """Draw the named metrics over steps, one panel each, logarithmic, to a PNG or PDF; needs matplotlib."""
        try:
            from matplotlib.figure import Figure
        except ModuleNotFoundError:
            raise UserError("Measure.plot: matplotlib is missing; run: pip install 'weight-decay[report]'.") from None
        figure = Figure(figsize=(4 * len(names), 3), layout="constrained")
        for name, axes in zip(names, figure.subplots(1, len(names), squeeze=False)[0], strict=True):
            rows = [(record["step"], record[name]) for record in self.records if name in record]
            if not rows:
                raise UserError(f"Measure.plot: nothing was recorded as {name}; see the keys of `records`.")
            axes.plot(*zip(*rows, strict=True), marker="." if len(rows) < 30 else None)
            axes.set(xlabel="step", title=name, yscale="log")
        figure.savefig(path)

    def close(self) -> None:
        """Take the hook off the optimizer; the records stay."""
        self._hook.remove()

    def _due(self) -> bool:
        return (self.steps + 1) % self.every == 0

    def _about_to_step(self, _: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if not self._due():
            return
        # Now and not later: the loop may move the schedule on before it calls `step`. And not earlier: it may have
        # added a group, or thawed a layer.
        self._at_step = self._groups()
        self._before = weights.snapshot(_parameters(self._at_step))
        if not any(callable(value) for value in (*arguments, *named.values())):
            self._gradient = _gradient_norm(_parameters(self._at_step), self._optimizer)

    def _record(self) -> None:
        groups = self._at_step if self._before is not None else self._groups()
        parameters: list[Tensor] = [p.detach() for p in _parameters(groups)]
        lr = _mean_lr(groups)
        strengths = [float(group.get("weight_decay", 0.0)) for group in groups]
        metrics: dict[str, Any] = {
            "lr": lr,
            "weight_decay": max(strengths),
            **weights.sizes(lr, weights.global_norm(parameters), parameters),
        }
        if self._losses:
            assert self._loss is not None
            metrics["batch/loss"] = self._loss / self._losses
        if decayed := [p.detach() for group in groups if group.get("weight_decay") for p in group["params"]]:
            metrics["weights/decayed_norm"] = weights.global_norm(decayed)
        metrics |= self._adam(groups)
        if self._before is not None:
            metrics["effective_lr/rotation"] = weights.rotation(self._before, parameters)
            metrics["update/norm"] = weights.update_norm(self._before, parameters)
            metrics["stability/bf16_lost_updates"] = weights.bf16_lost_updates(self._before, parameters)
        if self._gradient is not None:
            metrics["grad/norm"] = self._gradient
        if self._batch is not None and (self.steps // self.every - 1) % self._jacobian_every == 0:
            metrics |= self._jacobian(self._batch, weights.global_norm(weights.trainable_parameters(self.model)))
        self._before = self._gradient = self._loss = None
        self._losses = 0
        self._pending.append({"step": self.steps, **metrics})
        if self.log is not None:
            record = dict(self.records[-1])
            self.log(int(record.pop("step")), record)

    def _jacobian(self, batch: Tensor | Mapping[str, Any], norm: Tensor) -> dict[str, Tensor]:
        found = jacobian_norm(self.model, batch)
        metrics = {
            "jacobian/mean_square": found.mean_square,
            "jacobian/scale_free": norm * found.mean_square.sqrt(),
        }
        if found.mean_norm is not None:
            metrics["jacobian/mean_norm"] = found.mean_norm
        if found.standard_error is not None:
            metrics["jacobian/standard_error"] = found.standard_error
        return metrics

    def _adam(self, groups: list[dict[str, Any]]) -> dict[str, Tensor]:
        moments, rates, epsilons = [], [], []
        for group in groups:
            for parameter in group["params"]:
                moment = self._optimizer.state.get(parameter, {}).get("exp_avg_sq")
                if moment is not None and "eps" in group:
                    moments.append(moment)
                    rates.append(group["lr"])
                    epsilons.append(group["eps"])
        if not moments:
            return {}
        return {"effective_lr/adam_coordinate": weights.effective_lr_adam_coordinate(rates, moments, epsilons)}

    def _groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups as they are now, without what is frozen or not the model's; the rates are copies."""
        ours = {id(p) for p in self.model.parameters() if p.requires_grad}
        groups = []
        for group in self._optimizer.param_groups:
            lr = group["lr"]
            held = [p for p in group["params"] if id(p) in ours]
            groups.append({**group, "lr": lr.clone() if isinstance(lr, Tensor) else float(lr), "params": held})
        return [group for group in groups if group["params"]]


def _parameters(groups: list[dict[str, Any]]) -> list[nn.Parameter]:
    return [p for group in groups for p in group["params"]]


def _mean_lr(groups: list[dict[str, Any]]) -> Tensor | float:
    first = groups[0]["lr"]
    if len(groups) == 1 or all(not isinstance(g["lr"], Tensor) and g["lr"] == first for g in groups):
        return first
    counts = [sum(p.numel() for p in group["params"]) for group in groups]
    return sum(group["lr"] * count for group, count in zip(groups, counts, strict=True)) / sum(counts)


def innermost(optimizer: Any, who: str) -> torch.optim.Optimizer:
    """The torch optimizer inside the wrappers of accelerate, Lightning and the like; UserError, from `who`, if none."""
    while not hasattr(optimizer, "_optimizer_step_pre_hooks") or hasattr(optimizer, "optimizer"):
        if not hasattr(optimizer, "optimizer"):
            raise UserError(f"{who}: {type(optimizer).__name__} is not a torch optimizer, nor around one.")
        optimizer = optimizer.optimizer
    return optimizer


def _gradient_norm(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> Tensor | None:
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return None
    # A scaler hands its factor to a fused optimizer instead of dividing itself.
    scale = getattr(optimizer, "grad_scale", None)
    norm = weights.global_norm(gradients)
    return norm if scale is None else norm / scale
