"""The clock of the benchmarks."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that one call takes: of one thread on a CPU its own, which others do not use; else the device's too."""
    clock = clock_of(device)
    _synchronise(device)
    started = clock()
    work()
    _synchronise(device)
    return clock() - started


def clock_of(device: torch.device) -> Callable[[], float]:
    """On a CPU that others may be using too, what counts is the time of this process, if it has one thread."""
    return time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def _synchronise(device: torch.device) -> None:
    """Wait for what the device still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize()
