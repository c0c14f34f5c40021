"""AdamW, of the language-model experiments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from weight_decay.config.registry import OPTIMIZERS
from weight_decay.optim.optimizer_kinds.settings import TorchOptimizer


@OPTIMIZERS.add("adamw")
@dataclass(frozen=True)
class AdamW(TorchOptimizer):
    """w <- w - η m̂ / (√v̂ + eps), m and v running means of g and g² with β₁ and β₂, m̂ and v̂ without their bias."""

    lr_on_device: ClassVar[bool] = True

    @property
    def decoupled(self) -> bool:
        """Always."""
        return True

    def build(self, groups: Sequence[dict[str, Any]]) -> torch.optim.AdamW:
        """torch's AdamW."""
        return torch.optim.AdamW(groups, self.lr, betas=self.betas, eps=self.eps, **self.kernels)
