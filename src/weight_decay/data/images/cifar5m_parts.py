"""Reading CIFAR-5m's npz parts: checked headers and streamed arrays, without loading 3 GB.

A part is `part{0..5}.npz` (or `cifar5m_part{0..5}.npz`) with `X` uint8 (rows, size, size, 3) and `Y`
integer labels (rows,), compressed or not.
"""

from __future__ import annotations

import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from weight_decay.errors import UserError

PARTS = 6
CLASSES = 10
DAMAGE = (
    zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, OSError, OverflowError, MemoryError,
    # NumPy reads an array's header with Python's own tokenizer and parser.
    tokenize.TokenError, SyntaxError, RecursionError, TypeError, KeyError, RuntimeError, struct.error,
)  # fmt: skip
"""What zipfile and NumPy raise on an archive of arrays that is not what it should be."""
OFFICIAL_PART_ROWS = 1_000_448


@dataclass(frozen=True)
class Part:
    """What one npz part's headers say: number of rows, image side in pixels, and the labels' dtype."""

    path: Path
    rows: int
    size: int
    label_dtype: str

    def identity(self) -> dict[str, Any]:
        """What must not change between an interrupted conversion and the one that goes on."""
        stat = self.path.stat()
        return {"name": self.path.name, "bytes": stat.st_size, "modified_ns": stat.st_mtime_ns}


def _find_part(source: Path, number: int) -> Path:
    names = (f"part{number}.npz", f"cifar5m_part{number}.npz")
    found = [source / name for name in names if (source / name).is_file()]
    if len(found) == 2:
        raise UserError(f"{source} holds both {names[0]} and {names[1]}; keep one of them.")
    if not found:
        raise UserError(f"{source / names[0]} (or {names[1]}) is missing; put all {PARTS} parts of CIFAR-5m there.")
    return found[0]


def read_header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether it is column-major, and dtype of an array; `member` then stands at its first data byte."""
    if np.lib.format.read_magic(member) == (1, 0):
        return np.lib.format.read_array_header_1_0(member)
    return np.lib.format.read_array_header_2_0(member)


def open_member(archive: zipfile.ZipFile, path: Path, key: str) -> tuple[IO[bytes], tuple[int, ...], np.dtype]:
    """Open array `key` at its first data byte; also its shape and dtype. Its length is checked too."""
    if f"{key}.npy" not in archive.namelist():
        raise UserError(f"{path} has no array {key!r}; fetch this CIFAR-5m part again.")
    member = archive.open(f"{key}.npy")
    shape, fortran, dtype = read_header(member)
    if dtype.hasobject or (fortran and len(shape) > 1):
        raise UserError(f"{path}: {key} is not a plain row-major array; fetch this CIFAR-5m part again.")
    expected = member.tell() + dtype.itemsize * int(np.prod(shape))
    if archive.getinfo(f"{key}.npy").file_size != expected:
        raise UserError(f"{path} is truncated: {key} is shorter or longer than its header says; fetch it again.")
    return member, shape, dtype


@contextmanager
def damage_told(path: Path) -> Iterator[None]:
    """Turns what zipfile and NumPy raise on a damaged part into one sentence."""
    try:
        yield
    except DAMAGE as error:
        text = str(error) or type(error).__name__
        raise UserError(f"{path} is truncated or damaged ({text}); fetch it again.") from error


def _inspect(path: Path) -> Part:
    with damage_told(path), zipfile.ZipFile(path) as archive:
        images, image_shape, image_dtype = open_member(archive, path, "X")
        labels, label_shape, label_dtype = open_member(archive, path, "Y")
        images.close()
        labels.close()
    if image_dtype != np.uint8 or len(image_shape) != 4 or image_shape[3] != 3 or image_shape[1] != image_shape[2]:
        raise UserError(
            f"{path}: X is {image_dtype} {image_shape} but must be uint8 (rows, size, size, 3);"
            " fetch this CIFAR-5m part again."
        )
    if label_dtype.kind not in "iu" or label_shape != image_shape[:1]:
        raise UserError(
            f"{path}: Y is {label_dtype} {label_shape} but must be {image_shape[0]} integers, one per image;"
            " fetch this CIFAR-5m part again."
        )
    return Part(path, image_shape[0], image_shape[1], label_dtype.str)


def inspect_parts(source: Path, part_rows: int | None) -> list[Part]:
    """Find the six parts in `source` and check their headers against each other, in milliseconds.

    Args:
        source: folder with the parts.
        part_rows: rows every part must have; None accepts any number they share, with a warning
            where it is not the published one.

    Raises:
        UserError: a part is missing or damaged, or shapes, dtypes or row counts are wrong.
    """
    if not source.is_dir():
        raise UserError(f"{source} is not a folder; name the folder that holds CIFAR-5m's {PARTS} npz parts.")
    parts = [_inspect(_find_part(source, number)) for number in range(PARTS)]
    rows = parts[0].rows if part_rows is None else part_rows
    for part in parts:
        if part.rows != rows or part.rows < 1:
            raise UserError(
                f"{part.path} has {part.rows} rows but every part must have {rows};"
                " fetch it again, or state the number of rows per part."
            )
        if part.size != parts[0].size:
            raise UserError(
                f"{part.path} has images of {part.size} pixels but {parts[0].path.name} of {parts[0].size};"
                " put parts of one data set together."
            )
    if part_rows is None and rows != OFFICIAL_PART_ROWS:
        warnings.warn(
            f"{source}: {rows} rows per part, while CIFAR-5m as published has {OFFICIAL_PART_ROWS}",
            stacklevel=3,
        )
    return parts
