"""Who works on a run's folder: one process at a time, whatever happens to it.

The lock is the operating system's (flock), so a lock file that a dead process left, or that was copied from another
machine, blocks nobody. The file also names its holder. Where the lock does not reach (the file was deleted, or the file
system keeps locks to each machine), a second owner writes another name, and the first finds out before it next saves.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from weight_decay.errors import UserError
from weight_decay.runs.files import read_bounded

NAME = "run.lock"
_held: dict[Path, tuple[IO[bytes], bytes]] = {}
"""The folders that this process holds, with the open lock file and what it wrote there."""


class LostFolderError(UserError):
    """Another process has taken the folder that this one holds: nothing may be written to it any more."""


def take(file: IO[Any], wait: bool = False, shared: bool = False) -> bool:
    """Lock an open file until it is closed; False if another process holds it, True at once or after waiting for it.

    The operating system drops the lock with the process, so a kill blocks nobody. OSError where there are no locks.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Hold the folder's lock; the operating system drops it when the process dies, however it dies.

    False if another process holds it. On NFS, Linux passes the lock on to the server, so that it also holds between
    machines. UserError if the folder cannot be written or its file system has no locks.
    """
    path = folder / NAME
    with _opened(path) as file:
        # `status` looks at the lock for an instant, so one refusal is not yet an owner.
        for wait in (0.0, 0.02, 0.05):
            time.sleep(wait)
            try:
                if take(file):
                    break
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
        key, name = folder.resolve(), _sign(file)
        for leftover in [*folder.glob(".*.tmp"), *(folder / "checkpoints").glob(".*.tmp")]:
            leftover.unlink(missing_ok=True)
        _held[key] = (file, name)
        try:
            yield True
        finally:
            del _held[key]


def confirm(path: Path) -> None:
    """Call before saving at or below `path`: LostFolderError if its folder has another owner by now.

    Only of a folder that this process holds; a lock file that was merely deleted is made again.
    """
    place = path.resolve()
    folder = next((parent for parent in (place, *place.parents) if parent in _held), None)
    if folder is None:
        return
    file, name = _held[folder]
    lock = folder / NAME
    try:
        if lock.stat().st_ino == os.fstat(file.fileno()).st_ino and _read(lock) == name:
            return
    except FileNotFoundError:
        if _made_again(folder, lock):
            return
    except OSError:
        return  # a file server that does not answer takes nobody's place; the saving itself will tell
    raise LostFolderError(
        f"{folder} has another owner by now ({_owner(lock)}), because its {NAME} was deleted or the file system keeps "
        "locks to each machine; this process stops before it saves, and the other one goes on."
    )


def _made_again(folder: Path, lock: Path) -> bool:
    """Whether the lock file, which somebody had deleted, is there again and ours; False if another was faster."""
    try:
        file = os.fdopen(os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644), "r+b", buffering=0)
        if not take(file):
            return False
    except FileNotFoundError:
        return True  # the whole folder is gone, or renamed: there is nothing to have an owner
    except OSError:
        return False
    # The old file, without a name by now, stays open to the end of `claimed`.
    _held[folder] = (file, _sign(file))
    return True


def _sign(file: IO[bytes]) -> bytes:
    """Write who holds the lock; returns what was written, which is nothing on a full disk."""
    name = f"{os.uname().nodename} {os.getpid()} {secrets.token_hex(8)}\n".encode()
    try:
        file.truncate(0)
        file.seek(0)
        if file.write(name) == len(name):
            return name
    except OSError:
        pass
    file.truncate(0)
    return b""


def _read(lock: Path) -> bytes:
    """What a lock file says; no more of it than any process writes."""
    return read_bounded(lock, 4096)


def _owner(lock: Path) -> str:
    try:
        words = _read(lock).decode(errors="replace").split()
    except OSError:
        words = []
    return f"process {words[1]} on {words[0]}" if len(words) == 3 else "its lock file does not say which"


def _opened(path: Path) -> IO[bytes]:
    try:
        # Neither through a link nor to a device: what is written here must not land anywhere else.
        return os.fdopen(
            os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644), "r+b", buffering=0
        )
    except OSError as error:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise UserError(f"execution.results: {path} is no file of its own; delete it.") from None
        raise UserError(
            f"execution.results: cannot write in {path.parent} ({error.strerror}); "
            "make it writable, or choose another folder."
        ) from None
