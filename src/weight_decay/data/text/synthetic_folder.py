"""The synthetic text as data: a prepared folder, made on first use from (seed, size) alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from weight_decay.config.registry import DATA
from weight_decay.config.schema import require
from weight_decay.config.text import TokenData
from weight_decay.data.manifest import made_once, require_space
from weight_decay.data.text.files import KIND, SPLITS, SplitWriter, TokenSet, finish_folder, open_folder
from weight_decay.data.text.synthetic_text import (
    CHUNK,
    END_OF_TEXT,
    GENERATOR_VERSION,
    NAME,
    VOCABULARY,
    synthetic_documents,
)

# Held-out documents begin far beyond any training document, and are the same for every training size.
VALIDATION_START = 2**40
VALIDATION_TOKENS = 1 << 21


def ensure_synthetic_text(root: Path, seed: int, train_tokens: int) -> Path:
    """The prepared folder below `root` with the synthetic text of this seed and size, made if absent.

    `train` holds documents 0, 1, 2, ... until there are `train_tokens`; `val` documents of its own, the same for every
    size. Processes that start at once wait for the first to finish; what a killed one has written is kept; a damaged
    folder is made again. Memory is flat.

    Raises:
        UserError: a folder that cannot hold them.
    """
    folder = Path(root) / f"{NAME}-v{GENERATOR_VERSION}-seed{seed}-tokens{train_tokens}"

    def make() -> None:
        require_space("data.train_tokens", folder.parent, train_tokens + VALIDATION_TOKENS, "fewer")
        partial = folder.with_name(f".{folder.name}.partial")
        partial.mkdir(exist_ok=True)
        _write_folder(partial, seed, train_tokens)
        partial.replace(folder)

    return made_once(folder, KIND, make)


def _write_folder(folder: Path, seed: int, train_tokens: int) -> None:
    dtype = np.dtype("uint8")
    writers = {split: SplitWriter(folder, split, dtype, resume=True) for split in SPLITS}
    _write_split(writers["val"], seed, VALIDATION_START, VALIDATION_TOKENS)
    _write_split(writers["train"], seed, 0, train_tokens)
    fields = {
        "name": NAME,
        "generator_version": GENERATOR_VERSION,
        "seed": seed,
        "end_of_text": END_OF_TEXT,
        "encoding": "bytes",
    }
    finish_folder(folder, writers, VOCABULARY, dtype, fields)


def _write_split(writer: SplitWriter, seed: int, first: int, wanted: int) -> None:
    """Append documents `first`, `first + 1`, ... until there are `wanted` tokens, after those already there."""
    if writer.documents:
        # After a power cut a file may hold zeros where nothing reached the disk: its ends tell.
        head, _ = synthetic_documents(seed, np.array([first]))
        tail, _ = synthetic_documents(seed, np.array([first + writer.documents - 1]))
        writer.keep_if(head, tail)
    while writer.tokens < wanted:
        begin = first + writer.documents
        tokens, lengths = synthetic_documents(seed, np.arange(begin, begin + CHUNK))
        enough = int(np.searchsorted(np.cumsum(lengths), wanted - writer.tokens)) + 1
        lengths = lengths[:enough]
        writer.append(tokens[: int(lengths.sum())], lengths)


@DATA.add("synthetic_text")
@dataclass(frozen=True)
class SyntheticText(TokenData):
    """The synthetic text, made on first use to at least `train_tokens`."""

    drawn: ClassVar[bool] = True
    made_to_size: ClassVar[bool] = True

    def check_train_tokens(self) -> None:
        """ValueError unless it is said how many tokens to make."""
        require(
            self.train_tokens is not None and self.train_tokens > 0,
            f"train_tokens: the synthetic text is endless, so say how many tokens, got {self.train_tokens}",
        )

    def load(self, split: str) -> TokenSet:
        """One split, as memory maps."""
        assert self.train_tokens is not None
        return open_folder(ensure_synthetic_text(Path(self.root), self.seed, self.train_tokens), split)
