"""Fashion-MNIST: 70,000 real grey photographs of clothes in MNIST's idx files, as torchvision keeps them.

Four files, raw or gzipped: `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the same with `t10k-`; copies that
write `.idx3-ubyte` are read too. An idx file is big-endian: 0, 0, 8 (uint8), the number of axes, each axis's length
(uint32), then the values.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import ClassVar

import numpy as np

from weight_decay.config.groups import ImageData
from weight_decay.config.registry import DATA
from weight_decay.data.images.image_set import ImageSet, content_fingerprint
from weight_decay.data.where import Home, torchvision_command
from weight_decay.errors import UserError

KIND = "fashion_mnist"
CLASSES = 10
SIDE = 28
SIZES = (8, 14, 16, 28, 32)
"""Sides that follow from 28 by black borders of two pixels and by means of square blocks."""
_PREFIXES = {"train": "train", "test": "t10k"}
_BELOW = ("", "raw/", "FashionMNIST/raw/")
_MOST_DEFLATE_SAVES = 1032
_GET = (
    "get it with python -c \"from torchvision.datasets import FashionMNIST as F; F('data', download=True)\", or put any"
    " copy of its four idx files (raw or .gz) there"
)


def _folder(root: Path, name: str | None) -> Path:
    """The folder with the idx files; UserError, saying where they were looked for and how to get them, if none has."""
    tops = [root / name] if name is not None else [root / KIND, root / "FashionMNIST"]
    for folder in (top / below for top in tops for below in _BELOW):
        if any((folder / name).is_file() for name in _names("train-images", 3)):
            return folder
    raise UserError(f"Fashion-MNIST is not in {' or '.join(map(str, tops))}; {_GET}.")


def _names(stem: str, axes: int) -> list[str]:
    """What an idx file may be called."""
    return [f"{stem}{dot}idx{axes}-ubyte{ending}" for dot in "-." for ending in ("", ".gz")]


def _file(folder: Path, prefix: str, what: str, axes: int) -> Path:
    names = _names(f"{prefix}-{what}", axes)
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        raise UserError(f"{folder / names[0]} (or .gz) is missing; {_GET}.")
    return found[0]


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array of an idx file, raw or gzipped; its header is held against the file's length before it is read.

    Raises:
        UserError: it is no idx file of bytes, or shorter or longer than its header says.
    """
    again = "fetch the file again"
    # The published archives are read as they are; raw files may carry any name.
    compressed = path.suffix == ".gz"
    try:
        with gzip.open(path, "rb") if compressed else path.open("rb") as handle:
            start = handle.read(4)
            if len(start) < 4 or start[:3] != b"\0\0\x08" or not 1 <= start[3] <= 4:
                raise UserError(f"{path} is not an idx file of bytes; {again}.")
            shape = struct.unpack(f">{start[3]}I", handle.read(4 * start[3]))
            length, size = prod(shape), path.stat().st_size
            # Nothing that a header claims is allocated unless the file can hold it.
            if length > size * (_MOST_DEFLATE_SAVES if compressed else 1):
                raise UserError(f"{path} has {size:,} bytes, too few for its {length:,} values; {again}.")
            content = handle.read(length + 1)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise UserError(f"{path} cannot be read ({error}); {again}.") from error
    if len(content) != length:
        raise UserError(f"{path} is {'shorter' if len(content) < length else 'longer'} than its header says; {again}.")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def resized(pixels: np.ndarray, size: int) -> np.ndarray:
    """Grey images uint8 (N, 28, 28) as (N, size, size): a border of two pixels for 8, 16 and 32, then block means."""
    if size not in (14, 28):
        pixels = np.pad(pixels, ((0, 0), (2, 2), (2, 2)))
    block = pixels.shape[1] // size
    if block == 1:
        return pixels
    blocks = pixels.reshape(len(pixels), size, block, size, block)
    area = block * block
    return ((blocks.sum(axis=(2, 4), dtype=np.uint32) + area // 2) // area).astype(np.uint8)


_MARKS = tuple(f"{below}{name}" for below in _BELOW for name in _names("train-images", 3))


@DATA.add("fashion_mnist")
@dataclass(frozen=True)
class FashionMNISTData(ImageData):
    """Fashion-MNIST, in the folder itself or in torchvision's below it."""

    named: ClassVar[bool] = True
    home: ClassVar[Home] = Home(
        "Fashion-MNIST's four idx files",
        torchvision_command("FashionMNIST"),
        KIND,
        (*_MARKS, *(f"../FashionMNIST/{mark}" for mark in _MARKS)),
    )

    def load(self, split: str) -> ImageSet:
        """The 60,000 training or 10,000 test images, uint8 (N, size, size, 3) with three equal channels.

        28 pixels as published; 32 with a black border of two pixels; 14 and 16 by the mean of 2×2 pixels of these,
        8 by that of 4×4, halves rounded up. The folder is `name`, or else `fashion_mnist` or torchvision's
        `FashionMNIST`; the files may lie in it or in its `raw` or `FashionMNIST/raw`.

        Raises:
            UserError: the files are absent, damaged, or of another shape; the size is none of these.
        """
        size = self.image_size
        if size not in SIZES:
            raise UserError(f"data.image_size: Fashion-MNIST comes in {', '.join(map(str, SIZES))} pixels, not {size}.")
        folder = _folder(Path(self.root), self.name)
        prefix = _PREFIXES[split]
        pixels, labels = read_idx(_file(folder, prefix, "images", 3)), read_idx(_file(folder, prefix, "labels", 1))
        if pixels.shape[1:] != (SIDE, SIDE) or labels.shape != pixels.shape[:1] or not len(labels):
            raise UserError(
                f"{folder} has {split} images of shape {pixels.shape} and labels of shape {labels.shape} but must have"
                f" (N, {SIDE}, {SIDE}) and (N,); fetch Fashion-MNIST again."
            )
        if labels.max() >= CLASSES:
            raise UserError(f"{folder} has the {split} label {labels.max()}, outside 0..9; fetch Fashion-MNIST again.")
        images = np.repeat(resized(pixels, size)[..., None], 3, axis=3)
        numbers = labels.astype(np.int64)
        return ImageSet(images, numbers, CLASSES, KIND, split, content_fingerprint(images, numbers))
