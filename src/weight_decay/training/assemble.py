"""From built parts to what can be trained: a run's `Training` and `Segment`, and those of its branches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from weight_decay.config.groups import BranchConfig
from weight_decay.config.run import RunConfig
from weight_decay.config.span import Clock, Span
from weight_decay.config.window import Factor, Window
from weight_decay.device.choose import autocast, weight_dtype
from weight_decay.device.compiling import compiled
from weight_decay.device.distributed import current
from weight_decay.device.memory import try_large_pieces_again
from weight_decay.errors import UserError
from weight_decay.optim import sphere
from weight_decay.optim.averaging import Averages, EpochAverage, TailAverage
from weight_decay.optim.schedules import Constant
from weight_decay.probes.divergence import DivergenceMonitor
from weight_decay.runs.progress import Progress
from weight_decay.tasks.regime import Regime
from weight_decay.training.build import build_model, build_optimizer, build_schedule, parameter_groups, penalty_of
from weight_decay.training.cadence import Cadence, Every
from weight_decay.training.loop import Training
from weight_decay.training.measure import Measurements
from weight_decay.training.provenance import Origin
from weight_decay.training.record import Mirror, NoRecord, Recorder
from weight_decay.training.stretch import Segment


def build_training(
    config: RunConfig,
    regime: Regime,
    device: torch.device,
    scale: str = "micro",
    say: Callable[[str], None] = print,
) -> Training:
    """A run at its step 0, on the device and in the precision that the config asks for; `say` what it cannot do."""
    try_large_pieces_again()
    model = build_model(config).to(device, weight_dtype(config.precision))
    if config.data.regime == "over_training":
        model = model.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(config, model, config.decay.strength, regime.clock)
    if config.sphere_radius is not None:
        sphere.project_(optimizer.parameters, config.sphere_radius)
    forward, accumulate = _forward(config, model, regime, device, scale, say)
    tail = config.averaging.tail_start
    return Training(
        model=model,
        forward=forward,
        accumulate=accumulate,
        task=regime.task,
        stream=regime.stream,
        optimizer=optimizer,
        schedule=build_schedule(config, regime.clock, optimizer),
        averages=Averages(model, config.averaging.ema),
        tail=None if tail is None else TailAverage(model, tail.steps(regime.clock)),
        autocast=autocast(config.precision, device),
        scaler=torch.amp.GradScaler(device.type) if config.precision.kind == "float16_autocast" else None,
        micro_batches=micro_batches(config.batch_size // current().count, config.micro_batch_size),
        weight_decay=config.decay.strength,
        decay_window=None if config.decay.window is None else _window(config.decay.window, regime.clock),
        decayed=_decayed(config, model),
        eps=config.optimizer.eps,
        sphere_radius=config.sphere_radius,
        history=torch.zeros(_log_every(config, regime.clock), 2, device=device),
        epoch_average=EpochAverage(model, regime.stream.epoch) if config.averaging.within_epoch else None,
        layer_gradients=config.probes.layer_gradients,
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
    return compiled(forward, config.execution.compile, scale, device, say), accumulate


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


def _decayed(config: RunConfig, model: torch.nn.Module) -> list[torch.Tensor]:
    """The parameters that the rules let decay, whatever the strength, so that λ = 0 has a comparable norm."""
    return [p for group in parameter_groups(config, model, 1.0) if group.weight_decay > 0 for p in group.parameters]


def build_segment(
    config: RunConfig,
    training: Training,
    folder: Path,
    first: int,
    last: int,
    clock: Clock,
    branched: bool,
    mirror: Mirror | None,
    progress: Progress,
    say: Callable[[str], None],
    origin: Origin,
) -> Segment:
    """The stretch of training from step `first` to `last`, of a run or of one of its branches, kept in `folder`."""
    probes = config.probes
    return Segment(
        training,
        folder,
        first,
        last,
        cadence(config, clock, first, last, branched),
        Measurements(
            training,
            probes.reestimated,
            probes.curvature is not None and probes.curvature.averages,
            penalty_of(config, training.model) if probes.regularised_loss else None,
        ),
        divergence_monitor(config, clock, first, last),
        config.checkpoint,
        Recorder(folder, mirror) if current().writes else NoRecord(folder, None),
        progress,
        config.batch_size,
        say,
        origin,
    )


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


def cadence(config: RunConfig, clock: Clock, first: int, last: int, branched: bool) -> Cadence:
    """When to measure what between steps `first` and `last`."""
    probes, ensemble = config.probes, config.averaging.ensemble

    def every(span: Span | None, from_start: bool) -> Every | None:
        if span is None:
            return None
        if branched and not probes.within_branches:
            return Every(last, 1)
        return Every(first if from_start else first + span.every(clock), span.every(clock))

    evaluate = every(probes.evaluate_every, True)
    assert evaluate is not None
    return Cadence(
        log=_log_every(config, clock),
        evaluate=evaluate,
        probe=every(probes.jacobian_every or probes.stability_every, True),
        # An untrained net's batch-norm statistics are placeholders, and its curvature is not worth its cost.
        curvature=every(None if probes.curvature is None else probes.curvature.every, False),
        ensemble=None
        if ensemble is None or branched
        else Every(
            ensemble.start.steps(clock), ensemble.every.every(clock), ensemble.stop.steps(clock), also_last=False
        ),
        parameter_norms=probes.parameter_norms,
    )


def branched_training(
    config: RunConfig,
    branch: BranchConfig,
    parent: Training,
    regime: Regime,
    scale: str,
    say: Callable[[str], None],
) -> Training:
    """A copy of the trunk at its present step, with the branch's learning rate and decay, and no averages."""
    device = parent.history.device
    model = build_model(config).to(device, weight_dtype(config.precision))
    if config.data.regime == "over_training":
        model = model.to(memory_format=torch.channels_last)
    model.load_state_dict(parent.model.state_dict())
    optimizer = build_optimizer(config, model, branch.strength, regime.clock)
    if branch.keep_optimizer_state:
        # Through a copy: the branch must not write into the trunk's moments.
        optimizer.load_state_dict(_cloned(parent.optimizer.state_dict()))
    forward, accumulate = _forward(config, model, regime, device, scale, say)
    return Training(
        model=model,
        forward=forward,
        accumulate=accumulate,
        task=regime.task,
        stream=regime.stream,
        optimizer=optimizer,
        schedule=Constant(branch.lr),
        averages=Averages(model, ()),
        tail=None,
        autocast=parent.autocast,
        scaler=torch.amp.GradScaler(device.type) if parent.scaler is not None else None,
        micro_batches=parent.micro_batches,
        weight_decay=branch.strength,
        decayed=_decayed(config, model),
        eps=config.optimizer.eps,
        sphere_radius=parent.sphere_radius,
        history=torch.zeros_like(parent.history),
        step=parent.step,
        layer_gradients=parent.layer_gradients,
    )


def _cloned(state: Any) -> Any:
    if isinstance(state, torch.Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {key: _cloned(value) for key, value in state.items()}
    return [_cloned(value) for value in state] if isinstance(state, list) else state
