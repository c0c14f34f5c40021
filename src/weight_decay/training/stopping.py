"""Signals that ask a process to save and stop, from SLURM or from the keyboard."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""What asks for a stop: SLURM's end of a job, Ctrl-C, and the warnings of SLURM and submitit before a time limit."""

_received: list[int] | None = None
_at_once = False


class StopAtOnceError(Exception):
    """A stop was asked for where nobody looks at requests."""


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """Inside, a stop raises StopAtOnceError where it arrives: for long work that leaves nothing half done."""
    global _at_once
    if _received:
        raise StopAtOnceError
    _at_once = _received is not None
    try:
        yield
    finally:
        _at_once = False


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Turn STOPS into a request that the yielded function reports; nested uses share the outermost one's.

    A second Ctrl-C does not wait: it raises KeyboardInterrupt. Outside the main thread nothing is caught.
    """
    global _received
    if _received is not None:
        yield lambda: bool(_received)
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    received: list[int] = []

    def note(number: int, _: object) -> None:
        received.append(number)
        if received.count(signal.SIGINT) > 1:
            raise KeyboardInterrupt
        if _at_once:
            raise StopAtOnceError

    _received = received
    before = {number: signal.signal(number, note) for number in STOPS}
    try:
        yield lambda: bool(received)
    finally:
        _received = None
        for number, handler in before.items():
            signal.signal(number, handler)
