"""The norm that gradients are clipped by and that weights on a sphere keep."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from weight_decay.device.traits import traits


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the 2-norm of all tensors seen as one vector: 0-d, float32 (float64 of such tensors), on their device."""
    norms = torch._foreach_norm(list(tensors), 2, dtype=traits(tensors[0].device).sums)
    return torch.linalg.vector_norm(torch.stack(norms)).to(torch.promote_types(tensors[0].dtype, torch.float32))
