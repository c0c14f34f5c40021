"""Several processes training one model together (torchrun): who I am, and what the processes agree on.

Like torch.distributed itself this is state of the process: `join` once at the start, `current` from anywhere. One
process alone is rank 0 of 1, for which everything here costs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from weight_decay.device.traits import traits

_LOST = ("connection closed", "connection reset", "broken pipe", "timed out", "gloo", "nccl", "socket", "peer")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together: `rank` of `count`; rank 0 alone writes files and talks."""

    rank: int = 0
    count: int = 1

    @property
    def writes(self) -> bool:
        """Whether this is the process that writes files, shows progress and mirrors to W&B."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace the tensor by its sum over all processes."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; all must ask at the same point."""
        # A CPU tensor travels by gloo also on GPUs: the host does not wait for the device.
        return (self.count > 1 and self.sum_(torch.tensor(int(flag))).item() > 0) or flag

    def agree(self, value: int) -> int:
        """The value that rank 0 has."""
        if self.count == 1:
            return value
        shared = torch.tensor(value)
        dist.broadcast(shared, 0)
        return int(shared.item())


def current() -> Ranks:
    """The rank of this process; (0, 1) outside `join`."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return Ranks()


def launched_together() -> bool:
    """Whether torchrun, or SLURM (see `ranks.meet_tasks_of_job`), started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def local_rank() -> int:
    """Which of this machine's processes, and so which of its GPUs, this is."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def device_of_rank() -> int:
    """The index of this process's device; 0 also where the cluster shows each process only its own."""
    return local_rank() % max(1, torch.accelerator.device_count())


@contextmanager
def join(timeout_seconds: float = 1800.0) -> Iterator[Ranks]:
    """Meet the other processes that were started with this one: gloo between CPUs, NCCL between GPUs."""
    if not launched_together():
        yield Ranks()
        return
    backend = "gloo"
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None and (sender := traits(accelerator).ranks) is not None:
        torch.accelerator.set_device_index(device_of_rank())
        backend = f"cpu:gloo,{accelerator.type}:{sender}"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_seconds))
    try:
        yield current()
    finally:
        dist.destroy_process_group()


def lost_contact(error: Exception) -> bool:
    """Whether the error means that another process is gone, rather than that something is wrong here."""
    if current().count == 1:
        return False
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _LOST)
    )
