"""`Measure` as a Lightning callback; Lightning itself is imported here and nowhere else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from weight_decay.errors import UserError
from weight_decay.library.measure import Measure

try:
    from lightning.pytorch import Callback
except ModuleNotFoundError:
    raise UserError("LightningMeasure: Lightning is not installed; run: pip install lightning.") from None


class LightningMeasure(Callback):
    """`Trainer(callbacks=[LightningMeasure(every=50, batch=inputs)])`; the options are `Measure`'s.

    `.measure` has the records once training has begun. One optimizer; `batch` must be on the model's device.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.measure: Measure | None = None
        self._options = options

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach to the optimizer."""
        if len(trainer.optimizers) != 1:
            raise UserError(f"LightningMeasure: needs exactly one optimizer, not {len(trainer.optimizers)}.")
        self.measure = Measure(pl_module, trainer.optimizers[0], **self._options)
        self._made = trainer.global_step
        self._losses: list[Tensor] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Look at the gradient: here it is that of this step, before clipping."""
        assert self.measure is not None
        self.measure.see_gradient()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the step, unless the batch was only accumulated; its loss is the mean over its batches."""
        assert self.measure is not None
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if loss is not None:
            # Lightning has divided it by the number of batches that it accumulates.
            self._losses.append(loss.detach() * trainer.accumulate_grad_batches)
        if trainer.global_step > self._made:
            self._made = trainer.global_step
            self.measure.step(torch.stack(self._losses).mean() if self._losses else None)
            self._losses = []
