"""Where each data set lies below `data.root`, and the command that makes it: asked once, before any run starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from weight_decay.config.groups import ImageData
from weight_decay.config.text import BYTES_VOCABULARY, TokenData
from weight_decay.errors import UserError


@dataclass(frozen=True)
class Home:
    """Where data of one kind lie, what they are, and how they are made.

    `folder` is its usual name below the root. `marks` are paths in that folder of which one is there when the data are;
    {name} in them and in `command` stands for the folder's name, {root} for the root. `for_bytes` is what the command
    needs besides where the data are wanted as bytes.
    """

    what: str
    command: str
    folder: str
    marks: tuple[str, ...]
    for_bytes: str = ""


def torchvision_command(dataset: str) -> str:
    """How torchvision downloads one of its data sets."""
    return f"python -c \"from torchvision.datasets import {dataset} as D; D('{{root}}', download=True)\""


def folder_of(data: ImageData | TokenData) -> Path:
    """The folder of a data set: `name` below the root, or the kind's usual one."""
    return Path(data.root) / (data.name or data.home.folder)


def is_there(data: ImageData | TokenData) -> bool:
    """Whether the data are there, or are made on the spot, or only their loader knows."""
    if data.home is None:
        return True
    folder = folder_of(data)
    # Compared as text, because the folder itself need not exist for what lies beside it.
    marks = [mark.format(name=folder.name) for mark in data.home.marks]
    # Beside the folder lies the kind's usual place, or what bears the folder's name.
    beside = [
        folder.parent / mark.removeprefix("../")
        for mark, template in zip(marks, data.home.marks, strict=True)
        if mark.startswith("../") and (data.name is None or "{name}" in template)
    ]
    return any(path.exists() for path in [*(folder / mark for mark in marks if not mark.startswith("../")), *beside])


def how_to_make(data: ImageData | TokenData) -> str:
    """The command that makes the data."""
    bytes_wanted = isinstance(data, TokenData) and data.vocabulary == BYTES_VOCABULARY
    command = data.home.command + (data.home.for_bytes if bytes_wanted else "")
    return command.format(root=data.root, name=data.name or data.home.folder)


def require_data(data: ImageData | TokenData) -> None:
    """UserError, with the command that makes them, if the data are not below the root."""
    if is_there(data):
        return
    root = Path(data.root)
    if any((root / mark).exists() for mark in data.home.marks if not mark.startswith("../")):
        raise UserError(
            f"data.root: {root} is the data set itself, but must be the folder in which data sets lie; set "
            f"data.root={root.parent} data.name={root.name}."
        )
    raise UserError(
        f"data.root: {data.home.what} ({data.kind}) is not in {folder_of(data)}; make it with `{how_to_make(data)}`, "
        "or set data.root to the folder in which it lies."
    )
