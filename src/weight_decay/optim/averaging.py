"""Averages of the weights along training: exponential ones (w̄ of PAPER §1) and uniform tail averages."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from weight_decay.device.traits import widest_float
from weight_decay.errors import UserError


class _Shadow:
    """Averaged weights in at least float32, and one copy of the model to look at them through."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.names = [name for name, _ in model.named_parameters()]
        self.parameters: list[Tensor] = list(model.parameters())
        self._copy: nn.Module | None = None
        low = any(p.dtype in (torch.bfloat16, torch.float16) for p in self.parameters)
        self._wide = self.fresh() if low else None

    @torch.no_grad()
    def fresh(self) -> list[Tensor]:
        return [p.detach().clone().to(torch.promote_types(p.dtype, torch.float32)) for p in self.parameters]

    def current(self) -> list[Tensor]:
        """Return the training weights in the averages' precision (half ones through a shared buffer)."""
        if self._wide is None:
            return list(self.parameters)
        torch._foreach_copy_(self._wide, self.parameters)
        return self._wide

    @torch.no_grad()
    def view(self, weights: list[Tensor]) -> nn.Module:
        if self._copy is None:
            gradients = [p.grad for p in self.parameters]
            try:
                for p in self.parameters:
                    p.grad = None
                self._copy = copy.deepcopy(self.model)
            finally:
                for p, gradient in zip(self.parameters, gradients, strict=True):
                    p.grad = gradient
        torch._foreach_copy_(list(self._copy.parameters()), weights)
        for target, source in zip(self._copy.buffers(), self.model.buffers(), strict=True):
            target.copy_(source)
        return self._copy.eval()

    def named(self, weights: list[Tensor]) -> dict[str, Tensor]:
        return dict(zip(self.names, weights, strict=True))

    @torch.no_grad()
    def load(self, weights: list[Tensor], saved: Mapping[str, Tensor]) -> None:
        if set(saved) != set(self.names) or any(
            saved[name].shape != w.shape for name, w in self.named(weights).items()
        ):
            raise UserError(
                "the saved weight average does not fit the model's parameters; use a checkpoint of the same model."
            )
        torch._foreach_copy_(weights, [saved[name].to(weights[0].device) for name in self.names])


class Averages:
    """Exponential averages of the weights for a list of decays β: w̄ <- β w̄ + (1-β) w, w̄_0 = w_0 (PAPER §1).

    One fused call per decay and step, no loop over parameters in Python. The averages are kept in
    float32 even if the weights are bfloat16 or float16 (there, (1-β) of a weight would round away).

    Raises UserError if a decay is not in (0, 1) or is listed twice.
    """

    def __init__(self, model: nn.Module, decays: Sequence[float]) -> None:
        for decay in decays:
            if not 0 < decay < 1:
                raise UserError(f"the EMA decay {decay} is not between 0 and 1; use a value such as 0.999.")
        if len(set(decays)) != len(decays):
            raise UserError(f"an EMA decay is listed twice in {list(decays)}; list each one once.")
        self.decays = tuple(decays)
        self._shadow = _Shadow(model)
        self._weights = [self._shadow.fresh() for _ in self.decays]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the current weights; call once after every optimizer step."""
        if not self.decays:
            return
        current = self._shadow.current()
        for decay, weights in zip(self.decays, self._weights, strict=True):
            torch._foreach_lerp_(weights, current, 1.0 - decay)

    def weights(self, decay: float) -> list[Tensor]:
        """Return the averaged weights themselves, in the order of `model.parameters()`."""
        return self._weights[self.decays.index(decay)]

    def are_of(self, model: nn.Module) -> bool:
        """Whether what is averaged are the model's parameters, the objects themselves."""
        return [id(p) for p in model.parameters()] == [id(p) for p in self._shadow.parameters]

    def model_for(self, decay: float) -> nn.Module:
        """Return a model in eval mode with the averaged weights, rounded to the model's dtype.

        `requires_grad` is as in the training model, for probes of the trainable parameters. It is a separate
        copy, buffers included: re-estimating its batch norm leaves the training model
        alone. There is one copy for all decays, so the next call overwrites what this one returned; its
        buffers start each time as the training model's.
        """
        return self._shadow.view(self.weights(decay))

    def state_dict(self) -> dict[str, Any]:
        """Return {"decays": [...], "weights": [{parameter name: tensor}, ...]}; tensors are not copied."""
        return {
            "decays": list(self.decays),
            "weights": [self._shadow.named(weights) for weights in self._weights],
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore the averages. Raises UserError for other decays or another model."""
        if tuple(saved["decays"]) != self.decays:
            raise UserError(
                f"the checkpoint averages with decays {list(saved['decays'])}, this run with "
                f"{list(self.decays)}; use the same list of EMA decays."
            )
        for weights, entry in zip(self._weights, saved["weights"], strict=True):
            self._shadow.load(weights, entry)


class TailAverage:
    """Uniform average of the weights after each step from `start_step` on (Fig 23)."""

    def __init__(self, model: nn.Module, start_step: int) -> None:
        self.start_step = start_step
        self.count = 0
        self._shadow = _Shadow(model)
        self._weights = self._shadow.fresh()

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights that step `step` (counted from 0) has just produced."""
        if step >= self.start_step:
            self.count += 1
            torch._foreach_lerp_(self._weights, self._shadow.current(), 1.0 / self.count)

    def model(self) -> nn.Module:
        """Return a separate copy in eval mode with the averaged weights, as `Averages.model_for`.

        Before the first averaged step these are the weights at construction.
        """
        return self._shadow.view(self._weights)

    def state_dict(self) -> dict[str, Any]:
        """Return {"start_step", "count", "weights": {parameter name: tensor}}; tensors are not copied."""
        return {
            "start_step": self.start_step,
            "count": self.count,
            "weights": self._shadow.named(self._weights),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore the average. Raises UserError for another start or another model."""
        if saved["start_step"] != self.start_step:
            raise UserError(
                f"the checkpoint's tail average starts at step {saved['start_step']}, this run's at "
                f"{self.start_step}; use the same start."
            )
        self._shadow.load(self._weights, saved["weights"])
        self.count = int(saved["count"])


class EpochAverage(TailAverage):
    """Uniform average of the weights after each step of the present pass over the data; each pass begins it anew.

    epoch: passes made after so many steps, as a stream tells them. Where a pass ends, the average is of all of it.
    """

    def __init__(self, model: nn.Module, epoch: Callable[[int], float]) -> None:
        super().__init__(model, 0)
        self._epoch = epoch

    def update(self, step: int) -> None:
        """Take in the weights that step `step` (counted from 0) has just produced."""
        if step > 0 and int(self._epoch(step)) > int(self._epoch(step - 1)):
            self.count = 0
        super().update(step)


@contextmanager
def restored_buffers(model: nn.Module) -> Iterator[None]:
    """Give the model its buffers back afterwards, bit for bit: its batch norm can be re-estimated in between."""
    before = [buffer.clone() for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, old in zip(model.buffers(), before, strict=True):
                buffer.copy_(old)


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Replace all running statistics by averages over one pass (PAPER §1, before the EMA is evaluated).

    Each running mean and (unbiased) variance becomes the average of the batches' own, weighted by the
    number of samples in the batch, so a short last batch counts for what it holds;
    `torch.optim.swa_utils.update_bn` weights all batches alike. Deeper layers see inputs normalised by
    batch statistics, as in training, so the result depends (slightly) on how samples are batched and
    not on the order of the batches. Only batch-norm layers are in train mode during the pass. Every
    layer's mode and momentum is as before afterwards. `batches`: model inputs, samples along dimension 0.

    Returns the number of samples seen; 0 (and nothing is read) if the model tracks no statistics.

    Raises UserError if there are statistics to estimate but no samples.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        return 0
    modes = [(module, module.training) for module in model.modules()]
    momenta = [norm.momentum for norm in norms]
    statistics = [s for norm in norms for s in (norm.running_mean, norm.running_var) if s is not None]
    totals = [torch.zeros_like(s, dtype=widest_float(s.device)) for s in statistics]
    before = [s.clone() for s in statistics]
    seen = 0
    try:
        model.eval()
        for norm in norms:
            norm.train()
            norm.momentum = 1.0  # the running value is then the batch's own
        for batch in batches:
            if len(batch) == 1 and seen:
                continue  # one image alone has no variance where it has shrunk to one pixel
            model(batch)
            torch._foreach_add_(
                totals, [s.to(total.dtype) for s, total in zip(statistics, totals, strict=True)], alpha=len(batch)
            )
            seen += len(batch)
    finally:
        for module, training in modes:
            module.training = training
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        torch._foreach_copy_(statistics, before)
    if seen == 0:
        raise UserError("batch-norm statistics cannot be re-estimated from no data; give at least one batch.")
    torch._foreach_div_(totals, float(seen))
    torch._foreach_copy_(statistics, totals)
    return seen
