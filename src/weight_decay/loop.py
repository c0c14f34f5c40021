"""The training loop: one screen, the same for both regimes. It never asks which regime it is in."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from weight_decay.optim import sphere
from weight_decay.optim.averaging import Averages, TailAverage
from weight_decay.optim.optimizers import DecayedOptimizer
from weight_decay.probes import weights
from weight_decay.tasks.protocol import Batch, Stream, Task


class Schedule(Protocol):
    """Learning rate as a function of the step alone."""

    def lr(self, step: int) -> float:
        """Learning rate η_t of optimizer step `step`, counted from 0."""
        ...


@dataclass(frozen=True)
class Event:
    """Something to do off the hot path after steps start, start + every, ... stop: log, evaluate, branch, save."""

    run: Callable[[], None]
    every: int = 1
    start: int = 0
    also_last: bool = True
    stop: int = sys.maxsize

    def due(self, step: int, last: int) -> bool:
        """Whether to run after `step` steps have been made, of `last` in all."""
        in_time = self.start <= step <= self.stop and (step - self.start) % self.every == 0
        return in_time or (self.also_last and step == last)


@dataclass
class Training:
    """Everything one optimizer step touches. Losses and norms stay on the device until an event asks for them."""

    model: nn.Module
    forward: Callable[..., Any]
    task: Task
    stream: Stream
    optimizer: DecayedOptimizer
    schedule: Schedule
    averages: Averages
    tail: TailAverage | None
    autocast: Callable[[], AbstractContextManager[Any]]
    scaler: torch.amp.GradScaler | None
    micro_batches: int
    weight_decay: float
    decayed: list[Tensor]
    eps: float
    sphere_radius: float | None
    history: Tensor  # (window, 2): loss and gradient norm of the steps since the last log
    step: int = 0
    observed: dict[str, Tensor] = field(default_factory=dict)

    def advance(self, observe: bool) -> None:
        """Make one optimizer step; with `observe`, also measure how far and how much it turned the weights."""
        before = weights.snapshot(self.parameters) if observe else None
        self.optimizer.set_lr(self.schedule.lr(self.step))
        loss = self._backward(self.stream.batch(self.step))
        norm = self.optimizer.step(self.scaler, return_norm=observe)
        self.optimizer.zero_grad()
        if self.sphere_radius is not None:
            sphere.project_(self.parameters, self.sphere_radius)
        self.averages.update()
        if self.tail is not None:
            self.tail.update(self.step)
        row = self.history[self.step % len(self.history)]
        row[0] = loss
        if norm is not None:
            row[1] = norm
        self.step += 1
        if before is not None:
            assert norm is not None
            self.observed = {
                "grad/norm": norm,
                "update/norm": weights.update_norm(before, self.parameters),
                "effective_lr/rotation": weights.rotation(before, self.parameters),
                "stability/bf16_lost_updates": weights.bf16_lost_updates(before, self.parameters),
            }

    def _backward(self, batch: Batch) -> Tensor:
        """Gradient of the mean loss over the global batch, in `micro_batches` equal parts; returns that mean."""
        total: Tensor | None = None
        for part in zip(*(tensor.chunk(self.micro_batches) for tensor in batch), strict=True):
            with self.autocast():
                loss = self.task.loss(self.forward, part) / self.micro_batches
            (self.scaler.scale(loss) if self.scaler is not None else loss).backward()
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None
        return total

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters, in the model's order."""
        return self.optimizer.parameters


def train(training: Training, last: int, events: Sequence[Event], observe_every: int, stop: Callable[[], bool]) -> None:
    """Train until `last` steps are made or `stop` says so, running every due event after each step."""
    while training.step < last and not stop():
        training.advance(observe=(training.step + 1) % observe_every == 0)
        for event in events:
            if event.due(training.step, last):
                event.run()
