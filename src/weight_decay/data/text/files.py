"""The folder format of a tokenised text, and reading it as memory maps.

A prepared folder holds, for each split `train` and `val`: `<split>.bin` (the tokens of all documents,
one after another, each followed by the end-of-text token; little-endian uint8 or uint16) and
`<split>.documents.bin` (int64, the position at which each document starts), and `manifest.json`.
This module never imports torch, so that preparation processes start quickly.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from weight_decay.data.manifest import read_manifest, write_manifest
from weight_decay.errors import UserError

KIND = "tokens"
SPLITS = ("train", "val")


@dataclass(frozen=True)
class TokenSet:
    """One split of a tokenised text.

    Attributes:
        tokens: (T,) uint8 or uint16, usually a read-only memory map.
        document_starts: (D,) int64, where each document starts in `tokens`; None when unknown.
        vocabulary: number of token ids; every token is below it.
        name: the corpus, for example "openwebtext".
        split: "train", "val", or a part of one ("train-seen", "train-unseen").
        fingerprint: changes whenever the tokens do.
        segments: (S, 2) int64, the ranges [start, stop) of `tokens` that windows may be taken from;
            None for all of it. A window never crosses from one range into another.
    """

    tokens: np.ndarray
    document_starts: np.ndarray | None
    vocabulary: int
    name: str
    split: str
    fingerprint: str
    segments: np.ndarray | None = None

    def beginning(self, tokens: int) -> TokenSet:
        """The first so many tokens, which may end inside a document; UserError if there are fewer."""
        if tokens > len(self.tokens):
            raise UserError(
                f"data.train_tokens: the {self.split} split of {self.name} has {len(self.tokens):,} tokens, not "
                f"{tokens:,}; ask for fewer, or null for all."
            )
        starts = self.document_starts
        return replace(
            self,
            tokens=self.tokens[:tokens],
            document_starts=None if starts is None else starts[: np.searchsorted(starts, tokens)],
            fingerprint=hashlib.sha256(f"{self.fingerprint} first {tokens}".encode()).hexdigest(),
        )


class SplitWriter:
    """Appends documents to the two files of one split; nothing has its final name before `finish`.

    resume: keep the whole documents that a writer which was killed has left; `documents` and `tokens` count them.
    """

    def __init__(self, folder: Path, split: str, dtype: np.dtype, resume: bool = False) -> None:
        self._targets = [folder / f"{split}.bin", folder / f"{split}.documents.bin"]
        self._dtype = dtype
        self.tokens = 0
        self.documents = 0
        temporary = [self._temporary(path) for path in self._targets]
        kept = resume and all(path.is_file() for path in temporary)
        self._files: list[BinaryIO] = [path.open("r+b" if kept else "w+b") for path in temporary]
        if kept:
            self._keep_whole_documents(temporary)

    def _keep_whole_documents(self, temporary: list[Path]) -> None:
        written = temporary[0].stat().st_size // self._dtype.itemsize
        starts = np.fromfile(temporary[1], dtype="<i8")
        # A document is whole when the start of the next one is in both files.
        self.documents = max(int(np.searchsorted(starts, written, side="right")) - 1, 0)
        self.tokens = int(starts[self.documents]) if len(starts) else 0
        self._cut()

    def _cut(self) -> None:
        for file, size in zip(self._files, (self.tokens * self._dtype.itemsize, self.documents * 8), strict=True):
            file.truncate(size)
            file.seek(0, os.SEEK_END)

    def keep_if(self, head: np.ndarray, tail: np.ndarray) -> None:
        """Forget what was kept unless the tokens written so far begin and end with these."""
        end = self.tokens * self._dtype.itemsize
        for start, wanted in ((0, head), (max(end - tail.nbytes, 0), tail)):
            self._files[0].seek(start)
            if self._files[0].read(wanted.nbytes) != wanted.astype(self._dtype).tobytes():
                self.tokens = self.documents = 0
        self._cut()

    @staticmethod
    def _temporary(path: Path) -> Path:
        return path.with_name(f".{path.name}.tmp")

    def append(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        """Append documents: their tokens joined (sum of lengths,), and the length of each (D,)."""
        starts = self.tokens + np.concatenate([[0], np.cumsum(lengths)[:-1]]) if len(lengths) else lengths
        self._files[0].write(np.ascontiguousarray(tokens, dtype=self._dtype).data)
        self._files[1].write(np.ascontiguousarray(starts, dtype=np.dtype("<i8")).data)
        self.tokens += len(tokens)
        self.documents += len(lengths)

    def finish(self) -> list[Path]:
        """Flush to disk, give the files their final names, and return them."""
        for file, path in zip(self._files, self._targets, strict=True):
            file.flush()
            os.fsync(file.fileno())
            file.close()
            self._temporary(path).replace(path)
        return self._targets


def finish_folder(
    folder: Path, writers: dict[str, SplitWriter], vocabulary: int, dtype: np.dtype, fields: dict[str, Any]
) -> dict[str, Any]:
    """Finish both splits and write the manifest last; `fields` must hold `name` and what made the tokens.

    Raises:
        UserError: a split is empty.
    """
    for split, writer in writers.items():
        if writer.tokens == 0:
            total = sum(other.documents for other in writers.values())
            raise UserError(
                f"the {split} split of {folder} would be empty ({total} documents in all): "
                "choose another validation fraction or give more documents."
            )
    files = [path for writer in writers.values() for path in writer.finish()]
    counts = {split: {"tokens": w.tokens, "documents": w.documents} for split, w in writers.items()}
    own = {"vocabulary": vocabulary, "dtype": dtype.name, "splits": counts}
    return write_manifest(folder, KIND, {**fields, **own}, files)


def open_folder(folder: Path, split: str) -> TokenSet:
    """One split, "train" or "val", of a prepared folder as memory maps.

    Raises:
        UserError: another split, or the folder is missing, unfinished, damaged or of another kind.
    """
    if split not in SPLITS:
        raise UserError(f"a text has the splits train and val, not {split!r}.")
    if (folder / "train.bin").is_file() and not (folder / "manifest.json").is_file():
        raise UserError(
            f"{folder} has a train.bin but no manifest.json: if it was made by nanoGPT, read it as nanogpt; "
            "otherwise its preparation did not finish, so run that again."
        )
    manifest = read_manifest(folder, KIND)
    fields = manifest["fields"]
    tokens = np.memmap(folder / f"{split}.bin", dtype=np.dtype(fields["dtype"]).newbyteorder("<"), mode="r")
    starts = np.memmap(folder / f"{split}.documents.bin", dtype="<i8", mode="r")
    return TokenSet(tokens, starts, fields["vocabulary"], fields["name"], split, manifest["fingerprint"])
