"""The device of a run, the number formats it computes in, and what each of several processes of one job takes."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch

from weight_decay.config.execution import ExecutionConfig
from weight_decay.config.groups import PrecisionConfig
from weight_decay.device.distributed import device_of_rank, launched_together
from weight_decay.device.traits import traits
from weight_decay.errors import UserError


def accelerator() -> str | None:
    """The kind of accelerator that torch sees here ("cuda", "xpu", "mps", ...), None if there is none."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return None if found is None else found.type


def choose_device(execution: ExecutionConfig, precision: PrecisionConfig) -> torch.device:
    """The device of a run: `auto` is the accelerator of this machine if it computes in double precision.

    Raises UserError if a device is asked for that is not there, or that cannot compute in the precision asked for.
    """
    wanted, here = execution.device, accelerator()
    if wanted not in ("auto", "cpu", here):
        there = "no accelerator" if here is None else f"only {here}"
        raise UserError(
            f"execution.device: {wanted} was asked for, but torch sees {there} here; use {here or 'cpu'} or auto."
        )
    kind = wanted if wanted != "auto" else here
    if kind is None or (wanted == "auto" and not traits(torch.device(kind)).float64):
        kind = "cpu"
    device = torch.device(kind)
    half = multiplied_in(precision)
    if half.itemsize == 2 and half not in traits(device).half:
        raise UserError(
            f"precision: {kind} does not compute in {precision.kind}; choose precision=float32, or another "
            "execution.device."
        )
    if launched_together() and kind != "cpu":
        return torch.device(kind, device_of_rank())
    return device


def apply_precision(precision: PrecisionConfig) -> None:
    """Set torch's process-wide switches: "float32" means true float32, also on GPUs that would use TF32."""
    tf32 = precision.kind != "float32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32


def _autocast_type(precision: PrecisionConfig) -> torch.dtype | None:
    return {"bfloat16_autocast": torch.bfloat16, "float16_autocast": torch.float16}.get(precision.kind)


def autocast(precision: PrecisionConfig, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """A factory of the context in which losses are computed."""
    dtype = _autocast_type(precision)
    if dtype is None:
        return contextlib.nullcontext
    return functools.partial(torch.autocast, device.type, dtype=dtype)


def weight_dtype(precision: PrecisionConfig) -> torch.dtype:
    """The dtype of the weights themselves."""
    return torch.bfloat16 if precision.kind == "bfloat16" else torch.float32


def multiplied_in(precision: PrecisionConfig) -> torch.dtype:
    """The dtype that matrices are multiplied in, and attention computed in."""
    return _autocast_type(precision) or weight_dtype(precision)


def device_description(device: torch.device) -> str:
    """The device in words: the GPU's name, or the processor's architecture and the number of threads."""
    if device.type == "cpu":
        return f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)"
    name = getattr(torch.get_device_module(device), "get_device_name", None)
    return device.type if name is None else str(name(device))


@contextlib.contextmanager
def environment_of_worker(position: int, threads: int) -> Iterator[None]:
    """What a process started inside finds in its environment: its threads, and its own one of several devices.

    Without it all workers of a job would take the first device. More workers than devices share them in turn.
    """
    # The BLAS libraries read this when the process imports them.
    own = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), **_device_of_worker(position)}
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _device_of_worker(position: int) -> dict[str, str]:
    """The variable that shows a process only its device; nothing where there is no choice."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    variable = None if accelerator is None else traits(accelerator).chosen_by
    if variable is None:
        return {}
    # SLURM names the devices of a job; without it they are all of the machine's.
    named = [device for device in os.environ.get(variable, "").split(",") if device]
    devices = named or [str(index) for index in range(torch.accelerator.device_count())]
    return {variable: devices[position % len(devices)]} if devices else {}
