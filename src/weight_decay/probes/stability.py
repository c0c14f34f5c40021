"""What overflows or saturates first in a language model: the largest magnitudes of a forward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from weight_decay.config.measurements import ProbeKind
from weight_decay.config.registry import PROBES
from weight_decay.probes.eval_mode import eval_mode

_AT_A_TIME = 4


@PROBES.add("stability")
@dataclass(frozen=True)
class StabilityProbe(ProbeKind):
    """Largest attention logit, activation and output logit on fixed `windows`, in the precision of training.

    `stability/max_attention_logit` (|q·k/√d| before the softmax), `stability/max_activation` (residual stream) and
    `stability/max_logit` (output logits).
    """

    windows: int
    regimes: ClassVar[tuple[str, ...]] = ("under_training",)

    def ready(self, task: Any, seed: int) -> Callable[[nn.Module], dict[str, Tensor]]:
        """The measurement on the task's windows; the model has `taps`."""
        samples = task.samples(self.windows, _AT_A_TIME)

        @torch.no_grad()
        def measure(model: Any) -> dict[str, Tensor]:
            with eval_mode(model), task.autocast(), model.taps() as taps:
                for tokens, _ in samples:
                    model(tokens)
            return {
                "stability/max_attention_logit": taps.max_attention_logit,
                "stability/max_activation": taps.max_residual,
                "stability/max_logit": taps.max_output_logit,
            }

        return measure
