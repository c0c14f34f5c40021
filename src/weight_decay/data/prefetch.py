"""The batches of the next steps, read by a thread while the device computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

_STEPS_AHEAD = 2
_Batch = TypeVar("_Batch")


class Prefetcher(Generic[_Batch]):
    """Builds batches in a thread of its own. Only a cache keyed by step: any step may be asked for, some are slower."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ahead: dict[int, Future[_Batch]] = {}

    def __call__(self, step: int, build: Callable[[int], _Batch]) -> _Batch:
        """What `build` makes of `step`; those of the next steps are begun."""
        # `build` is not kept: it is the stream's own method, and a circle would keep the stream's data alive.
        wanted = range(step, step + 1 + _STEPS_AHEAD)
        for stale in [key for key in self._ahead if key not in wanted]:
            self._ahead.pop(stale).cancel()
        for key in wanted:
            if key not in self._ahead:
                self._ahead[key] = self._thread.submit(build, key)
        return self._ahead.pop(step).result()
