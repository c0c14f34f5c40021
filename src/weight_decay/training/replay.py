"""What bfloat16 weights make of weight decay: one sequence of real gradients, in every rounding and kernel.

Runs that differ in rounding drift apart, and what decay did to one of them cannot be told from that. Here a float32
run is made once more, and at each of its steps the same gradient drives copies of the weights with and without λ in
each arithmetic. Between the two copies of a pair nothing differs but the decay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from weight_decay.config.groups import PrecisionConfig
from weight_decay.config.run import RunConfig
from weight_decay.optim.low_precision import Optimizer
from weight_decay.tasks.regime import Regime
from weight_decay.training.build import build_model, build_optimizer, decayed_parameters
from weight_decay.training.loop import Event
from weight_decay.training.schedule import build_schedule
from weight_decay.training.stretch import BranchInterruptedError, Segment

ARITHMETICS = {
    "fused": ("kernel", "fused"),
    "foreach": ("kernel", "foreach"),
    "nearest": ("nearest", "fused"),
    "stochastic": ("stochastic", "fused"),
    "kahan": ("kahan", "fused"),
}
"""Rounding and kernel of bfloat16 weights, by the name they have in the metrics."""


@dataclass
class _Copy:
    """Weights that are driven by another run's gradients; `decayed` are those that decay, in the model's order."""

    model: nn.Module
    optimizer: Optimizer
    parameters: list[nn.Parameter]
    decayed: Sequence[Tensor]

    def step(self, lr: float | Tensor, gradients: list[Tensor]) -> None:
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient.to(parameter.dtype, copy=True)
        self.optimizer.set_lr(lr)
        self.optimizer.step()
        self.optimizer.zero_grad()


def replay_event(
    config: RunConfig, regime: Regime, device: torch.device, segment: Segment, stop: Callable[[], bool]
) -> Event:
    """The event that records `replayed` after the last step.

    It takes as long as the run, so it is entered like a branch: with everything saved, and again on resume.
    """

    def replay() -> None:
        segment.save()
        metrics = replayed(config, regime, device, stop)
        if metrics is None:
            raise BranchInterruptedError
        segment.write(metrics)

    return Event(segment.timed(replay), start=segment.course.last)


def replayed(
    config: RunConfig, regime: Regime, device: torch.device, stop: Callable[[], bool]
) -> dict[str, float] | None:
    """`replay/NAME/kept_λ`: the share of what λ does to float32 weights in this run that it does in each arithmetic.

    The share is the length of (weights with λ - weights without) along the same difference in float32, over the length
    of the latter: 1 where decay is kept, 0 where it is lost. Its denominator is η·λ summed over the run, never near 0.
    Needs the run's own time once more, and as much again for the copies; a pure function of the config. None when
    `stop` says to.
    """
    leader = _copy(config, regime, device, 0.0)
    strengths = (0.0, *config.probes.replay)
    copies: dict[str, list[_Copy]] = {"float32": [_copy(config, regime, device, strength) for strength in strengths]}
    for name, (rounding, kernel) in ARITHMETICS.items():
        other = replace(
            config,
            precision=PrecisionConfig("bfloat16", rounding),  # type: ignore[arg-type]
            optimizer=replace(config.optimizer, kernel=kernel),  # type: ignore[arg-type]
            probes=replace(config.probes, replay=()),
        )
        copies[name] = [_copy(other, regime, device, strength) for strength in strengths]
    _drive(config, regime, leader, [copy for group in copies.values() for copy in group], stop)
    if stop():
        return None
    metrics: dict[str, float] = {}
    for index, strength in enumerate(config.probes.replay, start=1):
        exact = _change(copies["float32"], index)
        for name in ARITHMETICS:
            kept = torch.dot(_change(copies[name], index), exact) / torch.dot(exact, exact)
            metrics[f"replay/{name}/kept_{strength:g}"] = float(kept)
    return metrics


def _copy(config: RunConfig, regime: Regime, device: torch.device, strength: float) -> _Copy:
    dtype = torch.bfloat16 if config.precision.kind == "bfloat16" else torch.float32
    model = build_model(config).to(device, dtype)
    optimizer = build_optimizer(config, model, strength, regime.clock)
    return _Copy(model, optimizer, list(model.parameters()), decayed_parameters(config, model))


def _drive(config: RunConfig, regime: Regime, leader: _Copy, copies: list[_Copy], stop: Callable[[], bool]) -> None:
    schedule, forward = build_schedule(config, regime.clock, leader.optimizer), regime.task.forward(leader.model)
    for step in range(regime.clock.total_steps):
        if stop():
            return
        regime.task.loss(forward, regime.stream.batch(step)).backward()
        gradients = [p.grad for p in leader.parameters if p.grad is not None]
        lr = schedule(step)
        for copy in (*copies, leader):
            copy.step(lr, gradients)


def _change(copies: list[_Copy], index: int) -> Tensor:
    """What decay did: the weights with it minus those without, float64, one vector."""
    with torch.no_grad():
        pairs = zip(copies[index].decayed, copies[0].decayed, strict=True)
        return torch.cat([(one.double() - other.double()).flatten().cpu() for one, other in pairs])
