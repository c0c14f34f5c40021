"""Next-token prediction: the under-training regime."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from weight_decay.config.run import RunConfig
from weight_decay.config.text import TokenData
from weight_decay.data.text.files import TokenSet
from weight_decay.data.text.stream import FixedWindows, TokenStream, seen_starts, validation_starts
from weight_decay.data.text.windows import WindowIndex, hold_out_windows
from weight_decay.device.choose import autocast
from weight_decay.device.distributed import Ranks, current
from weight_decay.device.memory import in_pieces, that_fit
from weight_decay.device.traits import widest_float
from weight_decay.errors import UserError
from weight_decay.probes.eval_mode import eval_mode
from weight_decay.seeds import stream_seed
from weight_decay.tasks.regime import Batch, Regime, make_clock


@dataclass(eq=False)
class LanguageModelling:
    """Mean cross-entropy of the next token, evaluated on fixed windows.

    evaluation: named sets of fixed batches, e.g. {"train": ..., "val": ...}; each yields two (B, T).
    windows: (windows, windows at a time) -> fixed validation batches, for probes; device: where the batches are.
    ranks: the processes that share the evaluation.
    token_error: evaluate the error of the most likely next token, too.
    """

    evaluation: Mapping[str, Iterable[Batch]]
    autocast: Callable[[], AbstractContextManager[Any]]
    windows: Callable[[int, int], Iterable[Batch]]
    device: torch.device
    ranks: Ranks
    token_error: bool

    def loss(self, forward: Callable[..., Any], batch: Batch) -> Tensor:
        """Mean cross-entropy in nats per token; `forward` maps (tokens, targets) to it."""
        return forward(*batch)

    def forward(self, model: nn.Module) -> Callable[..., Any]:
        """The callable that `loss` takes, and that may be compiled."""
        return model.loss  # type: ignore[return-value]

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, Tensor]:
        """`train/loss`, `val/loss`, ... in nats per token on the fixed windows; every window weighs the same.

        With `token_error` also `train/error`, `val/error`, ...: the share of tokens that are not the likeliest.
        """
        metrics: dict[str, Tensor] = {}
        with eval_mode(model):
            for name, batches in self.evaluation.items():
                metrics[f"{name}/loss"] = self._mean(model, batches, self._summed_loss)
                if self.token_error:
                    metrics[f"{name}/error"] = self._mean(model, batches, self._summed_error)
        return metrics

    def _mean(self, model: nn.Module, batches: Iterable[Batch], summed: Callable[..., Tensor]) -> Tensor:
        device = next(model.parameters()).device
        total, windows = torch.zeros((), dtype=widest_float(device), device=device), 0
        for index, (tokens, targets) in enumerate(batches):
            windows += len(tokens)
            if index % self.ranks.count == self.ranks.rank:
                total += summed(model, tokens, targets)
        return self.ranks.sum_(total) / windows

    def _summed_loss(self, model: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of each window, added up; of parts of the batch where the memory is small."""
        most, wide = len(tokens), widest_float(tokens.device)
        # What a network does not say of itself is found out by halving.
        need = getattr(model, "bytes_at_once", None)
        at_once = most if need is None else that_fit(tokens.device, most, need(tokens.shape[1]))

        def summed(piece: slice) -> Tensor:
            with self.autocast():
                return self.forward(model)(tokens[piece], targets[piece]).to(wide) * len(tokens[piece])

        return torch.stack(list(in_pieces(summed, most, at_once, "evaluation"))).sum()

    def _summed_error(self, model: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
        """Share of wrong tokens of each window, added up; a few windows at a time, because logits are large."""
        wide = widest_float(tokens.device)

        def summed(piece: slice) -> Tensor:
            with self.autocast():
                wrong = model(tokens[piece]).argmax(-1) != targets[piece]
            return wrong.to(wide).mean(1).sum()

        most = len(tokens)
        return torch.stack(list(in_pieces(summed, most, min(most, _LOGITS_AT_A_TIME), "evaluation"))).sum()

    def reestimate(self, model: nn.Module) -> None:
        """Nothing: there is no batch norm in these models."""

    def samples(self, number: int, at_a_time: int) -> Iterable[Batch]:
        """`number` validation windows, tokens (B, T) with the next ones; fewer where evaluation has fewer."""
        return self.windows(number, min(number, at_a_time))

    def predictions(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Never called: the config refuses snapshot ensembles for text."""
        raise NotImplementedError


_LOGITS_AT_A_TIME = 4
"""Windows whose logits over the whole vocabulary are held at once."""


def load_sets(data: TokenData) -> tuple[TokenSet, TokenSet]:
    """What is trained on, cut to `train_tokens`, and what is evaluated, whole; UserError if there are fewer."""
    train, val = data.load("train"), data.load("val")
    if data.train_tokens is not None and not data.made_to_size:
        train = train.beginning(data.train_tokens)
    return train, val


def build(config: RunConfig, device: torch.device) -> Regime:
    """Text and the language-modelling task; UserError if the text cannot serve the run."""
    data, probes, ranks = config.data, config.probes, current()
    assert isinstance(data, TokenData)
    train, val = load_sets(data)
    if train.vocabulary > data.vocabulary:
        raise UserError(
            f"data.vocabulary: must be at least the {train.vocabulary} of {data.kind}, got {data.vocabulary}."
        )
    described: dict[str, Any] = {
        "name": train.name,
        "fingerprint": train.fingerprint,
        "evaluated_fingerprint": val.fingerprint,
        "split": {"train": train.split, "val": val.split},
        "train_tokens": len(train.tokens),
        "val_tokens": len(val.tokens),
    }
    pool, unseen = train, None
    if data.held_out > 0:
        pool, unseen = hold_out_windows(train, data.held_out, data.held_out_block, data.seed)
        described["split"] |= {"train": pool.split, "unseen": unseen.split}
    if config.batch_size % ranks.count:
        raise UserError(
            f"batch_size: {config.batch_size} sequences do not divide among {ranks.count} processes; "
            "choose another number of processes."
        )
    seed = stream_seed(config.seed, "data")
    stream = TokenStream(pool, data.context, config.batch_size, seed, device, data.sampling, ranks)
    clock = make_clock(config.duration, config.batch_size, stream.windows, data.context)
    # Branches go on with fresh data: the longest may begin at the run's last step.
    stream.check(clock.total_steps + max((branch.duration.steps(clock) for branch in config.branches), default=0))

    def fixed(tokens: Any, windows: int, batch: int = probes.evaluation_batch) -> FixedWindows:
        starts = validation_starts(tokens, data.context, windows, data.seed)
        return FixedWindows(tokens, starts, data.context, batch, device)

    limit = probes.evaluation_train_samples or data.evaluation_windows
    evaluation = {"val": fixed(val, data.evaluation_windows)}
    if unseen is None:
        # A training text with fewer windows, which is passed over many times, is looked at as a whole.
        evaluation = {"train": fixed(train, min(limit, WindowIndex(train, data.context).disjoint)), **evaluation}
    else:
        starts = seen_starts(stream, clock.total_steps, limit, data.seed)
        seen = FixedWindows(pool, starts, data.context, probes.evaluation_batch, device)
        evaluation = {"train": seen, "unseen": fixed(unseen, limit), **evaluation}

    def windows(number: int, at_a_time: int) -> FixedWindows:
        return fixed(val, min(number, data.evaluation_windows), min(at_a_time, data.evaluation_windows))

    precision = autocast(config.precision, device)
    task = LanguageModelling(evaluation, precision, windows, device, ranks, probes.token_error)
    return Regime(task, stream, clock, described)
