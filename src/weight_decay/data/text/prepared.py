"""Texts that were tokenised once into a folder: OpenWebText, any text of one's own, and nanoGPT's bare files.

nanoGPT's are `train.bin` and `val.bin`, little-endian uint16, GPT-2 tokens, no manifest.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from weight_decay.config.registry import DATA
from weight_decay.config.text import TokenData
from weight_decay.data.manifest import MANIFEST_NAME
from weight_decay.data.text.files import TokenSet, open_folder
from weight_decay.data.where import Home, folder_of, require_data
from weight_decay.errors import UserError

GPT2_VOCABULARY = 50257
_SAMPLED_BLOCKS = 64
_SAMPLED_BLOCK_BYTES = 1 << 16


def _folder(data: TokenData) -> Path:
    """The folder of the data; UserError, with the command that makes them, if they are not there."""
    folder = folder_of(data)
    if not folder.is_dir():
        require_data(data)
    return folder


@DATA.add("text")
@dataclass(frozen=True)
class PreparedText(TokenData):
    """A text of one's own, prepared with `make data-text`."""

    named: ClassVar[bool] = True
    home: ClassVar[Home] = Home(
        "a text of your own", "make data-text FROM=PATH NAME={name}", "text", (MANIFEST_NAME,), " ENCODING=bytes"
    )

    def load(self, split: str) -> TokenSet:
        """One split, as memory maps."""
        return open_folder(_folder(self), split)


@DATA.add("openwebtext")
@dataclass(frozen=True)
class OpenWebText(PreparedText):
    """OpenWebText in GPT-2's tokens."""

    named: ClassVar[bool] = False
    home: ClassVar[Home] = Home(
        "OpenWebText, 18 GB of tokens", "make data-openwebtext", "openwebtext", (MANIFEST_NAME,)
    )
    tokens: ClassVar[float] = 9.04e9


@DATA.add("nanogpt")
@dataclass(frozen=True)
class NanoGPTData(TokenData):
    """Tokens in nanoGPT's two files."""

    named: ClassVar[bool] = True
    home: ClassVar[Home] = Home(
        "nanoGPT's train.bin and val.bin",
        "mkdir -p {root}/{name} and put the two files there",
        "nanogpt",
        ("train.bin",),
    )

    def load(self, split: str) -> TokenSet:
        """One split, as a memory map; there is nothing that its bytes could be checked against.

        Raises:
            UserError: there are no tokens, or ids that GPT-2 does not have.
        """
        path = _folder(self) / f"{split}.bin"
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
