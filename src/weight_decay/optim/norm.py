"""Norms of tensors, each alone and as one vector, and training on a sphere: weights that go back to theirs (Fig 15)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from weight_decay.device.traits import traits
from weight_decay.errors import UserError


def norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """2-norm of each tensor, 0-d and in at least float32."""
    # Half-precision squares overflow or vanish, and on a CPU torch's float32 sum is off by 1e-3 at 40M entries.
    dtype = torch.promote_types(tensors[0].dtype, traits(tensors[0].device).sums)
    return list(torch._foreach_norm(list(tensors), 2, dtype=dtype))


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the 2-norm of all tensors seen as one vector: 0-d, float32 (float64 of such tensors), on their device."""
    total = torch.linalg.vector_norm(torch.stack(norms(tensors)))
    return total.to(torch.promote_types(tensors[0].dtype, torch.float32))


@torch.no_grad()
def project_(parameters: Sequence[nn.Parameter], radius: float) -> Tensor:
    """Scale all parameters, seen as one vector, to 2-norm `radius`; the direction stays.

    Call it once before the first step and then after every step (the released code projects once per
    epoch). Pass the trainable parameters: in Fig 15 the last layer is fixed and not on the sphere.

    Returns the norm before the projection, a 0-d float32 tensor on the device; nothing waits for it. A
    norm of 0 or a non-finite one gives non-finite weights, which the divergence check sees.

    Raises UserError if the radius is not above 0.
    """
    if not radius > 0:
        raise UserError(f"the sphere's radius is {radius}; use a number above 0.")
    norm = total_norm(parameters)
    torch._foreach_mul_(list(parameters), radius / norm)
    return norm
