"""Next-token prediction: the under-training regime."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from weight_decay.probes.eval_mode import eval_mode
from weight_decay.tasks.protocol import Batch


class LanguageModelling:
    """Mean cross-entropy of the next token, evaluated on fixed windows.

    evaluation: named sets of fixed batches, e.g. {"train": ..., "val": ...}; each yields two (B, T).
    """

    def __init__(
        self, evaluation: dict[str, Iterable[Batch]], autocast: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        self._evaluation = evaluation
        self._autocast = autocast

    def loss(self, forward: Callable[..., Any], batch: Batch) -> Tensor:
        """Mean cross-entropy in nats per token; `forward` maps (tokens, targets) to it."""
        return forward(*batch)

    def forward(self, model: nn.Module) -> Callable[..., Any]:
        """The callable that `loss` takes, and that may be compiled."""
        return model.loss  # type: ignore[return-value]

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, Tensor]:
        """`train/loss` and `val/loss` in nats per token on the fixed windows; every window weighs the same."""
        metrics: dict[str, Tensor] = {}
        with eval_mode(model):
            for name, batches in self._evaluation.items():
                metrics[f"{name}/loss"] = self._mean_loss(model, batches)
        return metrics

    def _mean_loss(self, model: nn.Module, batches: Iterable[Batch]) -> Tensor:
        sums, windows = [], 0
        for tokens, targets in batches:
            with self._autocast():
                sums.append(self.forward(model)(tokens, targets).double() * len(tokens))
            windows += len(tokens)
        return torch.stack(sums).sum() / windows

    def reestimate(self, model: nn.Module) -> None:
        """Nothing: there is no batch norm in these models."""

    def probe(self, model: nn.Module) -> dict[str, Tensor]:
        """Nothing yet: the Jacobian probe is for images."""
        return {}

    def curvature(self, model: nn.Module) -> dict[str, Tensor]:
        """Nothing: the config refuses curvature probes for text."""
        return {}

    def predictions(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Never called: the config refuses snapshot ensembles for text."""
        raise NotImplementedError
