"""Where each data set lies below `data.root`, and the command that makes it: asked once, before any run starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from weight_decay.data.manifest import MANIFEST_NAME
from weight_decay.errors import UserError


@dataclass(frozen=True)
class Home:
    """One kind of data: what it is, how it is made, and where.

    `folder` is its usual name below the root. `marks` are paths in that folder of which one is there when the data are;
    {name} in them and in `command` stands for the folder's name, {root} for the root.
    """

    what: str
    command: str
    folder: str
    marks: tuple[str, ...]


_TORCHVISION = "python -c \"from torchvision.datasets import {0} as D; D('{{root}}', download=True)\""
_BELOW = ("", "raw/", "FashionMNIST/raw/")
_IDX = tuple(
    f"{below}train-images{style}{ending}"
    for below in _BELOW
    for style in ("-idx3-ubyte", ".idx3-ubyte")
    for ending in ("", ".gz")
)
HOMES = {
    "cifar5m": Home(
        "CIFAR-5m's six parts, 18.4 GB", "make data-cifar5m FROM=FOLDER", "cifar5m", (MANIFEST_NAME,)
    ),
    "cifar10": Home("CIFAR-10", _TORCHVISION.format("CIFAR10"), "cifar-10-batches-py", ("data_batch_1",)),
    "cifar100": Home("CIFAR-100", _TORCHVISION.format("CIFAR100"), "cifar-100-python", ("train",)),
    "tiny_imagenet": Home(
        "tiny-imagenet-200", "make data-tiny-imagenet FROM=FOLDER", "tiny_imagenet", (MANIFEST_NAME,)
    ),
    "fashion_mnist": Home(
        "Fashion-MNIST's four idx files", _TORCHVISION.format("FashionMNIST"), "fashion_mnist",
        (*_IDX, *(f"../FashionMNIST/{mark}" for mark in _IDX)),
    ),
    "image_folder": Home(
        "your own images", "mkdir -p {root}/{name}/train/CLASS {root}/{name}/test/CLASS and put the images there",
        "image_folder", ("train",),
    ),
    "npz": Home(
        "your own images", "numpy.savez('{root}/{name}.npz', train_images=..., train_labels=..., test_images=...,"
        " test_labels=...)", "npz", ("../{name}.npz",),
    ),
    "openwebtext": Home(
        "OpenWebText, 18 GB of tokens", "make data-openwebtext", "openwebtext", (MANIFEST_NAME,)
    ),
    "text": Home("a text of your own", "make data-text FROM=PATH NAME={name}", "text", (MANIFEST_NAME,)),
    "nanogpt": Home(
        "nanoGPT's train.bin and val.bin", "mkdir -p {root}/{name} and put the two files there", "nanogpt",
        ("train.bin",),
    ),
}  # fmt: skip
"""Every kind that is not made on the spot."""


def folder_of(kind: str, root: Path, name: str | None) -> Path:
    """The folder of a data set: `name` below the root, or the kind's usual one."""
    return root / (name or HOMES[kind].folder)


def is_there(kind: str, root: Path, name: str | None) -> bool:
    """Whether the data are there, or are made on the spot, or only their loader knows."""
    if kind not in HOMES:
        return True
    folder = folder_of(kind, root, name)
    # Compared as text, because the folder itself need not exist for what lies beside it.
    marks = [mark.format(name=folder.name) for mark in HOMES[kind].marks]
    beside = (
        [folder.parent / mark.removeprefix("../") for mark in marks if mark.startswith("../")]
        if (name is None or kind == "npz")
        else []
    )
    return any(path.exists() for path in [*(folder / mark for mark in marks if not mark.startswith("../")), *beside])


def how_to_make(kind: str, root: Path, name: str | None) -> str:
    """The command that makes the data; a second sentence's worth if they seem to lie elsewhere."""
    return HOMES[kind].command.format(root=root, name=name or HOMES[kind].folder)


def require_data(kind: str, root: Path, name: str | None) -> None:
    """UserError, with the command that makes them, if the data are not below the root."""
    if is_there(kind, root, name):
        return
    home, folder = HOMES[kind], folder_of(kind, root, name)
    if any((root / mark).exists() for mark in home.marks if not mark.startswith("../")):
        raise UserError(
            f"data.root: {root} is the data set itself, but must be the folder in which data sets lie; set "
            f"data.root={root.parent} data.name={root.name}."
        )
    raise UserError(
        f"data.root: {home.what} ({kind}) is not in {folder}; make it with `{how_to_make(kind, root, name)}`, "
        "or set data.root to the folder in which it lies."
    )
