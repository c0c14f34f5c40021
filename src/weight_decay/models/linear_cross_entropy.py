"""Cross-entropy of a linear output layer, a chunk of rows at a time.

Logits of a whole batch are the largest tensor of a language model: at the paper's 256 × 256 tokens and 50,304
words they take 13 GB in float32. Here each chunk's logits become a loss and gradients at once and are
forgotten.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from weight_decay.device.traits import traits


def chunk_rows(rows: int, vocabulary: int, device: torch.device) -> int:
    """Return how many rows to take at a time: all of them if their logits are few."""
    return min(rows, max(1, traits(device).chunk_logits // vocabulary))


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
    """Return the mean cross-entropy, in nats, of `hidden @ weight.T` without ever holding all logits.

    The gradients are computed in the forward pass beside the loss (three matrix products in all, as in the
    plain path), with sums over chunks kept in float32, or float64 for float64 inputs. Matrix products follow
    autocast. Gradients of gradients are refused: for Hessian products use
    `torch.nn.functional.cross_entropy`.

    Args:
        hidden: (N, width), floating point.
        weight: (vocabulary, width).
        targets: (N,) int64 in [0, vocabulary).
        chunk: rows taken at a time, at least 1.

    Returns:
        0-dimensional float32 tensor (float64 for float64 inputs).
    """
    device = hidden.device.type
    matmul_dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    with torch.autocast(device, enabled=False):
        if torch.is_grad_enabled():
            return _LinearCrossEntropy.apply(hidden, weight, targets, chunk, matmul_dtype)
        matrix = weight.to(matmul_dtype)
        total = torch.zeros((), device=hidden.device, dtype=_sum_dtype(matmul_dtype))
        for start in range(0, hidden.shape[0], chunk):
            logits = hidden[start : start + chunk].to(matmul_dtype) @ matrix.t()
            total += F.cross_entropy(logits.to(total.dtype), targets[start : start + chunk], reduction="sum")
        return total / hidden.shape[0]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        chunk: int,
        matmul_dtype: torch.dtype,
    ) -> Tensor:
        sum_dtype = _sum_dtype(matmul_dtype)
        matrix = weight.to(matmul_dtype)
        total = torch.zeros((), device=hidden.device, dtype=sum_dtype)
        hidden_gradient = torch.empty(hidden.shape, device=hidden.device, dtype=matmul_dtype)
        weight_gradient = torch.zeros(weight.shape, device=hidden.device, dtype=sum_dtype)
        for start in range(0, hidden.shape[0], chunk):
            rows = hidden[start : start + chunk].to(matmul_dtype)
            labels = targets[start : start + chunk].unsqueeze(1)
            log_probabilities = torch.log_softmax(rows @ matrix.t(), 1, dtype=sum_dtype)
            total -= log_probabilities.gather(1, labels).sum()
            # The derivative of the loss w.r.t. the logits is softmax minus one-hot. It is divided by the
            # number of rows only in backward: values of order 1 survive float16.
            difference = log_probabilities.exp_()
            difference.scatter_add_(1, labels, torch.full_like(labels, -1, dtype=sum_dtype))
            difference = difference.to(matmul_dtype)
            hidden_gradient[start : start + chunk] = difference @ matrix
            if sum_dtype == matmul_dtype:
                weight_gradient.addmm_(difference.t(), rows)
            else:
                weight_gradient += difference.t() @ rows
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.dtypes = (hidden.dtype, weight.dtype)
        return total / hidden.shape[0]

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "linear_cross_entropy has no second derivative; use the model's logits with "
                "torch.nn.functional.cross_entropy where create_graph=True is needed."
            )
        scale = outputs[0] / ctx.saved_tensors[0].shape[0]
        hidden, weight = (
            (gradient * scale).to(dtype) for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return hidden, weight, None, None, None


def _sum_dtype(matmul_dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if matmul_dtype == torch.float64 else torch.float32
