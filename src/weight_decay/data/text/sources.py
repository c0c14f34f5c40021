"""Where documents come from: .txt, .jsonl and .parquet files, and Hugging Face datasets on disk.

A source is cut into pieces of similar size. A piece can be read on its own and in any process, which
makes the preparation parallel and resumable; the documents and their keys do not depend on the cuts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from weight_decay.errors import UserError, first_line

SUFFIXES = (".txt", ".jsonl", ".parquet")
# A longer .txt file is cut at line ends, so that memory stays flat and it can be split for validation.
TXT_DOCUMENT_BYTES = 1 << 18
PIECE_BYTES = 1 << 22
_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Span:
    """Bytes [start, stop) of a .txt or .jsonl file, row groups of a .parquet file, or rows of a dataset."""

    file: int
    start: int
    stop: int
    size: int


@dataclass(frozen=True)
class Document:
    """One text and its key: (number of the file, byte offset or row), the same in every run."""

    key: tuple[int, int]
    text: str


@dataclass(frozen=True)
class TextSource:
    """The files of a text in a fixed order; `kind` is "files", or "dataset" for one saved by `datasets`."""

    root: Path
    files: tuple[Path, ...]
    kind: str
    text_column: str

    def describe(self) -> list[list[str | int]]:
        """Name (below the root) and size of every file: what a resumed preparation compares."""
        return [[path.relative_to(self.root).as_posix(), path.stat().st_size] for path in self.files]

    def pieces(self, piece_bytes: int) -> list[tuple[Span, ...]]:
        """Cut the source into runs of spans of about `piece_bytes` bytes each, in order.

        Raises:
            UserError: a file is damaged or lacks the text column.
        """
        pieces: list[tuple[Span, ...]] = []
        gathered: list[Span] = []
        for span in self._spans(piece_bytes):
            gathered.append(span)
            if sum(part.size for part in gathered) >= piece_bytes:
                pieces.append(tuple(gathered))
                gathered = []
        return [*pieces, tuple(gathered)] if gathered else pieces

    def _spans(self, piece_bytes: int) -> Iterator[Span]:
        if self.kind == "dataset":
            rows, size = self._dataset().num_rows, sum(path.stat().st_size for path in self.files)
            step = max(1, min(rows, rows * piece_bytes // max(size, 1)))
            for start in range(0, rows, step):
                stop = min(start + step, rows)
                yield Span(0, start, stop, size * (stop - start) // rows)
            return
        for number, path in enumerate(self.files):
            if path.suffix == ".parquet":
                with self._parquet(path) as file:
                    for group in range(file.num_row_groups):
                        yield Span(number, group, group + 1, file.metadata.row_group(group).total_byte_size)
            else:
                # Spans of .txt hold a whole number of documents.
                unit = TXT_DOCUMENT_BYTES if path.suffix == ".txt" else 1
                step = max(1, piece_bytes // unit) * unit
                size = path.stat().st_size
                for start in range(0, size, step):
                    stop = min(start + step, size)
                    yield Span(number, start, stop, stop - start)

    def documents(self, spans: Iterable[Span]) -> Iterator[Document]:
        """Read the documents of some spans, in order, without holding more than a few.

        Raises:
            UserError: naming the file and the line or row that cannot be read.
        """
        for span in spans:
            path = self.files[span.file]
            if self.kind == "dataset":
                yield from self._dataset_documents(span)
            elif path.suffix == ".parquet":
                yield from self._parquet_documents(path, span)
            elif path.suffix == ".jsonl":
                yield from self._jsonl_documents(path, span)
            else:
                yield from self._txt_documents(path, span)

    def _txt_documents(self, path: Path, span: Span) -> Iterator[Document]:
        with path.open("rb") as file:
            for start in range(span.start, span.stop, TXT_DOCUMENT_BYTES):
                stop = min(start + TXT_DOCUMENT_BYTES, span.stop)
                content = b"".join(line for _, line in _lines(file, start, stop))
                try:
                    yield Document((span.file, start), content.decode("utf-8"))
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{path} is not UTF-8 text (near byte {start + error.start}): convert or remove it."
                    ) from error

    def _jsonl_documents(self, path: Path, span: Span) -> Iterator[Document]:
        with path.open("rb") as file:
            for offset, line in _lines(file, span.start, span.stop):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise UserError(
                        f"{path} line {_line_number(path, offset)} is not JSON ({error}): correct or remove it."
                    ) from error
                text = record.get(self.text_column) if isinstance(record, dict) else None
                if not isinstance(text, str):
                    raise UserError(
                        f"{path} line {_line_number(path, offset)} has no text under {self.text_column!r}: "
                        "name the right text column, or correct the line."
                    )
                yield Document((span.file, offset), text)

    def _parquet(self, path: Path) -> pq.ParquetFile:
        try:
            file = pq.ParquetFile(path)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{path} is not a readable parquet file ({error}): fetch it again.") from error
        self._need_column(path, file.schema_arrow.names)
        return file

    def _need_column(self, path: Path, names: list[str]) -> None:
        if self.text_column not in names:
            raise UserError(
                f"{path} has no column {self.text_column!r} (it has {', '.join(names)}): name the text column."
            )

    def _parquet_documents(self, path: Path, span: Span) -> Iterator[Document]:
        with self._parquet(path) as file:
            row = sum(file.metadata.row_group(group).num_rows for group in range(span.start))
            try:
                for batch in file.iter_batches(
                    _ROWS_AT_ONCE, row_groups=range(span.start, span.stop), columns=[self.text_column]
                ):
                    yield from self._texts(path, span.file, row, batch.column(0))
                    row += batch.num_rows
            except (OSError, pa.ArrowException) as error:
                raise UserError(f"{path} is damaged near row {row} ({error}): fetch it again.") from error

    def _dataset(self) -> Any:
        import datasets  # slow to import, and most sources do without it

        try:
            loaded = datasets.load_from_disk(str(self.root))
            if isinstance(loaded, datasets.DatasetDict):
                if "train" not in loaded:
                    raise UserError(f"{self.root} has no train split (it has {', '.join(loaded)}).")
                loaded = loaded["train"]
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UserError(f"{self.root} is not a readable dataset ({error}): save it again.") from error
        self._need_column(self.root, loaded.column_names)
        return loaded.select_columns([self.text_column]).with_format("arrow")

    def _dataset_documents(self, span: Span) -> Iterator[Document]:
        table = self._dataset()
        for start in range(span.start, span.stop, _ROWS_AT_ONCE):
            column = table[start : min(start + _ROWS_AT_ONCE, span.stop)].column(0)
            yield from self._texts(self.root, 0, start, column)

    def _texts(self, path: Path, file: int, row: int, column: pa.Array | pa.ChunkedArray) -> Iterator[Document]:
        for number, text in enumerate(column.to_pylist(), start=row):
            if not isinstance(text, str):
                raise UserError(f"{path} row {number} has no text under {self.text_column!r}: remove the row.")
            yield Document((file, number), text)


def find_text(source: Path, text_column: str) -> TextSource:
    """Find the documents below `source`: one file, a folder of files, or a dataset saved to disk.

    Files are taken in the order of their paths; of a dataset with splits, only `train` is taken.

    Raises:
        UserError: nothing is there, or nothing that can be read.
    """
    source = source.expanduser()
    try:
        source.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass  # said below
    except (OSError, ValueError) as error:
        raise UserError(
            f"{str(source)[:200]!r} cannot be a path ({error}): name a text file, or a folder of them."
        ) from None
    if source.is_file() and source.suffix in SUFFIXES:
        return TextSource(source.parent, (source,), "files", text_column)
    if not source.is_dir():
        what = f"ends in none of {', '.join(SUFFIXES)}" if source.is_file() else "does not exist"
        raise UserError(f"{source} {what}: name a text file, a folder of them, or a dataset saved to disk.")
    if (source / "state.json").is_file() or (source / "dataset_dict.json").is_file():
        arrows = sorted(source.rglob("*.arrow"))
        return TextSource(source, tuple(arrows), "dataset", text_column)
    files = sorted(path for path in source.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    files = [path for path in files if not any(part.startswith(".") for part in path.relative_to(source).parts)]
    if not files:
        raise UserError(f"{source} holds no {', '.join(SUFFIXES)} file and is no dataset saved to disk.")
    return TextSource(source, tuple(files), "files", text_column)


def fetch_dataset(name: str, text_column: str, revision: str | None = None) -> TextSource:
    """The train files (parquet, jsonl or txt) of a dataset repository, fetched into the `datasets` cache.

    The files are read as they are: no loading script is run and no second, converted copy is made.

    Args:
        name: the repository, for example "Skylion007/openwebtext", or a local folder laid out like one.
        text_column: where the documents are.
        revision: branch, tag or commit; None for the main branch.

    Raises:
        UserError: there is no network, no such dataset, or no file that can be read.
    """
    import datasets

    try:
        builder = datasets.load_dataset_builder(name, revision=revision)
        listed = [str(file) for file in (builder.config.data_files or {}).get("train", [])]
        fetched = datasets.DownloadManager(dataset_name=name).download(listed)
    except Exception as error:  # the hub's client raises many unrelated types, with the same remedy
        raise UserError(
            f"the dataset {name} could not be fetched ({type(error).__name__}: {first_line(error)}): with "
            f"no network, run `hf download {name} --repo-type dataset --local-dir openwebtext-source` on a "
            "machine with one, copy that folder here and give it as --source; if the repository still has a "
            "loading script, give a --revision that holds parquet files."
        ) from error
    paths = [Path(path) for path in fetched]
    if not paths or any(path.suffix not in SUFFIXES for path in paths):
        raise UserError(f"the dataset {name} has no train files in {', '.join(SUFFIXES)}: give another --revision.")
    # The hub's automatic conversion stops at 5 GB and says so only in the names of its folders.
    partial = [file for file in listed if "partial-" in file]
    if partial:
        raise UserError(f"this revision of {name} holds only a part of it ({partial[0]}): give another --revision.")
    root = Path(os.path.commonpath([path.parent for path in paths]))
    return TextSource(root, tuple(paths), "files", text_column)


def _lines(file: BinaryIO, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """The lines that begin in bytes [start, stop), each with its offset; adjoining ranges share none."""
    file.seek(max(start - 1, 0))
    position = start
    if start > 0:
        position += len(file.readline()) - 1
    while position < stop and (line := file.readline()):
        yield position, line
        position += len(line)


def _line_number(path: Path, offset: int) -> int:
    with path.open("rb") as file:
        number = 1
        while offset > 0 and (block := file.read(min(offset, 1 << 20))):
            number += block.count(b"\n")
            offset -= len(block)
    return number
