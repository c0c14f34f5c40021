"""The Jacobian norm of any network: exactly by layers where that is possible, else by samples, else estimated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from weight_decay.device.traits import traits
from weight_decay.errors import UserError
from weight_decay.probes import jacobian as probe
from weight_decay.probes.eval_mode import eval_mode
from weight_decay.probes.weights import trainable_parameters

Method = Literal["auto", "exact", "estimate"]
MOST_OUTPUTS = 1000
"""`auto` is exact up to so many outputs per sample: one backward pass for each."""


@dataclass(frozen=True)
class Jacobian:
    """‖J‖ of the outputs with respect to the trainable parameters, scalar tensors on the model's device.

    mean_square: (1/N) Σ_i ‖J_i‖_F², the paper's definition, or an unbiased estimate of it.
    mean_norm: (1/N) Σ_i ‖J_i‖_F, what the paper's code reports; None where only the square was estimated.
    per_sample_square: ‖J_i‖_F², shape (N,), in the batch's order; None where it was estimated.
    standard_error: of an estimated `mean_square`; None where it is exact, or from a single draw.
    method: "by layers", "by samples" or "estimate".
    """

    mean_square: Tensor
    mean_norm: Tensor | None
    per_sample_square: Tensor | None
    standard_error: Tensor | None
    method: Literal["by layers", "by samples", "estimate"]


def jacobian_norm(
    model: nn.Module,
    batch: Tensor | Mapping[str, Any],
    *,
    method: Method = "auto",
    draws: int = 8,
    seed: int = 0,
    samples_at_once: int = probe.DEFAULT_SAMPLES_AT_ONCE,
) -> Jacobian:
    """Norm of the Jacobian of the model's outputs with respect to its trainable parameters, in eval mode.

    batch: one batch of inputs, a tensor (N, ...) or the keyword arguments of the model, of which the tensors with N
    rows are cut by samples. The model returns (N, ...), or something with such `.logits`; all outputs of a sample
    count, those of a language model at every position.

    method:
      "exact": one backward pass for each output. All samples together where every trainable parameter is in a Conv2d,
      Linear, LayerNorm, Embedding or BatchNorm2d that is used once; otherwise one sample at a time, any network.
      "estimate": from `draws` backward passes with random signs, unbiased for `mean_square`, any network.
      "auto": exact for at most 1,000 outputs per sample, else the estimate.

    The samples must not influence one another (as in eval mode they do not, unless batch norm keeps no statistics);
    of the first two it is checked.
    Modes, gradients, buffers and the random streams are left as they were.

    Raises UserError for an empty batch, a model without trainable parameters, outputs that are not one row per sample,
    or that change with other samples.
    """
    if method not in ("auto", "exact", "estimate"):
        raise UserError(f'jacobian_norm: there is no method "{method}"; use "auto", "exact" or "estimate".')
    if draws < 1 or samples_at_once < 1:
        raise UserError("jacobian_norm: draws and samples_at_once must be at least 1.")
    if not trainable_parameters(model):
        raise UserError("jacobian_norm: the model has no trainable parameter; nothing can be measured.")
    rows = _Rows(model, batch)
    samples = torch.arange(rows.count, device=next(model.parameters()).device)
    with eval_mode(model), torch.no_grad():
        outputs, pair = rows(samples[:1]), rows(samples[:2])
    if not _alike(outputs, pair[:1]):
        raise UserError(
            "jacobian_norm: a sample's outputs change with the samples beside it, so no sample has a Jacobian of its "
            "own; let batch norm keep running statistics, or make the model deterministic in eval mode."
        )
    if method == "estimate" or (method == "auto" and outputs.shape[1] > MOST_OUTPUTS):
        return _estimate(rows, samples.split(samples_at_once), draws, seed)
    if _by_layers(rows, samples):
        norm = probe.jacobian_norm(rows, [samples], samples_at_once)
        return Jacobian(norm.mean_square, norm.mean_norm, norm.per_sample_square, None, "by layers")
    squares = torch.stack([_sample_square(rows, sample) for sample in samples.split(1)])
    return Jacobian(squares.mean(), squares.sqrt().mean(), squares, None, "by samples")


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two rows of outputs are the same but for rounding."""
    tolerance = 0.02 if one.dtype in (torch.float32, torch.float64) else 0.1
    return bool((one - other).norm() <= tolerance * one.norm()) or not bool(one.isfinite().all())


class _Rows(nn.Module):
    """The model as a function of the numbers of samples (B,) to outputs (B, D): one form for every batch."""

    def __init__(self, model: nn.Module, batch: Tensor | Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        if isinstance(batch, Tensor):
            self._positional, self._named = True, {"": batch}
        elif isinstance(batch, Mapping):
            self._positional, self._named = False, dict(batch)
        else:
            raise UserError(
                f"jacobian_norm: the batch is a {type(batch).__name__}; give the inputs alone, as one tensor (N, ...) "
                "or as the model's keyword arguments."
            )
        sizes = [len(value) for value in self._named.values() if isinstance(value, Tensor) and value.dim()]
        if not sizes or sizes[0] == 0:
            raise UserError("jacobian_norm: the batch has no samples; give at least one.")
        self.count = sizes[0]

    def forward(self, samples: Tensor) -> Tensor:
        """Outputs of the numbered samples, one flat row each."""
        chosen = {name: self._cut(value, samples) for name, value in self._named.items()}
        outputs = self.model(chosen[""]) if self._positional else self.model(**chosen)
        outputs = getattr(outputs, "logits", outputs)
        if not isinstance(outputs, Tensor) or outputs.dim() == 0 or len(outputs) != len(samples):
            shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise UserError(
                f"jacobian_norm: the model must return outputs with one row per sample, or an object with such "
                f".logits, but for {len(samples)} samples it returned {shape}."
            )
        return outputs.flatten(1) if outputs.dim() > 1 else outputs[:, None]

    def _cut(self, value: Any, samples: Tensor) -> Any:
        if not isinstance(value, Tensor) or value.dim() == 0 or len(value) != self.count:
            return value
        return value[samples.to(value.device)]


def _by_layers(rows: _Rows, samples: Tensor) -> bool:
    """Whether the layers' own formulas hold here: tried on two samples, with the same random signs both ways.

    A refusal says no; so does a layer that was given something else than one row per sample.
    """
    tried = samples[:2]

    def first(logits: Tensor) -> list[Tensor]:
        signs = torch.arange(logits.numel(), device=logits.device).reshape(logits.shape)
        return [(1.0 - 2.0 * (signs * 2654435761 >> 7 & 1)).to(logits)]

    try:
        # The probe's own passes, with one cotangent instead of one for each class.
        squares = torch.cat(probe.squares_of(rows, [tried], len(tried), first), 1)[0]
    except (UserError, IndexError, RuntimeError):
        return False
    with eval_mode(rows.model), torch.enable_grad():
        outputs = rows(tried)
        cotangent = first(outputs.detach())[0]
        expected = []
        for index in range(len(tried)):
            own = torch.zeros_like(cotangent)
            own[index] = cotangent[index]
            expected.append(_gradient_square(rows, outputs, own, retain=index + 1 < len(tried)))
    # As far as rounding allows, where products may be of TF32 too: a hook may change a layer's output by little.
    narrow = squares.dtype in (torch.bfloat16, torch.float16)
    tolerance = 0.05 if narrow else 0.002 if traits(squares.device).host else 0.01
    return torch.allclose(squares, torch.stack(expected).to(squares), rtol=tolerance)


def _gradient_square(rows: _Rows, outputs: Tensor, cotangent: Tensor, retain: bool) -> Tensor:
    """‖∇_w ⟨cotangent, outputs⟩‖² over all trainable parameters, shared ones once; float32 at least."""
    parameters = [p for p in rows.model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(outputs, parameters, cotangent, retain_graph=retain, allow_unused=True)
    kept = [g.detach() for g in gradients if g is not None]
    if not kept:
        return outputs.new_zeros(())
    wide = torch.promote_types(kept[0].dtype, torch.float32)
    return torch.stack(torch._foreach_norm(kept, 2, wide)).square().sum()


def _sample_square(rows: _Rows, sample: Tensor) -> Tensor:
    with eval_mode(rows.model), torch.enable_grad():
        outputs = rows(sample)
        total = []
        for index in range(outputs.shape[1]):
            cotangent = torch.zeros_like(outputs)
            cotangent[0, index] = 1.0
            total.append(_gradient_square(rows, outputs, cotangent, retain=index + 1 < outputs.shape[1]))
    return torch.stack(total).sum()


def _estimate(rows: _Rows, pieces: tuple[Tensor, ...], draws: int, seed: int) -> Jacobian:
    """E‖Σ_i J_iᵀ r_i‖² = Σ_i ‖J_i‖² for independent random signs r_i: one backward pass per piece and draw."""
    generator = torch.Generator(pieces[0].device).manual_seed(seed)
    totals = [torch.zeros((), device=pieces[0].device) for _ in range(draws)]
    with eval_mode(rows.model), torch.enable_grad():
        for piece in pieces:
            outputs = rows(piece)
            for draw in range(draws):
                bits = torch.randint(0, 2, outputs.shape, generator=generator, device=piece.device)
                square = _gradient_square(rows, outputs, (2 * bits - 1).to(outputs), retain=draw + 1 < draws)
                totals[draw] = totals[draw] + square
    each = torch.stack(totals) / rows.count
    error = each.std() / draws**0.5 if draws > 1 else None
    return Jacobian(each.mean(), None, None, error, "estimate")
