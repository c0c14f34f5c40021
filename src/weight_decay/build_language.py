"""The under-training regime from its config: token windows, task, and the attention kernel in use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from weight_decay.build import Regime, autocast, image_regime, make_clock, weight_dtype
from weight_decay.config import RunConfig
from weight_decay.config_groups import ImageData
from weight_decay.config_language import GPTModel, TokenData
from weight_decay.data.token_files import load_tokens
from weight_decay.data.tokens import FixedWindows, TokenStream, hold_out_windows, seen_windows
from weight_decay.distributed import current
from weight_decay.errors import UserError
from weight_decay.models.attention import check_attention_backend, resolve_attention
from weight_decay.seeds import stream_seed
from weight_decay.tasks.language_modelling import LanguageModelling

_PROBED_AT_A_TIME = 4


def build_regime(config: RunConfig, device: torch.device) -> Regime:
    """Load the data and make the task; UserError if the data cannot serve the run."""
    if isinstance(config.data, ImageData):
        if current().count > 1:
            raise UserError(
                "torchrun: image runs train in one process each; start them without torchrun, "
                "one cell for each GPU (cell=N)."
            )
        return image_regime(config, device)
    return token_regime(config, device)


def token_regime(config: RunConfig, device: torch.device) -> Regime:
    """Text and the language-modelling task; UserError if the text cannot serve the run."""
    data, probes, ranks = config.data, config.probes, current()
    assert isinstance(data, TokenData)
    train, val = (load_tokens(data.kind, split, Path(data.root)) for split in ("train", "val"))
    if train.vocabulary > data.vocabulary:
        raise UserError(
            f"data.vocabulary: must be at least the {train.vocabulary} of {data.kind}, got {data.vocabulary}."
        )
    described: dict[str, Any] = {
        "name": train.name,
        "fingerprint": train.fingerprint,
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
    stream = TokenStream(pool, data.context, config.batch_size, seed, device, data.sampling, ranks.rank, ranks.count)
    clock = make_clock(config, stream.windows, data.context)
    # Branches go on with fresh data: the longest may begin at the run's last step.
    stream.check(clock.total_steps + max((branch.duration.steps(clock) for branch in config.branches), default=0))

    def fixed(tokens: Any, windows: int, batch: int = probes.evaluation_batch) -> FixedWindows:
        return FixedWindows(tokens, data.context, batch, windows, data.seed, device)

    limit = probes.evaluation_train_samples or data.evaluation_windows
    evaluation = {"val": fixed(val, data.evaluation_windows)}
    if unseen is None:
        evaluation = {"train": fixed(train, limit), **evaluation}
    else:
        seen = seen_windows(pool, stream, clock.total_steps, limit, data.seed, probes.evaluation_batch, device)
        evaluation = {"train": seen, "unseen": fixed(unseen, limit), **evaluation}
    windows = 0 if probes.stability_every is None else min(probes.stability_windows, data.evaluation_windows)
    stability = fixed(val, windows, min(windows, _PROBED_AT_A_TIME)) if windows else ()
    task = LanguageModelling(evaluation, autocast(config.precision, device), stability, current())
    return Regime(task, stream, clock, described)


def attention_in_use(config: RunConfig, device: torch.device) -> dict[str, Any]:
    """For summary.json: the attention kernel asked for, and the one that torch takes; empty for image models.

    Raises UserError if the kernel asked for cannot run here.
    """
    if not isinstance(config.model, GPTModel) or not isinstance(config.data, TokenData):
        return {}
    asked, head_width = config.model.attention, config.model.width // config.model.heads
    types = {"bfloat16_autocast": torch.bfloat16, "float16_autocast": torch.float16}
    dtype = types.get(config.precision.kind, weight_dtype(config.precision))
    check_attention_backend(asked, device, dtype, head_width)
    resolved = resolve_attention(asked, device, dtype, head_width, config.data.context)
    return {"attention": {"asked": asked, "resolved": resolved}}
