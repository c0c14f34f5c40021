"""The folder format of a tokenised text, and reading it (or nanoGPT's bare files) as memory maps.

A prepared folder holds, for each split `train` and `val`: `<split>.bin` (the tokens of all documents,
one after another, each followed by the end-of-text token; little-endian uint8 or uint16) and
`<split>.documents.bin` (int64, the position at which each document starts), and `manifest.json`.
This module never imports torch, so that preparation processes start quickly.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from weight_decay.data.manifest import Verify, read_manifest, write_manifest
from weight_decay.data.where import folder_of, require_data
from weight_decay.errors import UserError

KIND = "tokens"
SPLITS = ("train", "val")
GPT2_VOCABULARY = 50257
_SAMPLED_BLOCKS = 64
_SAMPLED_BLOCK_BYTES = 1 << 16


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

    def starts_with(self, tokens: np.ndarray) -> bool:
        """Whether the tokens written so far begin with these."""
        self._files[0].seek(0)
        found = self._files[0].read(tokens.nbytes)
        self._files[0].seek(0, os.SEEK_END)
        return found == tokens.astype(self._dtype).tobytes()

    def ends_with(self, tokens: np.ndarray) -> bool:
        """Whether the tokens written so far end with these."""
        self._files[0].seek(max(self.tokens * self._dtype.itemsize - tokens.nbytes, 0))
        return self._files[0].read() == tokens.astype(self._dtype).tobytes()

    def start_over(self) -> None:
        """Forget what was kept."""
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


def load_tokens(
    kind: Literal["python_text", "synthetic_text", "openwebtext", "text", "nanogpt"],
    split: Literal["train", "val"],
    root: Path,
    verify: Verify = "sampled",
    name: str | None = None,
    seed: int = 0,
    train_tokens: int | None = None,
) -> TokenSet:
    """Open one split of a corpus as memory maps.

    Args:
        kind: "python_text" and "synthetic_text" (made below `root` when not there yet), "openwebtext", "text"
            (any prepared folder) or "nanogpt" (a folder with nanoGPT's bare `train.bin` and `val.bin`:
            uint16, GPT-2 tokens, no manifest).
        split: "train" or "val"; documents are never shared between the two.
        root: the folder in which all data sets lie.
        verify: see `read_manifest`; "sha256" reads every byte. For nanogpt there is nothing
            to check against.
        name: the folder below `root`; None for the kind's own name.
        seed: of the synthetic text.
        train_tokens: of the synthetic text, which is endless: the least size of its train split.

    Raises:
        UserError: the folder is missing, unfinished, damaged or of another kind.
    """
    if split not in SPLITS:
        raise UserError(f"a text has the splits train and val, not {split!r}.")
    root = Path(root)
    if kind not in ("python_text", "synthetic_text", "openwebtext", "text", "nanogpt"):
        raise UserError(f"unknown text {kind!r}: choose python_text, synthetic_text, openwebtext, text or nanogpt.")
    if kind == "python_text":
        # Imported here because python_text writes with this module's SplitWriter.
        from weight_decay.data.text.python_text import ensure_python_text

        return _load_folder(ensure_python_text(root), split, verify)
    if kind == "synthetic_text":
        from weight_decay.data.text.synthetic_text import ensure_synthetic_text

        if train_tokens is None:
            raise UserError("data.train_tokens: the synthetic text is endless, so say how many tokens.")
        return _load_folder(ensure_synthetic_text(root, seed, train_tokens), split, verify)
    folder = folder_of(kind, root, name)
    if not folder.is_dir():
        require_data(kind, root, name)
    return _load_nanogpt(folder, split) if kind == "nanogpt" else _load_folder(folder, split, verify)


def _load_folder(folder: Path, split: str, verify: Verify) -> TokenSet:
    if (folder / "train.bin").is_file() and not (folder / "manifest.json").is_file():
        raise UserError(
            f"{folder} has a train.bin but no manifest.json: if it was made by nanoGPT, read it as nanogpt; "
            "otherwise its preparation did not finish, so run that again."
        )
    manifest = read_manifest(folder, KIND, verify)
    fields = manifest["fields"]
    tokens = np.memmap(folder / f"{split}.bin", dtype=np.dtype(fields["dtype"]).newbyteorder("<"), mode="r")
    starts = np.memmap(folder / f"{split}.documents.bin", dtype="<i8", mode="r")
    return TokenSet(tokens, starts, fields["vocabulary"], fields["name"], split, manifest["fingerprint"])


def _load_nanogpt(folder: Path, split: str) -> TokenSet:
    path = folder / f"{split}.bin"
    if not path.is_file():
        raise UserError(f"{path} does not exist: nanogpt data is a folder with train.bin and val.bin.")
    size = path.stat().st_size
    if size == 0 or size % 2:
        raise UserError(f"{path} has {size} bytes, which is no list of uint16 tokens: make it again.")
    tokens = np.memmap(path, dtype="<u2", mode="r")
    # Hashing 18 GB at every start would take minutes, and there is no manifest that could remember
    # the result: the size and evenly spaced blocks stand for the whole, and the name says so.
    positions = np.linspace(0, max(size - _SAMPLED_BLOCK_BYTES, 0), _SAMPLED_BLOCKS).astype(np.int64) // 2
    digest = hashlib.sha256(str(size).encode())
    for position in np.unique(positions):
        block = tokens[position : position + _SAMPLED_BLOCK_BYTES // 2]
        if int(block.max()) >= GPT2_VOCABULARY:
            raise UserError(
                f"{path} holds token {int(block.max())}, but nanogpt data has GPT-2's "
                f"{GPT2_VOCABULARY} tokens: read it as what it is, or make it again."
            )
        digest.update(block.tobytes())
    return TokenSet(tokens, None, GPT2_VOCABULARY, "nanogpt", split, f"sampled-{digest.hexdigest()}")
