"""A regime ready to train: its task, its data on the device, its clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from weight_decay.config.measurements import ProbeKind
from weight_decay.config.span import Clock, Span
from weight_decay.errors import UserError
from weight_decay.tasks.protocol import Stream, Task


@dataclass(frozen=True)
class Probe:
    """A probe with its samples: its kind and settings, and what maps a model to its metrics."""

    kind: ProbeKind
    measure: Callable[[nn.Module], dict[str, Tensor]]


@dataclass(frozen=True)
class Regime:
    """A task with its data, ready on the device, and the run's probes."""

    task: Task
    stream: Stream
    clock: Clock
    data: dict[str, Any]
    probes: tuple[Probe, ...] = ()


def make_clock(duration: Span, batch_size: int, epoch_samples: int, tokens_per_sample: int) -> Clock:
    """The clock of a run whose training set has `epoch_samples`; UserError if the run is shorter than a step."""
    without_total = Clock(batch_size, epoch_samples, tokens_per_sample)
    steps = duration.steps(without_total)
    if steps < 1:
        raise UserError(f'duration: "{duration}" is less than one step of {batch_size} samples; make it longer.')
    return Clock(batch_size, epoch_samples, tokens_per_sample, steps)
