"""Noise scale of SGD: how large the loss derivative at the logits is, on average over samples."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from weight_decay.device.memory import in_pieces
from weight_decay.errors import UserError
from weight_decay.probes.eval_mode import eval_mode


def logit_gradient_norms(logits: Tensor, labels: Tensor) -> Tensor:
    """‖softmax(h) - onehot(y)‖_2 of each sample: logits (N, C), integer labels (N,), result (N,).

    The label's own entry, p_y - 1, is taken as minus the sum of the other probabilities: on a fitted sample
    p_y rounds to 1 and the difference would lose every digit.
    """
    others = torch.softmax(logits.float() if logits.dtype.itemsize < 4 else logits, dim=1)
    others = others.scatter(1, labels[:, None], 0.0)
    return (others.square().sum(1) + others.sum(1).square()).sqrt()


@torch.no_grad()
def noise_scale(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """σ = (1/N) Σ_i ‖ℓ'_i(w)‖_2, ℓ' the derivative of the cross-entropy w.r.t. the logits; a scalar tensor.

    `batches` yields (inputs (B, ...), integer labels (B,)) on the model's device. The model runs in eval
    mode, forward only, and is left as it was. Raises UserError when `batches` is empty.
    """
    norms: list[Tensor] = []
    with eval_mode(model):
        for inputs, labels in batches:

            def of(piece: slice, inputs: Tensor = inputs, labels: Tensor = labels) -> Tensor:
                return logit_gradient_norms(model(inputs[piece]), labels[piece])

            norms += in_pieces(of, len(inputs), len(inputs), "evaluation")
    if not norms:
        raise UserError("The noise scale was given no samples: pass at least one batch of inputs and labels.")
    return torch.cat(norms).mean()
