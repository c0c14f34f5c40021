"""Texts that were tokenised once into a folder: OpenWebText, and any text of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from weight_decay.config.registry import DATA
from weight_decay.config.text import TokenData
from weight_decay.data.manifest import MANIFEST_NAME
from weight_decay.data.text.files import TokenSet, open_folder
from weight_decay.data.where import Home, folder_of, require_data


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
        if not folder_of(self).is_dir():
            require_data(self)
        return open_folder(folder_of(self), split)


@DATA.add("openwebtext")
@dataclass(frozen=True)
class OpenWebText(PreparedText):
    """OpenWebText in GPT-2's tokens."""

    named: ClassVar[bool] = False
    home: ClassVar[Home] = Home(
        "OpenWebText, 18 GB of tokens", "make data-openwebtext", "openwebtext", (MANIFEST_NAME,)
    )
    tokens: ClassVar[float] = 9.04e9
