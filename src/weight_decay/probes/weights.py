"""Weight norms, effective learning rates and update sizes, from lists of tensors.

Every function returns scalar tensors on the parameters' device and never waits for the device, so a probe can
be recorded whenever the host next reads anything. Lists must be non-empty and of the trainable parameters
only, in one fixed order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from weight_decay.optim.norm import norms

AT_ONCE = 2**25
"""Entries whose differences are held at a time: all of them would be one more copy of the weights."""


def trainable_parameters(model: nn.Module) -> list[Tensor]:
    """The parameters that count in each norm: those with `requires_grad`, shared ones once, without graph."""
    return [parameter.detach() for parameter in model.parameters() if parameter.requires_grad]


@torch.no_grad()
def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """‖·‖_2 of all the tensors as one vector: `weights/norm`, `weights/decayed_norm`, `grad/norm`."""
    return torch.linalg.vector_norm(torch.stack(norms(tensors)))


def _parts(tensors: Sequence[Tensor]) -> Iterator[slice]:
    """Slices of successive tensors of about `AT_ONCE` entries together, so that differences need little memory."""
    start = entries = 0
    for index, tensor in enumerate(tensors):
        if index > start and entries + tensor.numel() > AT_ONCE:
            yield slice(start, index)
            start, entries = index, 0
        entries += tensor.numel()
    if len(tensors) > start:
        yield slice(start, len(tensors))


@torch.no_grad()
def largest_magnitude(tensors: Sequence[Tensor]) -> Tensor:
    """max |w| over all the tensors: `weights/max`."""
    return torch.stack(torch._foreach_norm(list(tensors), float("inf"))).max()


@torch.no_grad()
def layer_norms(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """2-norm of the tensors of each layer (`stem` has `stem.weight` and `stem.bias`), by the layer's name."""
    names, tensors = zip(*named, strict=True)
    layers: dict[str, list[Tensor]] = {}
    for name, norm in zip(names, norms(tensors), strict=True):
        layers.setdefault(name.rpartition(".")[0] or name, []).append(norm)
    return {layer: torch.linalg.vector_norm(torch.stack(parts)) for layer, parts in layers.items()}


def sizes(lr: float | Tensor, norm: Tensor, tensors: Sequence[Tensor]) -> dict[str, Any]:
    """Size of the weights and effective learning rates, by the names of the record; `norm`: of all the tensors.

    η / ‖w‖ with the whole-model norm is the paper's effective LR of AdamW, η / ‖w‖² SGD's on a scale-invariant net.
    """
    return {
        "weights/norm": norm,
        "weights/max": largest_magnitude(tensors),
        "effective_lr/adamw": lr / norm,
        "effective_lr/sgd": lr / norm.square(),
    }


@torch.no_grad()
def effective_lr_adam_coordinate(
    lrs: Sequence[float], second_moments: Sequence[Tensor], epsilons: Sequence[float]
) -> Tensor:
    """Mean over coordinates of η / (√v + ε), without bias correction: `effective_lr/adam_coordinate`.

    `second_moments` are the optimizer's running means of squared gradients (`exp_avg_sq`), one tensor per
    parameter, with the learning rate and epsilon of the parameter's group beside each.
    """
    roots = torch._foreach_sqrt([moment.float() for moment in second_moments])
    torch._foreach_add_(roots, list(epsilons))
    torch._foreach_reciprocal_(roots)
    torch._foreach_mul_(roots, list(lrs))
    total = torch.stack([root.sum() for root in roots]).sum()
    return total / sum(moment.numel() for moment in second_moments)


@torch.no_grad()
def snapshot(tensors: Sequence[Tensor]) -> list[Tensor]:
    """A copy of the tensors, for `rotation`, `update_norm` and `bf16_lost_updates` to compare with later."""
    return [tensor.detach().clone() for tensor in tensors]


@torch.no_grad()
def rotation(before: Sequence[Tensor], after: Sequence[Tensor]) -> Tensor:
    """Angle in radians between two successive weight vectors: `effective_lr/rotation`.

    The angle is 2·atan2(‖u - v‖, ‖u + v‖) of the unit vectors u, v: an arc cosine would return 0 for every
    angle below 3e-4 in float32, and a step's angle is often smaller. A zero vector gives NaN.
    """
    lengths = global_norm(before), global_norm(after)
    apart: list[Tensor] = []
    together: list[Tensor] = []
    for part in _parts(before):
        units = [[t / length for t in vector[part]] for vector, length in zip((before, after), lengths, strict=True)]
        apart += norms(torch._foreach_sub(*units))
        together += norms(torch._foreach_add(*units))
    return 2 * torch.atan2(*(torch.linalg.vector_norm(torch.stack(parts)) for parts in (apart, together)))


@torch.no_grad()
def update_norm(before: Sequence[Tensor], after: Sequence[Tensor]) -> Tensor:
    """‖w_after - w_before‖_2, decay included: `update/norm`."""
    apart: list[Tensor] = []
    for part in _parts(before):
        apart += norms(torch._foreach_sub(list(after[part]), list(before[part])))
    return torch.linalg.vector_norm(torch.stack(apart))


@torch.no_grad()
def bf16_lost_updates(before: Sequence[Tensor], after: Sequence[Tensor]) -> Tensor:
    """Share of the weights that a step changes, but not once both are rounded to bfloat16.

    `stability/bf16_lost_updates`. Weights that the step leaves equal (a zero gradient without decay) are in
    neither count; 0 when the step changes no weight. Of weights that are bfloat16 themselves nobody can say what
    the step meant to change, so there it is the share of all weights that stay as they are.
    """
    lost, changed = [], []
    for old, new in zip(before, after, strict=True):
        moved = old != new if old.dtype != torch.bfloat16 else torch.ones_like(old, dtype=torch.bool)
        changed.append(moved.sum())
        lost.append((moved & (old.bfloat16() == new.bfloat16())).sum())
    return torch.stack(lost).sum() / torch.stack(changed).sum().clamp(min=1)
