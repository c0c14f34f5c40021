"""A regime ready to train: its task, its data on the device, its clock.

`Stream` and `Task` are what the loop asks of them; both regimes implement exactly this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from weight_decay.config.measurements import ProbeKind
from weight_decay.config.span import Clock, Span
from weight_decay.errors import UserError

Batch = tuple[Tensor, Tensor]
"""Inputs and targets on the device: uint8 images (B, 3, H, W) with labels (B,), or tokens (B, T) with the next ones."""


class Stream(Protocol):
    """Training data as a pure function of (seed, step)."""

    def batch(self, step: int) -> Batch:
        """The global batch of optimizer step `step`."""

    def epoch(self, step: int) -> float:
        """Passes over the training set after `step` steps."""


class Task(Protocol):
    """A training objective with its evaluation; its batches are on `device`."""

    device: torch.device

    def forward(self, model: nn.Module) -> Callable[..., Any]:
        """What `loss` calls: the model, or the method of it that computes the loss; this is what gets compiled."""

    def loss(self, forward: Callable[..., Any], batch: Batch) -> Tensor:
        """Mean training loss of the batch in nats, a scalar on the device."""

    def evaluate(self, model: nn.Module) -> dict[str, Tensor]:
        """Metrics on fixed batches ("test/error", "val/loss", ...) of `model` in eval mode, scalars on the device."""

    def reestimate(self, model: nn.Module) -> None:
        """Recompute batch-norm statistics of an averaged model from training data; nothing to do without batch norm."""

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of training, for whoever calls a model."""

    def samples(self, number: int, at_a_time: int) -> Iterable[Batch]:
        """For probes: the same batches at every iteration, inputs as the model takes them.

        Of images `number` of each class of the training set, of text `number` validation windows.
        """

    def predictions(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Class probabilities (N, classes) of `model` in eval mode for the fixed test set, and its labels (N,)."""


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
