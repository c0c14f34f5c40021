"""Image classification: the over-training regime."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weight_decay.optim.averaging import reestimate_batch_norm
from weight_decay.probes.eval_mode import eval_mode
from weight_decay.probes.jacobian import jacobian_norm
from weight_decay.probes.noise import noise_scale
from weight_decay.tasks.protocol import Batch


class Classification:
    """Cross-entropy on labelled images, evaluated on fixed batches of both sets.

    evaluation: named sets of fixed batches, e.g. {"train": ..., "test": ...}; each yields (uint8 images, labels).
    reestimation: training batches for the batch-norm statistics of averaged models.
    jacobian: the images of the Jacobian and noise probes (PAPER §1: the first of each class).
    dtype: of the model's weights, and so of its inputs.
    mean, std: channel statistics in [0, 255], or None to feed images scaled to [0, 1].
    """

    def __init__(
        self,
        evaluation: dict[str, Iterable[Batch]],
        reestimation: Iterable[Batch],
        jacobian: Iterable[Batch],
        mean: Tensor | None,
        std: Tensor | None,
        autocast: Callable[[], AbstractContextManager[Any]],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._evaluation = evaluation
        self._reestimation = reestimation
        self._jacobian = jacobian
        self._autocast = autocast
        self._dtype = dtype
        if mean is None or std is None:
            self._scale, self._shift = torch.tensor(1 / 255.0), torch.tensor(0.0)
        else:
            self._scale, self._shift = (1 / std).view(1, 3, 1, 1), (-mean / std).view(1, 3, 1, 1)

    def loss(self, forward: Callable[..., Any], batch: Batch) -> Tensor:
        """Mean cross-entropy of a batch in nats; `forward` maps float images (B, 3, H, W) to logits (B, classes)."""
        images, labels = batch
        return F.cross_entropy(forward(self.floats(images)).float(), labels)

    def forward(self, model: nn.Module) -> Callable[..., Any]:
        """The callable that `loss` takes, and that may be compiled."""
        return model

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, Tensor]:
        """`train/loss`, `train/error`, `test/loss`, `test/error` of the model in eval mode; its mode is restored."""
        metrics: dict[str, Tensor] = {}
        with eval_mode(model):
            for name, batches in self._evaluation.items():
                metrics |= {f"{name}/{key}": value for key, value in self._evaluate_set(model, batches).items()}
        return metrics

    def _evaluate_set(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, Tensor]:
        loss_sum, wrong, count = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64), 0
        for images, labels in batches:
            with self._autocast():
                logits = model(self.floats(images)).float()
            loss_sum = loss_sum.to(logits.device) + F.cross_entropy(logits, labels, reduction="sum").double()
            wrong = wrong.to(logits.device) + (logits.argmax(1) != labels).sum()
            count += len(labels)
        return {"loss": loss_sum / count, "error": wrong.double() / count}

    def reestimate(self, model: nn.Module) -> None:
        """One pass over training data for the batch-norm statistics of an averaged model (PAPER §1)."""
        with torch.no_grad(), self._autocast():
            reestimate_batch_norm(model, self._images(self._reestimation))

    def probe(self, model: nn.Module) -> dict[str, Tensor]:
        """Exact Jacobian norm (both definitions) and noise scale σ, in the precision of the weights."""
        norm = jacobian_norm(model, self._images(self._jacobian))
        scale = noise_scale(model, ((self.floats(images), labels) for images, labels in self._jacobian))
        return {
            "jacobian/mean_square": norm.mean_square,
            "jacobian/mean_norm": norm.mean_norm,
            "noise/scale": scale,
        }

    def floats(self, images: Tensor) -> Tensor:
        """uint8 images (B, 3, H, W) as the normalised floats the model sees."""
        if self._scale.device != images.device:
            self._scale, self._shift = self._scale.to(images.device), self._shift.to(images.device)
        return torch.addcmul(self._shift, images.float(), self._scale).to(self._dtype)

    def _images(self, batches: Iterable[Batch]) -> Iterator[Tensor]:
        return (self.floats(images) for images, _ in batches)
