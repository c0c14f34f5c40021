"""Causal self-attention with an explicit choice of kernel, and what a stability probe reads from it."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from weight_decay.errors import UserError

AttentionBackend = Literal["auto", "math", "efficient", "flash", "cudnn"]

BACKENDS: dict[str, SDPBackend] = {
    "math": SDPBackend.MATH,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}


_UNSEEN = torch.tensor(math.nan)


def _largest(before: Tensor, values: Tensor) -> Tensor:
    found = values.abs().max()
    return found if before is _UNSEEN else torch.maximum(before, found)


class Taps:
    """Largest magnitudes seen in the passes of a probe, as 0-dimensional tensors on the model's device.

    - `max_attention_logit`: of q·k/√d over all layers, heads and causal pairs (before the softmax);
    - `max_residual`: of the residual stream, after the embedding and after every attention and MLP sum;
    - `max_output_logit`: of the logits, where the pass computed them.

    Each is NaN until a pass has measured it.
    """

    def __init__(self) -> None:
        self.max_attention_logit = self.max_residual = self.max_output_logit = _UNSEEN

    @torch.no_grad()
    def see_residual(self, stream: Tensor) -> None:
        """Take in a residual stream of any shape."""
        self.max_residual = _largest(self.max_residual, stream)

    @torch.no_grad()
    def see_output_logits(self, logits: Tensor) -> None:
        """Take in output logits of any shape."""
        self.max_output_logit = _largest(self.max_output_logit, logits)

    @torch.no_grad()
    def see_queries_and_keys(self, queries: Tensor, keys: Tensor) -> None:
        """Take in queries and keys, both (B, heads, T, d)."""
        # One sequence at a time: the (B, heads, T, T) logits of a whole batch need not fit in memory.
        for query, key in zip(queries, keys, strict=True):
            with torch.autocast(query.device.type, enabled=False):
                if query.dtype in (torch.float16, torch.bfloat16):
                    query, key = query.float(), key.float()
                logits = (query @ key.transpose(-2, -1)) / math.sqrt(query.shape[-1])
            self.max_attention_logit = _largest(self.max_attention_logit, logits.tril())


class CausalSelfAttention(nn.Module):
    """Multi-head causal self-attention, (B, T, width) to (B, T, width).

    With `qk_norm`, queries and keys pass through a LayerNorm over each head's channels (one learnable scale
    shared by the heads), so that attention logits no longer depend on the scale of the query and key weights.
    """

    def __init__(self, width: int, heads: int, bias: bool, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.projection = nn.Linear(width, width, bias=bias)
        self.query_norm: nn.LayerNorm | None = None
        self.key_norm: nn.LayerNorm | None = None
        if qk_norm:
            self.query_norm = nn.LayerNorm(width // heads, bias=bias)
            self.key_norm = nn.LayerNorm(width // heads, bias=bias)

    def forward(self, x: Tensor, taps: Taps | None) -> Tensor:
        """Attend within each sequence of `x` (B, T, width) to the same and earlier positions."""
        batch, length, width = x.shape
        shape = (batch, length, self.heads, width // self.heads)
        query, key, value = (part.view(shape).transpose(1, 2) for part in self.qkv(x).split(width, 2))
        if self.query_norm is not None and self.key_norm is not None:
            # LayerNorm returns float32 under autocast; the kernels want one type for all three.
            query = self.query_norm(query).to(value.dtype)
            key = self.key_norm(key).to(value.dtype)
        if taps is not None:
            taps.see_queries_and_keys(query, key)
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.projection(out.transpose(1, 2).reshape(batch, length, width))


def attention_kernel(backend: AttentionBackend) -> AbstractContextManager[None]:
    """Return the context in which `scaled_dot_product_attention` uses `backend` and nothing else."""
    return nullcontext() if backend == "auto" else sdpa_kernel(BACKENDS[backend])


def attention_problem(backend: AttentionBackend, kind: str, dtype: torch.dtype) -> str | None:
    """Why no kernel of this name can exist on a kind of device, known without trying; None if one may."""
    if kind == "cpu":
        return "there is no cudnn on a CPU" if backend == "cudnn" else None
    if backend in ("flash", "cudnn") and dtype.itemsize > 2:
        return f"{backend} attention multiplies in 16 bits, and these matrices are {str(dtype).removeprefix('torch.')}"
    return None


def check_attention_backend(
    backend: AttentionBackend, device: torch.device, dtype: torch.dtype, head_width: int
) -> None:
    """Run `backend` forward and backward once on a few numbers.

    Args:
        backend: the kernel to try; `auto` always passes.
        device: where the model will run.
        dtype: type of the queries (the autocast type under autocast).
        head_width: channels per head.

    Raises:
        UserError: the backend cannot run on this device with this type and head width.
    """
    if backend == "auto":
        return
    sample = torch.zeros(1, 1, 8, head_width, device=device, dtype=dtype, requires_grad=True)
    try:
        with torch.enable_grad(), attention_kernel(backend):
            F.scaled_dot_product_attention(sample, sample, sample, is_causal=True).sum().backward()
    except RuntimeError as error:
        type_name = str(dtype).removeprefix("torch.")
        raise UserError(
            f"gpt: attention backend {backend!r} cannot run on {device} with {type_name} "
            f"and {head_width} channels per head; use attention=auto or attention=math."
        ) from error


def resolve_attention(
    backend: AttentionBackend, device: torch.device, dtype: torch.dtype, head_width: int, length: int
) -> str:
    """The name of the kernel that torch takes for causal attention over `length` positions: `auto` resolved."""
    if backend != "auto":
        return backend
    sample = torch.zeros(1, 1, length, head_width, device=device, dtype=dtype, requires_grad=True)
    chosen = SDPBackend(torch._fused_sdp_choice(sample, sample, sample, is_causal=True))
    return next((name for name, known in BACKENDS.items() if known == chosen), chosen.name.lower())
