"""The two files of an experiment at one scale: what runs ended with as CSV, their curves as gzipped CSV.

Ten seeds of all experiments are 36 MB of curves. gzip makes a quarter of that where Parquet makes a half, `zcat` and
`pandas.read_csv` read it, and it carries a checksum.
"""

from __future__ import annotations

import gzip
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from weight_decay.runs.files import replacing

ENDINGS = {"summary": "summary.csv", "curves": "curves.csv.gz"}
SUMMARY = ".summary.csv"
Writable = IO[bytes] | gzip.GzipFile
UNREADABLE = (OSError, EOFError, ValueError, OverflowError, zlib.error)
"""What reading a damaged table raises."""


def table_file(folder: Path, stem: str, kind: str) -> Path:
    """Where the table `kind` of `stem` (EXPERIMENT-SCALE) lies in `folder`: compressed, unless an older one is not."""
    path = folder / f"{stem}.{ENDINGS[kind]}"
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    return plain if plain.is_file() and not path.is_file() else path


def unpacked(path: Path, folder: Path) -> Path:
    """The table as plain CSV: itself, or a copy in `folder`. Raises one of UNREADABLE for a damaged file."""
    if path.suffix != ".gz":
        return path
    copy = folder / f"{len(list(folder.iterdir()))}-{path.stem}"
    with gzip.open(path) as packed, copy.open("wb") as stream:
        shutil.copyfileobj(packed, stream)
    return copy


@contextmanager
def writing(path: Path) -> Iterator[Writable]:
    """Open `path` for the content of a table; it is replaced at the end, and only if it says something else.

    A compressed file carries neither name nor time, so that the same content gives the same bytes. Its uncompressed
    predecessor goes.
    """
    with replacing(path) as stream:
        if path.suffix != ".gz":
            yield stream
            return
        with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=stream, mtime=0) as packed:
            yield packed
    path.with_suffix("").unlink(missing_ok=True)
