"""The training loop: one screen, the same for both regimes. It never asks which regime it is in."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from weight_decay.device.distributed import current
from weight_decay.optim.averaging import Averages, EpochAverage, TailAverage
from weight_decay.optim.norm import project_
from weight_decay.probes import weights
from weight_decay.tasks.regime import Batch, Stream, Task

if TYPE_CHECKING:
    from weight_decay.optim.low_precision import Optimizer
    from weight_decay.optim.schedules import Schedule


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
    accumulate: Callable[[], AbstractContextManager[Any]]  # around all but the last micro-batch
    task: Task
    stream: Stream
    optimizer: Optimizer
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
    lr: float | Tensor = 0.0  # of the last step
    observed: dict[str, Tensor] = field(default_factory=dict)
    decay_window: Callable[[int], float] | None = None
    decay_factor: float = 1.0  # of the last step
    epoch_average: EpochAverage | None = None
    layer_gradients: bool = False  # observe the norm of every layer's gradient

    def advance(self, observe: bool) -> None:
        """Make one optimizer step; with `observe`, also measure how far and how much it turned the weights."""
        before = weights.snapshot(self.parameters) if observe else None
        self.lr = self.schedule(self.step)
        self.optimizer.set_lr(self.lr)
        if self.decay_window is not None:
            self.decay_factor = self.decay_window(self.step)
            self.optimizer.set_decay_factor(self.decay_factor)
        loss = self._backward(self.stream.batch(self.step))
        gradient_max = self._gradient_max() if observe else None
        layers = self._layer_gradients() if observe and self.layer_gradients else {}
        norm = self.optimizer.step(self.scaler, return_norm=observe)
        self.optimizer.zero_grad()
        if self.sphere_radius is not None:
            project_(self.parameters, self.sphere_radius)
        self.averages.update()
        if self.tail is not None:
            self.tail.update(self.step)
        if self.epoch_average is not None:
            self.epoch_average.update(self.step)
        row = self.history[self.step % len(self.history)]
        row[0] = loss
        if norm is not None:
            row[1] = norm
        self.step += 1
        if before is not None:
            assert norm is not None and gradient_max is not None
            self.observed = {
                "grad/norm": norm,
                "grad/max": gradient_max,
                **layers,
                "update/norm": weights.update_norm(before, self.parameters),
                "effective_lr/rotation": weights.rotation(before, self.parameters),
                "stability/bf16_lost_updates": weights.bf16_lost_updates(before, self.parameters),
            }

    def _gradient_max(self) -> Tensor:
        """Largest magnitude in the gradient of the loss, before clipping and without a scaler's factor."""
        largest = weights.largest_magnitude([p.grad for p in self.parameters if p.grad is not None])
        return largest if self.scaler is None else largest / self.scaler.get_scale()

    def _layer_gradients(self) -> dict[str, Tensor]:
        """Norm of the gradient of the loss in each layer, before clipping and without a scaler's factor."""
        named = zip(self.optimizer.names, self.parameters, strict=True)
        norms = weights.layer_norms((name, p.grad) for name, p in named if p.grad is not None)
        scale = 1.0 if self.scaler is None else self.scaler.get_scale()
        return {f"grad/norm/{layer}": norm / scale for layer, norm in norms.items()}

    def _backward(self, batch: Batch) -> Tensor:
        """Gradient of the mean loss over the global batch, in `micro_batches` equal parts; returns that mean."""
        total: Tensor | None = None
        parts = list(zip(*(tensor.chunk(self.micro_batches) for tensor in batch), strict=True))
        for index, part in enumerate(parts, start=1):
            with nullcontext() if index == len(parts) else self.accumulate():
                with self.autocast():
                    loss = self.task.loss(self.forward, part) / self.micro_batches
                (self.scaler.scale(loss) if self.scaler is not None else loss).backward()
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None
        ranks = current()
        # Each process has the loss of its own part of the batch. Here and not when it is logged, so that a checkpoint
        # holds the mean over all of them.
        return ranks.sum_(total) / ranks.count if ranks.count > 1 else total

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters, in the model's order."""
        return self.optimizer.parameters


def train(training: Training, last: int, events: Sequence[Event], log: Event, stop: Callable[[], bool]) -> None:
    """Train until `last` steps are made or `stop` says so, running every due event after each step.

    The steps that `log` follows are observed more closely, for it to record.
    """
    while training.step < last and not stop():
        training.advance(observe=log.due(training.step + 1, last))
        for event in events:
            if event.due(training.step, last):
                event.run()
