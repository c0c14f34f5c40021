"""The device of a run and the number formats it computes in."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from weight_decay.config.groups import PrecisionConfig
from weight_decay.config.run import RunConfig
from weight_decay.device.distributed import launched_together, local_rank
from weight_decay.errors import UserError


def choose_device(config: RunConfig) -> torch.device:
    """The device of a run; UserError if a GPU is asked for and there is none."""
    wanted = config.execution.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("execution.device: cuda was asked for, but torch sees no GPU here; use cpu or auto.")
    cuda = wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available())
    if cuda and launched_together():
        return torch.device("cuda", local_rank())
    return torch.device("cuda" if cuda else "cpu")


def apply_precision(precision: PrecisionConfig) -> None:
    """Set torch's process-wide switches: "float32" means true float32, also on GPUs that would use TF32."""
    tf32 = precision.kind != "float32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32


def autocast(precision: PrecisionConfig, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """A factory of the context in which losses are computed."""
    dtype = {"bfloat16_autocast": torch.bfloat16, "float16_autocast": torch.float16}.get(precision.kind)
    if dtype is None:
        return contextlib.nullcontext
    return functools.partial(torch.autocast, device.type, dtype=dtype)


def weight_dtype(precision: PrecisionConfig) -> torch.dtype:
    """The dtype of the weights themselves."""
    return torch.bfloat16 if precision.kind == "bfloat16" else torch.float32
