"""Files that are never half written, and that keep their date when nothing changed."""

from __future__ import annotations

import contextlib
import errno
import filecmp
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

LARGEST_TEXT = 64 << 20
"""Bytes that a summary, a config or an experiment's file may have: hundreds of times what any has had."""


def read_bounded(path: Path, largest: int = LARGEST_TEXT) -> bytes:
    """The content of a regular file of at most `largest` bytes; OSError for anything else, before it is read."""
    # A named pipe without a writer would be waited for without end.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no file", str(path))
        if found.st_size > largest:
            raise OSError(errno.EFBIG, f"it has {found.st_size} bytes, more than such a file can have", str(path))
        return file.read(largest + 1)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path` for writing; on success it takes the place of `path`.

    The content reaches the disk (fsync) before the rename. When the new content equals the old,
    `path` is left untouched, so that `make` and `git` see no change. On an exception nothing changes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        if not (path.is_file() and filecmp.cmp(temporary, path, shallow=False)):
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_if_changed(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically, unless it is there already."""
    with replacing(path) as stream:
        stream.write(content)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` on a temporary sibling of `path`, force it to disk, then rename it into place."""
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, values: Any) -> None:
    """Write JSON atomically; NaN and infinities are refused (ValueError), since they are not JSON."""
    write_text(path, json.dumps(values, indent=2, allow_nan=False) + "\n")
