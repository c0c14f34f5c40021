"""Weights that live in bfloat16, updated with nearest, stochastic or Kahan-compensated rounding.

A bfloat16 number has 8 significant bits, so a change of w by less than |w|/512 is lost when the result
is rounded to nearest. One step of decoupled decay changes w by η λ |w|: with η λ < 1/512 and nothing
else moving the weight, pure bfloat16 weights do not decay at all. With gradients it depends on where the
rounding happens: torch's foreach AdamW rounds after the decay and again after the update, so decay
stays lost, bit for bit; the fused kernel rounds once, decay and update together, and an update of about
one unit in the last place or more then carries the decay along. So whether "bfloat16 loses weight
decay" holds is a matter of the kernel: log `fused`. Two remedies:

- stochastic rounding: up or down with the probability that makes the rounded value right on average;
- Kahan compensation: what rounding cut off is kept in a second bfloat16 number and added back next time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from weight_decay.errors import UserError
from weight_decay.optim.decay import ParameterGroup
from weight_decay.optim.optimizers import DecayedOptimizer, Method

Rounding = Literal["nearest", "stochastic", "kahan"]


class RoundedOptimizer:
    """A `DecayedOptimizer` on bfloat16 weights that differ from exact ones by the rounding alone.

    Each step widens weights and gradients to float32 scratch, lets a `DecayedOptimizer` (moments in
    float32) update the scratch, and rounds it back. The scratch is overwritten from the bfloat16
    weights at the next step, so nothing survives in it; it isolates the effect of rounding and does not
    save memory. Stochastic rounding draws from a generator of its own, saved in `state_dict`.

    "nearest" rounds once per step, as torch's fused kernels do. The interface is `DecayedOptimizer`'s;
    a gradient scaler (float16) does not apply.

    Raises UserError if a parameter is not bfloat16.
    """

    def __init__(self, groups: Sequence[ParameterGroup], rounding: Rounding, seed: int, method: Method) -> None:
        if rounding not in ("nearest", "stochastic", "kahan"):
            raise UserError(f"precision.rounding is '{rounding}'; use 'nearest', 'stochastic' or 'kahan'.")
        self.names = tuple(name for group in groups for name in group.names)
        self.parameters: list[nn.Parameter] = [p for group in groups for p in group.parameters]
        for name, parameter in zip(self.names, self.parameters, strict=True):
            if parameter.dtype != torch.bfloat16:
                raise UserError(
                    f"precision.rounding '{rounding}' needs bfloat16 weights but '{name}' is "
                    f"{parameter.dtype}; use pure bfloat16 precision."
                )
        self.rounding = rounding
        self._wide = wide = DecayedOptimizer(
            [replace(g, parameters=[nn.Parameter(p.detach().float()) for p in g.parameters]) for g in groups], method
        )
        # What rounding does not touch is the wide optimizer's own.
        self.clip_norm, self.set_lr, self.set_decay_factor = wide.clip_norm, wide.set_lr, wide.set_decay_factor
        self.decay_metrics, self.second_moments = wide.decay_metrics, wide.second_moments
        self._scratch: list[Tensor] = list(wide.parameters)
        self._narrow: list[Tensor] = list(self.parameters)
        self._lost = [torch.zeros_like(p, requires_grad=False) for p in self._narrow] if rounding == "kahan" else []
        self._generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def step(self, scaler: torch.amp.GradScaler | None = None, return_norm: bool = False) -> Tensor | None:
        """Update and round the weights; returns the gradient norm, as `DecayedOptimizer.step`."""
        torch._foreach_copy_(self._scratch, self._narrow)
        if self._lost:
            torch._foreach_add_(self._scratch, [lost.float() for lost in self._lost])
        for wide, parameter in zip(self._wide.parameters, self.parameters, strict=True):
            wide.grad = None if parameter.grad is None else parameter.grad.float()
        norm = self._wide.step(return_norm=return_norm)
        self._wide.zero_grad()
        if self.rounding == "stochastic":
            for narrow, exact in zip(self._narrow, self._scratch, strict=True):
                narrow.copy_(stochastic_bfloat16(exact, self._generator))
        else:
            torch._foreach_copy_(self._narrow, self._scratch)
        if self._lost:
            torch._foreach_sub_(self._scratch, [narrow.float() for narrow in self._narrow])
            torch._foreach_copy_(self._lost, self._scratch)
        return norm

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def parameter_norms(self) -> Tensor:
        """Return the 2-norm of every bfloat16 parameter, shape (len(names),), float32, on the device."""
        return torch.stack(torch._foreach_norm(self._narrow, 2, dtype=torch.float32))

    def state_dict(self) -> dict[str, Any]:
        """Return the moments, the parts lost to rounding (Kahan) and the generator's state."""
        return {
            "wide": self._wide.state_dict(),
            "lost": dict(zip(self.names, self._lost, strict=True)) if self._lost else {},
            "generator": self._generator.get_state(),
        }

    @torch.no_grad()
    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore the state. Raises UserError for another kind of optimizer, rounding or model."""
        if set(saved["lost"]) != (set(self.names) if self._lost else set()):
            raise UserError(
                f"the optimizer state was not saved with precision.rounding '{self.rounding}' on this model; "
                "use a checkpoint of the same setting."
            )
        self._wide.load_state_dict(saved["wide"])
        for name, lost in zip(self.names, self._lost, strict=False):
            lost.copy_(saved["lost"][name])
        self._generator.set_state(saved["generator"].cpu())


Optimizer = DecayedOptimizer | RoundedOptimizer
"""What a run's weights are updated by."""


def stochastic_bfloat16(values: Tensor, generator: torch.Generator) -> Tensor:
    """Round float32 to one of the two neighbouring bfloat16 numbers so that the mean is exact.

    Adding a uniform 16-bit integer to the bits and cutting the low 16 carries into the kept bits with
    probability (distance to the lower neighbour) / (gap). Infinities and NaNs stay what they are. Drawn on the CPU
    and moved, so that a run rounds alike on every device; large models pay for it with the copy of an integer a weight.
    """
    noise = torch.randint(0, 1 << 16, values.shape, dtype=torch.int32, generator=generator).to(values.device)
    rounded = (values.view(torch.int32) + noise).bitwise_and_(-(1 << 16)).view(torch.float32)
    return torch.where(values.isfinite(), rounded, values).bfloat16()
