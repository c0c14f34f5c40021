"""What the loop asks of a task and of its data; both regimes implement exactly this."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]
"""Inputs and targets on the device: uint8 images (B, 3, H, W) with labels (B,), or tokens (B, T) with the next ones."""


class Stream(Protocol):
    """Training data as a pure function of (seed, step)."""

    def batch(self, step: int) -> Batch:
        """The global batch of optimizer step `step`."""
        ...

    def epoch(self, step: int) -> float:
        """Passes over the training set after `step` steps."""
        ...


class Task(Protocol):
    """A training objective with its evaluation."""

    def forward(self, model: nn.Module) -> Callable[..., Any]:
        """What `loss` calls: the model, or the method of it that computes the loss; this is what gets compiled."""
        ...

    def loss(self, forward: Callable[..., Any], batch: Batch) -> Tensor:
        """Mean training loss of the batch in nats, a scalar on the device."""
        ...

    def evaluate(self, model: nn.Module) -> dict[str, Tensor]:
        """Metrics on fixed batches ("test/error", "val/loss", ...) of `model` in eval mode, scalars on the device."""
        ...

    def reestimate(self, model: nn.Module) -> None:
        """Recompute batch-norm statistics of an averaged model from training data; nothing to do without batch norm."""
        ...

    def probe(self, model: nn.Module) -> dict[str, Tensor]:
        """The task's costly probes (Jacobian norm, noise scale), scalars on the device."""
        ...

    def curvature(self, model: nn.Module) -> dict[str, Tensor]:
        """The task's costliest probes (Hessian, gradient noise), scalars on the device."""
        ...

    def predictions(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Class probabilities (N, classes) of `model` in eval mode for the fixed test set, and its labels (N,)."""
        ...
