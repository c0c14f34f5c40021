"""Checkpoints made beside the training: copied in the loop, written and hashed in a thread."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from weight_decay.device.memory import copy_on_host
from weight_decay.training import checkpoint


class Saver:
    """Saves the checkpoints of a stretch in the order they are given, one at a time; leaving the context waits.

    The loop stops only while the state is copied to the host's memory, and, where the disk is slower than the interval,
    until the checkpoint before is written. What goes wrong with a file is raised by the next call.
    """

    def __init__(self, folder: Path, keep: int, owner: checkpoint.Owner) -> None:
        self._folder, self._keep, self._owner = folder, keep, owner
        self._writer: ThreadPoolExecutor | None = None
        self._pending: Future[Path] | None = None

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Copy `state` and begin to write it as the checkpoint of `step`."""
        self._finish()
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        copied = copy_on_host(state)
        self._pending = self._writer.submit(checkpoint.save, self._folder, step, copied, self._keep, self._owner)

    def check(self) -> None:
        """Raise what went wrong with the last checkpoint, if that is known by now."""
        if self._pending is not None and self._pending.done():
            self._finish()

    def _finish(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            # Also after an error: nobody may write into the folder once its lock is gone.
            writer.shutdown(wait=True)
        if kind is None:
            self._finish()
