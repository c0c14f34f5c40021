"""Learning-rate schedules: pure functions of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from weight_decay.errors import UserError

Schedule = Callable[[int], float | Tensor]
"""Learning rate η_t of optimizer step t, counted from 0, asked for just before it.

On the device where it depends on the weights: one for all of them, or one for each parameter.
"""


def constant(lr: float) -> Schedule:
    """The same η at every step."""
    _check_rates(lr=lr)
    return lambda step: lr


def two_phase(lr: float, drop_step: int, final_lr: float) -> Schedule:
    """η for steps before `drop_step`, `final_lr` from it on (PAPER §2, Figs 1-5, 10-12, 15)."""
    _check_rates(lr=lr, final_lr=final_lr)
    return lambda step: lr if step < drop_step else final_lr


def warmup_cosine(lr: float, warmup_steps: int, decay_steps: int, final_lr: float) -> Schedule:
    """Linear warm-up from 0 to η, half a cosine down to `final_lr`, then constant (PAPER §3).

    As in the study's released code the warm-up is η · step / warmup_steps: step 0 has rate 0 and the
    peak, exactly η, is at step `warmup_steps` (so with ‖w‖ = 235 the effective LR there is the paper's
    2.56e-6). Later nanoGPT uses (step + 1) / (warmup + 1), which differs by less than η / warmup_steps.
    `final_lr` is reached exactly at step `decay_steps`, the paper's number of iterations; the code's
    "slower decay" runs put it beyond the end of the run.

    Raises UserError for a negative rate or a decay that ends before the warm-up does.
    """
    _check_rates(lr=lr, final_lr=final_lr)
    if not 0 <= warmup_steps < decay_steps:
        raise UserError(
            f"schedule: the warm-up takes {warmup_steps} steps and the decay ends at step {decay_steps}; "
            "make the decay end after the warm-up."
        )

    def rate(step: int) -> float:
        if step < warmup_steps:
            return lr * step / warmup_steps
        if step >= decay_steps:
            return final_lr
        progress = (step - warmup_steps) / (decay_steps - warmup_steps)
        share = 0.5 * (1.0 + math.cos(math.pi * progress))
        return final_lr + share * (lr - final_lr)

    return rate


class MatchedEffectiveLR:
    """The η that gives a run the effective LR of a reference run (Fig 7).

    η_t = η_ref,t · (‖w_t‖ / ‖w_ref,t‖)^power. power 1 matches AdamW's η/‖w‖, power 2 SGD's η/‖w‖² (with
    AdamW the paper sees it diverge). norm "whole" uses one norm of all weights and gives a 0-d tensor;
    "per_matrix" one per parameter and gives shape (P,), for an optimizer with per_parameter_lr.

    reference_steps: shape (K,), increasing; reference_lr: (K,); reference_norm: (K,) for "whole", (K, P)
    for "per_matrix" in the optimizer's order. Between recorded steps η_ref and ‖w_ref‖ are interpolated
    linearly, beyond the last they are held.

    The current norm is only known on the device, so η is computed there and never read back.

    Raises UserError if the reference is empty, out of order, of unfitting shapes, or has a norm of 0.
    """

    def __init__(
        self,
        reference_steps: Sequence[int] | np.ndarray,
        reference_lr: Sequence[float] | np.ndarray,
        reference_norm: Sequence[float] | np.ndarray,
        norm: Literal["whole", "per_matrix"],
        power: Literal[1, 2],
    ) -> None:
        steps = np.asarray(reference_steps, dtype=np.float64)
        lrs = np.asarray(reference_lr, dtype=np.float64)
        norms = np.asarray(reference_norm, dtype=np.float64)
        if steps.ndim != 1 or len(steps) == 0 or not (np.diff(steps) > 0).all():
            raise UserError("the reference run's steps must increase; record them in order, at least one.")
        dimensions = 1 if norm == "whole" else 2
        if lrs.shape != steps.shape or norms.ndim != dimensions or len(norms) != len(steps):
            raise UserError(
                f"the reference run has {len(steps)} steps but learning rates of shape {lrs.shape} and norms "
                f"of shape {norms.shape}; record both at every one of its steps, "
                f"{dimensions}-dimensional norms for norm '{norm}'."
            )
        if not (np.isfinite(norms).all() and (norms > 0).all() and np.isfinite(lrs).all() and (lrs >= 0).all()):
            raise UserError(
                "the reference run has a weight norm that is not above 0 or a learning rate below 0 or not "
                "finite; choose a reference that completed."
            )
        self.norm = norm
        self.power = power
        self._steps, self._lrs = steps, lrs
        self._norms = torch.from_numpy(norms).float()

    def lr(self, step: int, parameter_norms: Tensor) -> Tensor:
        """Return η for this step, on the device of `parameter_norms` (shape (P,), before the step)."""
        # The table moves to the device once, at the first step.
        self._norms = self._norms.to(parameter_norms.device)
        right = int(np.searchsorted(self._steps, step, side="right"))
        low, high = max(right - 1, 0), min(right, len(self._steps) - 1)
        span = self._steps[high] - self._steps[low]
        share = float(np.clip((step - self._steps[low]) / span, 0.0, 1.0)) if span > 0 else 0.0
        reference_lr = float(self._lrs[low] + share * (self._lrs[high] - self._lrs[low]))
        reference_norm = torch.lerp(self._norms[low], self._norms[high], share)
        current = torch.linalg.vector_norm(parameter_norms) if self.norm == "whole" else parameter_norms
        return reference_lr * (current / reference_norm) ** self.power


def _check_rates(**rates: float) -> None:
    for name, value in rates.items():
        if not (math.isfinite(value) and value >= 0):
            raise UserError(f"schedule.{name} is {value}; use a finite number that is 0 or more.")
