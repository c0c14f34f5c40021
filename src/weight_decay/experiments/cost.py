"""What a run would cost, estimated from its config alone: floating-point operations over an assumed throughput."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from weight_decay.config.groups import ImageData
from weight_decay.config.run import RunConfig
from weight_decay.config.span import Clock, Span
from weight_decay.config.text import TokenData
from weight_decay.data.images.stream import epoch_samples
from weight_decay.experiments.throughput import Throughput
from weight_decay.training.build import shapes_of


@dataclass(frozen=True)
class Cost:
    """Floating-point operations of a run by what they are spent on, and its steps; branches count as training."""

    steps: int
    training: float
    evaluation: float
    probes: float

    def seconds(self, throughput: Throughput) -> tuple[float, float, float]:
        """Seconds of training, evaluation and probes at the assumed throughput."""
        training = max(self.training / throughput.operations, self.steps * throughput.step)
        return training, self.evaluation / throughput.operations, self.probes / throughput.operations

    def hours(self, throughput: Throughput) -> float:
        """Hours of all of it at the assumed throughput."""
        return sum(self.seconds(throughput)) / 3600


def forward_operations(config: RunConfig) -> float:
    """Operations of one forward pass of one sample (a multiply-add is two): as the model knows them, or counted."""
    if (known := config.model.forward_operations(config.data)) is not None:
        return float(known)
    data = config.data
    key = (config.model, data.image_size, data.classes) if isinstance(data, ImageData) else (config.model, data.context)
    if key not in _COUNTED:
        _COUNTED[key] = _counted(shapes_of(config), data)
    return _COUNTED[key]


_COUNTED: dict[Any, float] = {}


def _counted(shapes: Any, data: ImageData | TokenData) -> float:
    """Those of a pass on shapes alone; it imports torch's compiler, which takes longer than all else of a dry run."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        if isinstance(data, ImageData):
            shapes.eval()(torch.zeros(1, 3, data.image_size, data.image_size))
        else:
            tokens = torch.zeros(1, data.context, dtype=torch.int64)
            shapes.eval().loss(tokens, tokens)
    return float(counter.get_total_flops())


def estimate(config: RunConfig) -> Cost | None:
    """The cost of a run with its branches; None if it depends on the size of data whose size is not known here."""
    clock = clock_of(config)
    if clock is None:
        return None
    images = config.data if isinstance(config.data, ImageData) else None
    forward = forward_operations(config)
    total = clock.total_steps
    branches = [
        (how_often(branch.every, branch.start.steps(clock), total, clock), branch.duration.steps(clock))
        for branch in config.branches
    ]
    steps = total + sum(count * length for count, length in branches)
    ends = sum(count for count, _ in branches)
    averages = len(config.averaging.ema) + (config.averaging.tail_start is not None)
    averages += config.averaging.within_epoch

    def moments(every: Span | None) -> tuple[int, int]:
        """How often something is measured: at iterates (of the run and of its branches), and at averages."""
        if every is None:
            return 0, 0
        along = how_often(every, 0, total, clock)
        inside = sum(count * how_often(every, 0, length, clock) for count, length in branches)
        return along + (inside if config.probes.within_branches else ends), (along - 1) * averages

    shown, reestimated = _evaluated(config)
    iterates, averaged = moments(config.probes.evaluate_every)
    evaluation = ((iterates + averaged) * shown + averaged * reestimated) * forward
    if config.probes.reestimated:
        evaluation += iterates * (shown + reestimated) * forward
    jacobian = 0.0
    curvature = 0.0
    if images:
        shown = config.probes.jacobian_per_class * images.classes
        backwards = images.classes if config.probes.jacobian_draws is None else config.probes.jacobian_draws
        jacobian = sum(moments(config.probes.jacobian_every)) * shown * (1 + 2 * backwards) * forward
        if (wanted := config.probes.curvature) is not None:
            products = wanted.trace_draws + wanted.top_steps + 6 * wanted.similarity_draws
            products += 2 * wanted.spectrum_steps * wanted.spectrum_draws
            # Never at the first step, where the others measure the iterate alone.
            iterates, averaged = moments(wanted.every)
            times = iterates - 1 + averaged * wanted.averages
            curvature = times * products * wanted.per_class * images.classes * 6 * forward
    # A backward pass costs two forward ones.
    return Cost(steps, 3 * forward * steps * config.batch_size, evaluation, jacobian + curvature)


def clock_of(config: RunConfig) -> Clock | None:
    """What turns the lengths of a run into steps; None if that depends on data whose size is not known here."""
    data = config.data
    if isinstance(data, ImageData):
        sizes = _sizes(data)
        if sizes is None:
            return None
        clock = Clock(config.batch_size, epoch_samples(sizes[0], config.batch_size, data.drop_last), 1)
    else:
        windows = int((data.train_tokens or data.tokens) / data.context)
        if windows == 0 and config.duration.unit == "epochs":
            return None
        clock = Clock(config.batch_size, windows, data.context)
    return Clock(clock.batch_size, clock.epoch_samples, clock.tokens_per_sample, config.duration.steps(clock))


def _sizes(data: ImageData) -> tuple[int, int] | None:
    """Training and test images; None if nobody says how many there are."""
    train, test = data.sizes or (0, 0)
    sizes = data.train_size or train, data.test_size or test
    return sizes if all(sizes) else None


def how_often(every: Span | None, start: int, stop: int, clock: Clock) -> int:
    """How many of the steps start, start + every, ... lie in [start, stop]."""
    if start > stop:
        return 0
    return 1 if every is None else 1 + (stop - start) // every.every(clock)


def _evaluated(config: RunConfig) -> tuple[float, float]:
    """Samples of one evaluation, and of the pass that re-estimates batch norm before an average is evaluated."""
    data, probes = config.data, config.probes
    if not isinstance(data, ImageData):
        sets = 2 if data.held_out > 0 else 1  # seen and unseen windows, or training windows
        return data.evaluation_windows + sets * (probes.evaluation_train_samples or data.evaluation_windows), 0.0
    train, test = _sizes(data) or (0, 0)
    seen = min(probes.evaluation_train_samples or train, train)
    return test + seen, min(config.averaging.reestimate_samples or train, train)
