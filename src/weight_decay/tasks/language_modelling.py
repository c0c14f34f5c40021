"""Next-token prediction: the under-training regime."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from weight_decay.distributed import Ranks
from weight_decay.models.gpt import GPT
from weight_decay.probes.eval_mode import eval_mode
from weight_decay.tasks.protocol import Batch


class LanguageModelling:
    """Mean cross-entropy of the next token, evaluated on fixed windows.

    evaluation: named sets of fixed batches, e.g. {"train": ..., "val": ...}; each yields two (B, T).
    stability: the batches of the stability probe.
    ranks: the processes that share the evaluation.
    """

    def __init__(
        self,
        evaluation: Mapping[str, Iterable[Batch]],
        autocast: Callable[[], AbstractContextManager[Any]],
        stability: Iterable[Batch] = (),
        ranks: Ranks = Ranks(),  # noqa: B008 (frozen)
    ) -> None:
        self._evaluation = evaluation
        self._autocast = autocast
        self._stability = stability
        self._ranks = ranks

    def loss(self, forward: Callable[..., Any], batch: Batch) -> Tensor:
        """Mean cross-entropy in nats per token; `forward` maps (tokens, targets) to it."""
        return forward(*batch)

    def forward(self, model: nn.Module) -> Callable[..., Any]:
        """The callable that `loss` takes, and that may be compiled."""
        return model.loss  # type: ignore[return-value]

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, Tensor]:
        """`train/loss`, `val/loss`, ... in nats per token on the fixed windows; every window weighs the same."""
        metrics: dict[str, Tensor] = {}
        with eval_mode(model):
            for name, batches in self._evaluation.items():
                metrics[f"{name}/loss"] = self._mean_loss(model, batches)
        return metrics

    def _mean_loss(self, model: nn.Module, batches: Iterable[Batch]) -> Tensor:
        device = next(model.parameters()).device
        total, windows = torch.zeros((), dtype=torch.float64, device=device), 0
        for index, (tokens, targets) in enumerate(batches):
            windows += len(tokens)
            if index % self._ranks.count == self._ranks.rank:
                with self._autocast():
                    total += self.forward(model)(tokens, targets).double() * len(tokens)
        return self._ranks.sum_(total) / windows

    def reestimate(self, model: nn.Module) -> None:
        """Nothing: there is no batch norm in these models."""

    @torch.no_grad()
    def probe(self, model: nn.Module) -> dict[str, Tensor]:
        """Largest magnitudes in a forward pass, in the precision of training: what overflows or saturates first.

        `stability/max_attention_logit` (|q·k/√d| before the softmax), `stability/max_activation` (residual stream)
        and `stability/max_logit` (output logits), over the fixed windows of the probe.
        """
        assert isinstance(model, GPT)
        with eval_mode(model), self._autocast(), model.taps() as taps:
            for tokens, _ in self._stability:
                model(tokens)
        return {
            "stability/max_attention_logit": taps.max_attention_logit,
            "stability/max_activation": taps.max_residual,
            "stability/max_logit": taps.max_output_logit,
        }

    def curvature(self, model: nn.Module) -> dict[str, Tensor]:
        """Nothing: the config refuses curvature probes for text."""
        return {}

    def predictions(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Never called: the config refuses snapshot ensembles for text."""
        raise NotImplementedError
