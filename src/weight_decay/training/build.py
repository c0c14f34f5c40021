"""From a config to its parts: model, which of its parameters decay, optimizer; and what is refused before any work."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from weight_decay.config.groups import ImageData, ModelConfig
from weight_decay.config.run import RunConfig
from weight_decay.config.schedules import MatchedSchedule
from weight_decay.config.span import Clock
from weight_decay.config.text import TokenData
from weight_decay.device.choose import choose_device
from weight_decay.device.traits import widest_float
from weight_decay.errors import UserError
from weight_decay.optim.decay import DecayRule, ParameterGroup, decay_groups, holders
from weight_decay.optim.low_precision import Optimizer, RoundedOptimizer
from weight_decay.optim.optimizers import DecayedOptimizer, Method
from weight_decay.seeds import generator, stream_seed


def build_model(config: RunConfig) -> nn.Module:
    """The model with its parameters drawn from the run's initialisation stream."""
    built: nn.Module = config.model.build(config.data)
    built.initialise(generator(config.seed, "initialisation"))  # type: ignore[operator]
    return built


class _NothingDrawn(TorchFunctionMode):
    """Leaves out what layers draw when they are made: on the meta device it would import torch's compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def shapes_of(config: RunConfig) -> nn.Module:
    """The model on the meta device: names, classes and shapes alone. UserError if no such network can exist."""
    return _shapes(config.model, dataclasses.replace(config.data, seed=0))


@functools.cache
def _shapes(model: ModelConfig, data: ImageData | TokenData) -> nn.Module:
    try:
        with torch.device("meta"), _NothingDrawn():
            built: nn.Module = model.build(data)
    except RuntimeError as error:
        raise UserError(f"model: no such network can exist ({str(error).splitlines()[0]}); make it smaller.") from None
    return built


def parameter_groups(config: RunConfig, model: nn.Module, strength: float) -> list[ParameterGroup]:
    """Which parameters decay, and how much."""
    return decay_groups(model.named_parameters(), decay_rules(config), strength, holders(model))


@functools.cache  # of thousands of cells few differ in this
def _check_groups(shapes: nn.Module, rules: tuple[DecayRule, ...], strength: float) -> None:
    decay_groups(shapes.named_parameters(), rules, strength, holders(shapes))


def decayed_parameters(config: RunConfig, model: nn.Module) -> list[nn.Parameter]:
    """The parameters that the rules let decay, whatever the strength, so that λ = 0 has a comparable norm."""
    return [p for group in parameter_groups(config, model, 1.0) if group.weight_decay > 0 for p in group.parameters]


def decay_rules(config: RunConfig) -> list[DecayRule]:
    """The ordered rules of which parameter decays how much."""
    return [DecayRule(rule.match, rule.scale, rule.module) for rule in config.decay.rules]


def penalty_of(config: RunConfig, model: nn.Module) -> Callable[[nn.Module], torch.Tensor]:
    """What the decay adds to the loss for λ = 1: of `model` or a copy of it, c · Σ scale · ‖w‖², 0-d, on its device.

    c is ½, or 1 for the penalty λ‖w‖². With momentum or an adaptive optimizer the decay minimises no such sum; then it
    is what the released code logs all the same.
    """
    scales = {name: group.weight_decay for group in parameter_groups(config, model, 1.0) for name in group.names}

    @torch.no_grad()
    def penalty(model: nn.Module) -> torch.Tensor:
        squares = [
            scales[name] * parameter.to(widest_float(parameter.device)).square().sum()
            for name, parameter in model.named_parameters()
            if scales.get(name, 0.0) > 0
        ]
        assert config.decay.penalty is not None  # else the config is refused
        return float(config.decay.penalty) * torch.stack(squares).sum()

    return penalty


def check(config: RunConfig) -> None:
    """What can be refused before any work.

    A decay rule that misses a parameter or decays none, an impossible size, a device that is not there or cannot do
    what is asked of it, an attention kernel that cannot exist on it.
    """
    _check_groups(shapes_of(config), tuple(decay_rules(config)), config.decay.strength)
    device = choose_device(config.execution, config.precision)
    if problem := config.model.impossible_on(device.type, config.precision):
        raise UserError(f"model: {problem}.")


def build_optimizer(config: RunConfig, model: nn.Module, strength: float, clock: Clock) -> Optimizer:
    """The optimizer with decay of the given strength."""
    groups, rounding = parameter_groups(config, model, strength), config.precision.rounding
    per_parameter = isinstance(config.schedule, MatchedSchedule) and config.schedule.norm == "per_matrix"
    method = Method(config.optimizer, config.decay.rule(clock), per_parameter)
    if rounding == "kernel":
        return DecayedOptimizer(groups, method)
    return RoundedOptimizer(groups, rounding, stream_seed(config.seed, "rounding"), method)
