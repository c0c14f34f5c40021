"""SGD, without momentum as in the vision experiments or with it (Fig 22)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from weight_decay.config.registry import OPTIMIZERS
from weight_decay.optim.optimizer_kinds.settings import TorchOptimizer


@OPTIMIZERS.add("sgd")
@dataclass(frozen=True)
class SGD(TorchOptimizer):
    """m <- μ m + (1 - dampening) g; w <- w - η m, or with Nesterov - η (g + μ m)."""

    lr_on_device: ClassVar[bool] = True

    @property
    def decoupled(self) -> bool:
        """Only without momentum: torch adds λ w to the gradient, and that then passes through the buffer."""
        return self.momentum == 0

    def unfit(self, regime: str, precision: str) -> str | None:
        """Dampening under a gradient scaler."""
        if self.dampening and precision == "float16_autocast":
            return (
                "dampening: torch has no safe first step for it under a gradient scaler; "
                "set it to 0 or choose another precision"
            )
        return None

    def build(self, groups: Sequence[dict[str, Any]]) -> torch.optim.SGD:
        """torch's SGD."""
        return torch.optim.SGD(groups, self.lr, self.momentum, self.dampening, nesterov=self.nesterov, **self.kernels)

    def begin(self, optimizer: torch.optim.Optimizer) -> None:
        """Momentum buffers of zeros.

        torch leaves the first buffer uninitialised when a scaler skips the first step; zeros give the same first
        update (μ·0 + g) and are safe. Not with dampening, from which torch exempts the first step; the config refuses
        that together with a scaler.
        """
        if self.momentum > 0 and self.dampening == 0:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    buffer = torch.zeros_like(parameter, requires_grad=False)
                    optimizer.state[parameter]["momentum_buffer"] = buffer
