"""Stopping jobs that a launcher runs in other processes of this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

PATIENCE_SECONDS = 60.0


@contextlib.contextmanager
def stopping_by_exception() -> Iterator[None]:
    """Inside, SIGTERM raises KeyboardInterrupt as Ctrl-C does: a launcher that waits for others looks at no flag."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def stop_children() -> None:
    """Ask the processes that were started from here to save and end, and wait until they have.

    They are found in /proc, so on Linux only; elsewhere a terminal's Ctrl-C reaches them by itself. Who ignores to be
    asked has nothing to save: multiprocessing's tracker of resources, which ends when this process does.
    """
    if not (children := [child for child in _children() if not _ignores(child, signal.SIGTERM)]):
        return
    print("weight-decay: stopping; the runs are saving ...", file=sys.stderr, flush=True)
    for child in children:
        with contextlib.suppress(OSError):
            os.kill(child, signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while any(_is_alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)


def _children() -> list[int]:
    found = []
    for file in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in file.read_text().split()]
    return found


def _ignores(process: int, number: int) -> bool:
    """Whether a signal is nothing to it."""
    try:
        told = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False
    ignored = next(line for line in told.splitlines() if line.startswith("SigIgn:"))
    return bool(int(ignored.partition(":")[2], 16) >> (number - 1) & 1)


def _is_alive(process: int) -> bool:
    """Whether it runs; one that ended and was not yet asked for its exit code does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
