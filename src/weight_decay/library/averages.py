"""An exponential average of the weights, ready to be evaluated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from weight_decay.errors import UserError
from weight_decay.optim.averaging import Averages, reestimate_batch_norm


class EMA:
    """w̄ <- β w̄ + (1 - β) w after every step, kept in float32 at least, started at the weights as they are.

    decay: β, between 0 and 1; 0.999 averages over about the last 1,000 steps.

    Raises UserError for a decay outside (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        self.decay = decay
        self._source = model
        self._averages = Averages(model, [decay])

    def update(self) -> None:
        """Take in the weights; call once after every optimizer step. Never waits for the device."""
        self._averages.update()

    def model(self, batches: Tensor | Iterable[Tensor] | None = None) -> nn.Module:
        """A copy of the model in eval mode with the averaged weights; the model in training is left as it is.

        batches: inputs, a tensor (B, ...) being one batch, on which the statistics of batch norm are re-estimated in
        one pass, because those of the training model belong to other weights. `()` keeps the training model's.
        The next call overwrites the copy that this one returned.

        Raises UserError if the model has batch norm and `batches` is None, and if it has other parameters than those
        that were averaged.
        """
        if not self._averages.are_of(self._source):
            raise UserError(
                "EMA.model: the model has other parameters now than when the EMA was made, which has averaged the old "
                "ones; make the EMA after layers are replaced."
            )
        average = self._averages.model_for(self.decay)
        if batches is None:
            if any(isinstance(m, _BatchNorm) and m.running_mean is not None for m in average.modules()):
                raise UserError(
                    "EMA.model: the model has batch norm, whose statistics do not belong to the averaged weights; "
                    "give batches=INPUTS to re-estimate them, or batches=() to keep the training model's."
                )
            return average
        each = [batches] if isinstance(batches, Tensor) else list(batches)
        if each:
            reestimate_batch_norm(average, each)
        return average

    def state_dict(self) -> dict[str, Any]:
        """Everything that must survive a restart; tensors are not copied."""
        return self._averages.state_dict()

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from `state_dict`. Raises UserError for another decay or another model."""
        self._averages.load_state_dict(saved)
