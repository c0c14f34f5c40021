"""From built parts to what can be trained: a run's `Training` and `Segment`, or those of a branch of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from weight_decay.config.groups import BranchConfig, Factor, Window
from weight_decay.config.run import RunConfig
from weight_decay.config.span import Clock, Span
from weight_decay.device.choose import autocast, weight_dtype
from weight_decay.device.compiling import compiled
from weight_decay.device.distributed import current
from weight_decay.device.memory import try_large_pieces_again
from weight_decay.errors import UserError
from weight_decay.models.layout import channels_last
from weight_decay.optim.averaging import Averages, EpochAverage, TailAverage
from weight_decay.optim.norm import project_
from weight_decay.optim.schedules import constant
from weight_decay.probes.divergence import DivergenceMonitor
from weight_decay.tasks.regime import Regime
from weight_decay.training.build import build_model, build_optimizer, decayed_parameters, penalty_of
from weight_decay.training.course import Cadence, Course, Every
from weight_decay.training.loop import Training
from weight_decay.training.record import Telling
from weight_decay.training.schedule import build_schedule
from weight_decay.training.stretch import Segment


def build_training(
    config: RunConfig,
    regime: Regime,
    device: torch.device,
    scale: str = "micro",
    say: Callable[[str], None] = print,
    branching: tuple[Training, BranchConfig] | None = None,
) -> Training:
    """A run at its step 0, on the device and in the precision that the config asks for; `say` what it cannot do.

    branching: a trunk and a branch of it, which is a copy of the trunk at its present step, with another learning rate
    and decay, and no averages.
    """
    clock, (trunk, branch) = regime.clock, branching or (None, None)
    if trunk is None:
        try_large_pieces_again()
    strength = config.decay.strength if branch is None else branch.strength
    model = build_model(config).to(device, weight_dtype(config.precision))
    if config.data.regime == "over_training":
        channels_last(model)
    if trunk is not None:
        # Before the optimizer, whose decay may remember where the weights began.
        model.load_state_dict(trunk.model.state_dict())
    optimizer = build_optimizer(config, model, strength, clock)
    if trunk is None and config.sphere_radius is not None:
        project_(optimizer.parameters, config.sphere_radius)
    if trunk is not None and branch is not None and branch.keep_optimizer_state:
        optimizer.load_state_dict(trunk.optimizer.state_dict())  # which copies: the trunk's moments stay its own
    forward, accumulate = _forward(config, model, regime, device, scale, say)
    tail = config.averaging.tail_start if branch is None else None
    window = config.decay.window if branch is None else None
    decay_window = None if window is None else _window(window, clock)
    within_epoch = config.averaging.within_epoch and branch is None
    return Training(
        model=model,
        forward=forward,
        accumulate=accumulate,
        task=regime.task,
        stream=regime.stream,
        optimizer=optimizer,
        schedule=build_schedule(config, clock, optimizer) if branch is None else constant(branch.lr),
        averages=Averages(model, config.averaging.ema if branch is None else ()),
        tail=None if tail is None else TailAverage(model, tail.steps(clock)),
        autocast=autocast(config.precision, device),
        scaler=torch.amp.GradScaler(device.type) if config.precision.kind == "float16_autocast" else None,
        micro_batches=micro_batches(config.batch_size // current().count, config.micro_batch_size),
        weight_decay=strength,
        decay_window=decay_window,
        # Of the first step until it is made: what is evaluated before it has the penalty of that step.
        decay_factor=1.0 if decay_window is None else decay_window(0),
        decayed=list(decayed_parameters(config, model)),
        eps=getattr(config.optimizer, "eps", 0.0),  # asked for where an optimizer has Adam's moments
        sphere_radius=config.sphere_radius,
        history=torch.zeros(_log_every(config, clock), 2, device=device),
        epoch_average=EpochAverage(model, regime.stream.epoch) if within_epoch else None,
        layer_gradients=config.probes.layer_gradients,
        step=0 if trunk is None else trunk.step,
    )


def _forward(
    config: RunConfig,
    model: torch.nn.Module,
    regime: Regime,
    device: torch.device,
    scale: str,
    say: Callable[[str], None],
) -> tuple[Callable[..., Any], Callable[[], AbstractContextManager[Any]]]:
    """What computes the loss, and the context of a backward pass whose gradients other processes need not see yet."""
    forward = regime.task.forward(model)
    accumulate: Callable[[], AbstractContextManager[Any]] = nullcontext
    if current().count > 1:
        # DistributedDataParallel averages gradients only of what goes through a module's own forward.
        shared = DistributedDataParallel(_Calling(model, forward), gradient_as_bucket_view=True)
        forward, accumulate = shared, shared.no_sync
    return compiled(forward, config.execution.compile, scale, device, say, config.waits_for_host), accumulate


class _Calling(torch.nn.Module):
    """A module whose forward is the given method of `model`."""

    def __init__(self, model: torch.nn.Module, method: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model
        self.forward = method


def micro_batches(samples: int, largest: int | None) -> int:
    """In how many equal parts a process takes its samples of a step, so that none is above `largest`."""
    fewest = 1 if largest is None else -(-samples // largest)
    return next(parts for parts in range(fewest, samples + 1) if samples % parts == 0)


def _window(window: Window, clock: Clock) -> Factor:
    try:
        return window.factor(clock)
    except ValueError as error:
        raise UserError(f"decay.window.{error}.") from None


def build_segment(config: RunConfig, regime: Regime, training: Training, course: Course, telling: Telling) -> Segment:
    """The stretch of training along a course, of a run or of one of its branches."""
    monitor = divergence_monitor(config, regime.clock, course.first, course.last)
    penalty = penalty_of(config, training.model) if config.probes.regularised_loss else None
    return Segment(config, training, course, cadence(config, regime, course), monitor, telling, penalty)


def divergence_monitor(config: RunConfig, clock: Clock, first: int, last: int) -> DivergenceMonitor:
    """The monitor of the stretch from step `first` to `last`."""
    divergence = config.divergence
    # Shares of a branch are its own: it may be shorter than such a share of its run.
    lasting = divergence.lasting.steps(dataclasses.replace(clock, total_steps=last - first))
    rises = config.data.regime == "under_training" and divergence.text_rise > 0
    return DivergenceMonitor(
        divergence.threshold,
        max(divergence.patience.every(clock), lasting),
        first + divergence.grace.steps(clock),
        divergence.text_rise if rises else None,
        lasting,
    )


def _log_every(config: RunConfig, clock: Clock) -> int:
    # The losses since the last log are kept on the device, one row a step.
    return min(config.probes.log_every.every(clock), max(clock.total_steps, 1))


def cadence(config: RunConfig, regime: Regime, course: Course) -> Cadence:
    """When to measure what along a course."""
    probes, ensemble, clock = config.probes, config.averaging.ensemble, regime.clock

    def every(span: Span, from_start: bool) -> Every:
        if course.branched and not probes.within_branches:
            return Every(course.last, 1)
        return Every(course.first if from_start else course.first + span.every(clock), span.every(clock))

    return Cadence(
        log=_log_every(config, clock),
        evaluate=every(probes.evaluate_every, True),
        probes=tuple((probe, every(probe.kind.every, probe.kind.at_start)) for probe in regime.probes),
        ensemble=None
        if ensemble is None or course.branched
        else Every(
            ensemble.start.steps(clock), ensemble.every.every(clock), ensemble.stop.steps(clock), also_last=False
        ),
    )
