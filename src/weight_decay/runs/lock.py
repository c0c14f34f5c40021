"""Who works on a run's folder: one process at a time, whatever happens to it."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from weight_decay.errors import UserError


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Hold the folder's lock; the operating system drops it when the process dies, however it dies.

    False if another process holds it. On NFS, Linux passes the lock on to the server, so that it also holds between
    machines. UserError if the folder cannot be written or its file system has no locks.
    """
    path = folder / "run.lock"
    with _locked(path) as file:
        # `status` looks at the lock for an instant, so one refusal is not yet an owner.
        for wait in (0.0, 0.02, 0.05):
            time.sleep(wait)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                continue
            except OSError as error:
                raise UserError(
                    f"execution.results: the file system of {folder} has no locks ({error.strerror}), so two sweeps "
                    "could run a cell twice; mount it with locks (Lustre: -o flock), or choose another folder."
                ) from None
        else:
            yield False
            return
        # Somebody may have put the folder aside between our opening the file and our locking it.
        try:
            same = os.fstat(file.fileno()).st_ino == path.stat().st_ino
        except FileNotFoundError:
            same = False
        if not same:
            yield False
            return
        for leftover in [*folder.glob(".*.tmp"), *(folder / "checkpoints").glob(".*.tmp")]:
            leftover.unlink(missing_ok=True)
        yield True


def _locked(path: Path) -> IO[str]:
    try:
        return path.open("a")
    except OSError as error:
        raise UserError(
            f"execution.results: cannot write in {path.parent} ({error.strerror}); "
            "make it writable, or choose another folder."
        ) from None
