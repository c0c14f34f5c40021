"""`Measure` as a callback of Hugging Face's Trainer; transformers is imported here and nowhere else."""

from __future__ import annotations

from typing import Any

from weight_decay.errors import UserError
from weight_decay.library.measure import Measure

try:
    from transformers import TrainerCallback
except ModuleNotFoundError:
    raise UserError("TrainerMeasure: transformers is not installed; run: pip install transformers.") from None


class TrainerMeasure(TrainerCallback):
    """`Trainer(..., callbacks=[TrainerMeasure(every=50, batch=tokenized)])`; the options are `Measure`'s.

    `.measure` has the records once training has begun. The loss is in the Trainer's own log.
    """

    def __init__(self, **options: Any) -> None:
        self.measure: Measure | None = None
        self._options = options

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Attach to the optimizer."""
        self.measure = Measure(given["model"], given["optimizer"], **self._options)

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Count the step."""
        assert self.measure is not None
        self.measure.step()
