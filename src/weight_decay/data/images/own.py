"""Images of one's own without code: a folder of pictures by class, or arrays in one npz file.

`ROOT/NAME/{train,test}/CLASS/PICTURE`, or `ROOT/NAME.npz` with images and labels of both splits.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from weight_decay.config.groups import ImageData
from weight_decay.config.registry import DATA
from weight_decay.data.images.cifar5m_parts import DAMAGE, read_header
from weight_decay.data.images.image_set import ImageSet, content_fingerprint, seeded_order
from weight_decay.data.where import Home, folder_of
from weight_decay.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm")
# Keeps the fixed order of a folder's pictures apart from the orders that a run draws.
_FOLDER_STREAM = 7_151
_NAMES = {
    "images": ("{split}_images", "x_{split}", "X_{split}"),
    "labels": ("{split}_labels", "y_{split}", "Y_{split}"),
}


def _class_names(folder: Path) -> list[str]:
    """The classes of a folder of pictures: the names of the folders in `train`, sorted; UserError if fewer than two."""
    names = [path.name for path in _folders(folder / "train")]
    if len(names) < 2:
        raise UserError(f"{folder / 'train'} must hold a folder of pictures for each class, but has {len(names)}.")
    return names


def _folders(where: Path) -> list[Path]:
    if not where.is_dir():
        return []
    return sorted(path for path in where.iterdir() if path.is_dir() and not path.name.startswith("."))


def _pictures(where: Path) -> list[Path]:
    return sorted(path for path in where.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def _decoded(path: Path, size: int) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            if picture.mode.startswith(("I", "F")):
                # Pillow cuts such values off at 255: the picture would be white.
                raise ValueError("it has more than 8 bits a channel; save it with 8")
            side = min(picture.size)
            left, top = (picture.width - side) // 2, (picture.height - side) // 2
            square = picture.convert("RGB").crop((left, top, left + side, top + side))
            return np.asarray(square if side == size else square.resize((size, size), Image.Resampling.BILINEAR))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is no picture that can be read ({error}); replace or remove it.") from error


def _checked(archive: zipfile.ZipFile, path: Path, what: str, split: str) -> tuple[str, tuple[int, ...]]:
    """Name and shape of an array whose header says what it must and whose length is what the header says."""
    names = [name.format(split=split) for name in _NAMES[what]]
    found = [name for name in names if f"{name}.npy" in archive.namelist()]
    if not found:
        raise UserError(f"{path} has no array {' or '.join(names)}; save it under one of these names.")
    member = archive.getinfo(f"{found[0]}.npy")
    with archive.open(member) as handle:
        shape, _, dtype = read_header(handle)
        start = handle.tell()
    kinds = "u" if what == "images" else "iu"
    if dtype.kind not in kinds or (what == "images" and dtype.itemsize != 1):
        wanted = "uint8" if what == "images" else "whole numbers"
        raise UserError(f"{path}: {found[0]} holds {dtype} but must hold {wanted}; convert and save it again.")
    if member.file_size != start + prod(shape) * dtype.itemsize:
        raise UserError(f"{path}: {found[0]} is not as long as its header says; save it again.")
    return found[0], shape


@DATA.add("image_folder")
@dataclass(frozen=True)
class ImageFolder(ImageData):
    """Pictures of one's own by class."""

    named: ClassVar[bool] = True
    home: ClassVar[Home] = Home(
        "your own images",
        "mkdir -p {root}/{name}/train/CLASS {root}/{name}/test/CLASS and put the images there",
        "image_folder",
        ("train",),
    )

    def load(self, split: str) -> ImageSet:
        """One split, decoded into memory: uint8 (N, size, size, 3).

        Every picture is cut to its central square and scaled. The folders of `train`, sorted by name, are the classes;
        the test set may be called `val`. The pictures stand in a fixed shuffled order, so that the first of them are
        of all classes.

        Raises:
            UserError: a folder is absent or empty, a class of the test set is unknown, or a picture cannot be read.
        """
        folder, size = folder_of(self), self.image_size
        classes = _class_names(folder)
        where = folder / split
        if split == "test" and not where.is_dir() and (folder / "val").is_dir():
            where = folder / "val"
        if not where.is_dir():
            raise UserError(f"{where} does not exist; put the {split} pictures in {where}/CLASS.")
        unknown = sorted({path.name for path in _folders(where)} - set(classes))
        if unknown:
            raise UserError(f"{where / unknown[0]} is of no class of {folder / 'train'}; move or rename it.")
        files = [(path, label) for label, name in enumerate(classes) for path in _pictures(where / name)]
        if not files:
            raise UserError(
                f"{where} holds no picture ({', '.join(SUFFIXES)}) in a folder of its class; put some there."
            )
        images = np.empty((len(files), size, size, 3), np.uint8)
        order = seeded_order(0, _FOLDER_STREAM, len(files))
        for row, number in enumerate(order):
            images[row] = _decoded(files[number][0], size)
        labels = np.array([files[number][1] for number in order], dtype=np.int64)
        return ImageSet(images, labels, len(classes), folder.name, split, content_fingerprint(images, labels))


@DATA.add("npz")
@dataclass(frozen=True)
class NpzData(ImageData):
    """Arrays of one's own in one npz file."""

    named: ClassVar[bool] = True
    home: ClassVar[Home] = Home(
        "your own images",
        "numpy.savez('{root}/{name}.npz', train_images=..., train_labels=..., test_images=..., test_labels=...)",
        "npz",
        ("../{name}.npz",),
    )

    def load(self, split: str) -> ImageSet:
        """One split, in memory: uint8 (N, size, size, 3), grey images repeated to three channels.

        The file holds `train_images`, `train_labels`, `test_images`, `test_labels`, or x_train, y_train, x_test,
        y_test: images uint8 (N, size, size), or with one or three channels last; labels integers (N,) or (N, 1).

        Raises:
            UserError: an array is absent, of another shape or type, or damaged. Shape, type and length are known
                before an array is read, and nothing is unpickled.
        """
        size = self.image_size
        path = folder_of(self).with_name(f"{folder_of(self).name}.npz")
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no file; save your arrays there with numpy.savez.")
        try:
            with zipfile.ZipFile(path) as archive:
                images_key, shape = _checked(archive, path, "images", split)
                labels_key, counted = _checked(archive, path, "labels", split)
                train_key, _ = _checked(archive, path, "labels", "train")
            if shape[1:] not in ((size, size), (size, size, 1), (size, size, 3)) or shape[0] < 1:
                raise UserError(
                    f"{path}: {images_key} has the shape {shape} but must be (N, {size}, {size}), with 1 or 3 channels"
                    " last or none; set data.image_size to its side."
                )
            if counted not in ((shape[0],), (shape[0], 1)):
                raise UserError(
                    f"{path}: {labels_key} has the shape {counted} but must be ({shape[0]},), one an image."
                )
            with np.load(path, allow_pickle=False) as arrays:
                images, labels = arrays[images_key], arrays[labels_key].reshape(-1).astype(np.int64)
                classes = int(arrays[train_key].max()) + 1
        except DAMAGE as error:
            raise UserError(f"{path} cannot be read ({error}); save it again with numpy.savez.") from error
        if labels.min() < 0 or labels.max() >= classes:
            raise UserError(
                f"{path}: {labels_key} must be numbers from 0 to {classes - 1}, the largest of {train_key}."
            )
        images = images[..., None] if images.ndim == 3 else images
        images = np.repeat(images, 3, axis=3) if images.shape[3] == 1 else np.ascontiguousarray(images)
        return ImageSet(images, labels, classes, path.stem, split, content_fingerprint(images, labels))
