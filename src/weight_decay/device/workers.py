"""Several processes of one job: which threads and which of the machine's devices each of them takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from weight_decay.device.traits import traits


@contextmanager
def environment_of_worker(position: int, threads: int) -> Iterator[None]:
    """What a process started inside finds in its environment: its threads, and its own one of several devices.

    Without it all workers of a job would take the first device. More workers than devices share them in turn.
    """
    # The BLAS libraries read this when the process imports them.
    own = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), **_device(position)}
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _device(position: int) -> dict[str, str]:
    """The variable that shows a process only its device; nothing where there is no choice."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    variable = None if accelerator is None else traits(accelerator).chosen_by
    if variable is None:
        return {}
    # SLURM names the devices of a job; without it they are all of the machine's.
    named = [device for device in os.environ.get(variable, "").split(",") if device]
    devices = named or [str(index) for index in range(torch.accelerator.device_count())]
    return {variable: devices[position % len(devices)]} if devices else {}
