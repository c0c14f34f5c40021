"""GPT-2 of the under-training experiments (Figs 6-8 and 19-26)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weight_decay.config.groups import ModelConfig, PrecisionConfig
from weight_decay.config.registry import MODELS
from weight_decay.config.schema import off, require
from weight_decay.config.text import TokenData
from weight_decay.device.choose import multiplied_in
from weight_decay.errors import UserError
from weight_decay.models.attention import (
    BACKENDS,
    AttentionBackend,
    CausalSelfAttention,
    Taps,
    attention_kernel,
    attention_problem,
    check_attention_backend,
    resolve_attention,
)
from weight_decay.models.initialise import fill_normal
from weight_decay.models.linear_cross_entropy import chunk_rows, linear_cross_entropy

INITIAL_STD = 0.02


class MLP(nn.Module):
    """Linear to four times the width, exact GELU, linear back: (B, T, width) to (B, T, width)."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.expansion = nn.Linear(width, 4 * width, bias=bias)
        self.projection = nn.Linear(4 * width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the two layers to `x` (B, T, width)."""
        return self.projection(F.gelu(self.expansion(x)))


class Block(nn.Module):
    """Pre-norm transformer block: attention, then MLP, each added to the residual stream (B, T, width)."""

    def __init__(self, width: int, heads: int, bias: bool, qk_norm: bool) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, bias=bias)
        self.attention = CausalSelfAttention(width, heads, bias, qk_norm)
        self.mlp_norm = nn.LayerNorm(width, bias=bias)
        self.mlp = MLP(width, bias)

    def forward(self, x: Tensor, taps: Taps | None) -> Tensor:
        """Return the residual stream after this block."""
        x = x + self.attention(self.attention_norm(x), taps)
        if taps is not None:
            taps.see_residual(x)
        x = x + self.mlp(self.mlp_norm(x))
        if taps is not None:
            taps.see_residual(x)
        return x


@dataclass(frozen=True)
class Sizes:
    """How large a GPT is: layers, heads that divide the width, longest sequence in tokens, number of logits.

    Raises UserError for a size below 1, or a number of heads that does not divide the width.
    """

    layers: int
    heads: int
    width: int
    context: int
    vocabulary: int

    def __post_init__(self) -> None:
        for name, size in vars(self).items():
            if size < 1:
                raise UserError(f"gpt: {name} must be at least 1, not {size}.")
        if self.width % self.heads:
            raise UserError(f"gpt: width {self.width} is not a multiple of heads {self.heads}.")


class GPT(nn.Module):
    """GPT-2 with learned positions and, as in the paper, tied embeddings and no biases.

    GPT-2-Small (12 layers, 12 heads, width 768, vocabulary 50,304) has 123,783,936 parameters at context 256
    and 124,373,760 at 1024, and starts at ‖w‖ ≈ 235. The 774M model is 36 layers, 20 heads, width 1280.

    Parameter names, for decay rules: `token_embedding.weight`, `position_embedding.weight`,
    `blocks.<i>.attention_norm`, `.attention.qkv`, `.attention.projection`, `.mlp_norm`, `.mlp.expansion`,
    `.mlp.projection`, `final_norm`, with `qk_norm` also `.attention.query_norm` and `.attention.key_norm`,
    and, only when not tied, `head.weight`. Every norm has `norm` in its name.

    Args:
        sizes: of the transformer and its tables.
        bias: biases in linear layers and norms (the original GPT-2 has them, the paper does not).
        tied: the output layer is the token embedding.
        qk_norm: LayerNorm on queries and keys of each head.
        attention: kernel of `scaled_dot_product_attention`; `auto` leaves the choice to torch.
        scale_residual_init: divide the standard deviation of the two projections into the residual stream by
            √(2·layers), as the released code does.
        init_std: standard deviation of all other weights at the start.

    Raises:
        UserError: an unknown backend.
    """

    def __init__(
        self,
        sizes: Sizes,
        bias: bool = False,
        tied: bool = True,
        qk_norm: bool = False,
        attention: AttentionBackend = "auto",
        scale_residual_init: bool = True,
        init_std: float = INITIAL_STD,
    ) -> None:
        super().__init__()
        width = sizes.width
        if attention not in ("auto", *BACKENDS):
            choices = ", ".join(("auto", *BACKENDS))
            raise UserError(f"gpt: unknown attention backend {attention!r}; choose one of {choices}.")
        self.context = sizes.context
        self.attention: AttentionBackend = attention
        self.scale_residual_init = scale_residual_init
        self.init_std = init_std
        self._head_width = width // sizes.heads
        self._taps: Taps | None = None

        self.token_embedding = nn.Embedding(sizes.vocabulary, width)
        self.position_embedding = nn.Embedding(sizes.context, width)
        self.blocks = nn.ModuleList(Block(width, sizes.heads, bias, qk_norm) for _ in range(sizes.layers))
        self.final_norm = nn.LayerNorm(width, bias=bias)
        self.head = None if tied else nn.Linear(width, sizes.vocabulary, bias=False)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Set every parameter, drawing from `generator` only: weights N(0, std²), norm scales 1, biases 0."""
        residual_std = self.init_std
        if self.scale_residual_init:
            residual_std /= math.sqrt(2 * len(self.blocks))
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                std = residual_std if name.endswith(".projection") else self.init_std
                fill_normal(module.weight, std, generator)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()

    def forward(self, tokens: Tensor) -> Tensor:
        """Map int64 tokens (B, T), T at most `context`, to next-token logits (B, T, vocabulary).

        Raises:
            UserError: T is above `context`, or the attention backend cannot run on this device and type.
        """
        logits = F.linear(self._final_stream(tokens), self._output_weight())
        if self._taps is not None:
            self._taps.see_output_logits(logits)
        return logits

    def loss(self, tokens: Tensor, targets: Tensor, chunk: int | None = None) -> Tensor:
        """Return the mean next-token cross-entropy in nats, a 0-dimensional float32 (or float64) tensor.

        With `chunk` rows (of the B·T) at a time, logits of the whole batch never exist; `chunk=None` chooses
        the number of rows by the size of the vocabulary, and small batches take the plain path in one piece.
        The chunked path has no second derivative: take `forward` for Hessian products.

        Args:
            tokens: (B, T) int64.
            targets: (B, T) int64, the token after each.
            chunk: rows at a time, at least 1.

        Raises:
            UserError: as `forward`, or `chunk` is below 1.
        """
        rows = tokens.numel()
        weight = self._output_weight()
        if chunk is None:
            chunk = chunk_rows(rows, weight.shape[0], tokens.device)
        if chunk < 1:
            raise UserError(f"gpt: the loss's chunk must be at least 1 row, not {chunk}.")
        if chunk < rows:
            hidden = self._final_stream(tokens).flatten(0, 1)
            return linear_cross_entropy(hidden, weight, targets.flatten(), chunk)
        logits = self(tokens).flatten(0, 1)
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        return F.cross_entropy(logits, targets.flatten())

    def bytes_at_once(self, length: int) -> float:
        """About the memory that the forward pass of one sequence of `length` tokens needs, without a backward pass."""
        width = self.token_embedding.embedding_dim
        heads = width // self._head_width
        # The MLP's inner layer before and after its GELU; with math attention also the scores, twice, in float32.
        scores = 8.0 * heads * length**2 if self.attention == "math" else 0.0
        return 4.0 * 10 * width * length + scores

    @contextmanager
    def taps(self) -> Iterator[Taps]:
        """Measure attention logits, residual stream and output logits in the passes made inside the context.

        Usage: `with model.taps() as taps: model(tokens)`, then read `taps.max_attention_logit` and the
        others. For probes only: the attention logits are computed once more, one sequence at a time, and
        nothing of it is recorded for gradients. Call the model itself, not a compiled copy.
        """
        self._taps = Taps()
        try:
            yield self._taps
        finally:
            self._taps = None

    def _output_weight(self) -> Tensor:
        return self.token_embedding.weight if self.head is None else self.head.weight

    def _final_stream(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        if length > self.context:
            raise UserError(f"gpt: a sequence of {length} tokens is longer than the model's context {self.context}.")
        # Slicing the table is the look-up of positions 0 … T-1, and needs no index tensor.
        x = self.token_embedding(tokens) + self.position_embedding.weight[:length]
        if self._taps is not None:
            self._taps.see_residual(x)
        try:
            with attention_kernel(self.attention):
                for block in self.blocks:
                    x = block(x, self._taps)
        except RuntimeError:
            device = x.device.type
            dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
            check_attention_backend(self.attention, x.device, dtype, self._head_width)
            raise
        return self.final_norm(x)


@MODELS.add("gpt")
@dataclass(frozen=True)
class GPTModel(ModelConfig):
    """GPT-2 as in the paper: no biases; context and vocabulary come from the data.

    tied: the output layer is the token embedding, as in the paper; false: a matrix of its own.
    initial_scale: factor on the standard deviation of every initial weight.
    """

    layers: int
    heads: int
    width: int
    qk_norm: bool
    attention: AttentionBackend
    tied: bool = field(metadata=off(True))
    initial_scale: float = field(metadata=off(1.0))
    regime: ClassVar[str] = "under_training"

    def __post_init__(self) -> None:
        for name, most in (("layers", 10**3), ("heads", 10**6), ("width", 10**6)):
            size = getattr(self, name)
            require(0 < size <= most, f"{name}: must be from 1 to {most:,}, got {size}")
        require(
            self.width % self.heads == 0,
            f"width: must be a multiple of heads, got {self.width} and {self.heads}",
        )
        require(self.initial_scale > 0, f"initial_scale: must be positive, got {self.initial_scale:g}")

    def build(self, data: TokenData) -> GPT:
        """The network for the context and vocabulary of `data`."""
        return GPT(
            Sizes(self.layers, self.heads, self.width, data.context, data.vocabulary),
            tied=self.tied,
            qk_norm=self.qk_norm,
            attention=self.attention,
            init_std=INITIAL_STD * self.initial_scale,
        )

    def forward_operations(self, data: TokenData) -> float:
        """Products with the matrices of blocks and head, scores and weighed values; nothing off for the causal mask."""
        matrices = 12 * self.layers * self.width**2 + data.vocabulary * self.width
        return 2.0 * data.context * matrices + 4.0 * self.layers * data.context**2 * self.width

    def impossible_on(self, kind: str, precision: PrecisionConfig) -> str | None:
        """An attention kernel that this kind of device does not have."""
        problem = attention_problem(self.attention, kind, multiplied_in(precision))
        return None if problem is None else f"{problem}; choose model.attention=auto, math or efficient"

    def kernels(self, data: TokenData, precision: PrecisionConfig, device: torch.device) -> dict[str, Any]:
        """The attention kernel asked for, and the one that torch takes; UserError if the one asked for cannot run."""
        head_width, dtype = self.width // self.heads, multiplied_in(precision)
        check_attention_backend(self.attention, device, dtype, head_width)
        resolved = resolve_attention(self.attention, device, dtype, head_width, data.context)
        return {"attention": {"asked": self.attention, "resolved": resolved}}
