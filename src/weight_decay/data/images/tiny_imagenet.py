"""Tiny-ImageNet: 200 classes of 64×64 JPEGs, decoded once into uint8 memory maps.

The source is the published folder: `wnids.txt`, `train/<wnid>/images/*.JPEG`, `val/images/*.JPEG` and
`val/val_annotations.txt`. Classes are numbered by sorted wnid. The published test labels are
withheld, so the paper's test set is the official validation set; here it is the split "test".
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from weight_decay.config.groups import ImageData
from weight_decay.config.registry import DATA
from weight_decay.data.images.image_set import ImageSet, derived_fingerprint
from weight_decay.data.manifest import MANIFEST_NAME, exclusive_lock, read_manifest, write_manifest
from weight_decay.data.where import Home
from weight_decay.errors import UserError
from weight_decay.runs.files import replacing

KIND = "tiny_imagenet"
SIZE = 64
_AGAIN = "extract the Tiny-ImageNet archive again"

LabelledFiles = list[tuple[Path, int]]


def _read_lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); {_AGAIN}.") from error


def _number_in_name(path: Path) -> tuple[int, str]:
    # n01443537_10.JPEG comes after n01443537_9.JPEG.
    digits = re.search(r"(\d+)\.", path.name)
    return (int(digits.group(1)) if digits else -1, path.name)


def _list_train(source: Path, wnids: list[str], per_class: int) -> LabelledFiles:
    listed: LabelledFiles = []
    for label, wnid in enumerate(wnids):
        folder = source / "train" / wnid / "images"
        files = sorted(folder.glob("*.JPEG"), key=_number_in_name)
        if len(files) != per_class:
            raise UserError(f"{folder} has {len(files)} JPEG files but must have {per_class}; {_AGAIN}.")
        listed.extend((file, label) for file in files)
    return listed


def _list_val(source: Path, wnids: list[str], images: int) -> LabelledFiles:
    annotations = source / "val" / "val_annotations.txt"
    listed: LabelledFiles = []
    for number, line in enumerate(_read_lines(annotations), start=1):
        columns = line.split("\t")
        if len(columns) < 2 or columns[1] not in wnids:
            raise UserError(
                f"{annotations} line {number} must be an image name and a wnid of wnids.txt"
                f" but reads {line[:60]!r}; {_AGAIN}."
            )
        path = source / "val" / "images" / columns[0]
        if not path.is_file():
            raise UserError(f"{path} is missing although {annotations.name} lists it; {_AGAIN}.")
        listed.append((path, wnids.index(columns[1])))
    if len(listed) != images:
        raise UserError(f"{annotations} lists {len(listed)} images but must list {images}; {_AGAIN}.")
    return sorted(listed, key=lambda entry: _number_in_name(entry[0]))


def _decode(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            # Some of the published images are grey; they become three equal channels.
            pixels = np.asarray(image.convert("RGB"), dtype=np.uint8)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} is not a whole JPEG ({error}); {_AGAIN}.") from error
    if pixels.shape != (SIZE, SIZE, 3):
        height, width = pixels.shape[:2]
        raise UserError(f"{path} is {height}×{width} pixels but must be {SIZE}×{SIZE}; {_AGAIN}.")
    return pixels


def convert_tiny_imagenet(
    source: Path,
    target: Path,
    progress: bool = True,
    classes: int = 200,
    train_per_class: int = 500,
    val_images: int = 10_000,
) -> dict[str, Any]:
    """Decode the published folder `source` into `target`, and return the manifest.

    Writes `train_images.u8`, `train_labels.u8`, `test_images.u8`, `test_labels.u8` and, last,
    `manifest.json`. A finished target is left as it is. Decoders may differ in a last grey level, so
    fingerprints of two machines may differ.

    Args:
        source: the extracted archive, the folder with `wnids.txt`.
        target: folder to create.
        progress: show a progress bar.
        classes, train_per_class, val_images: counts the source must have; the published ones by default.

    Raises:
        UserError: a file is missing, unreadable, of another size, or the counts differ.
    """
    with exclusive_lock(target / ".lock"):
        if (target / MANIFEST_NAME).exists():
            return read_manifest(target, KIND)
        wnids = sorted(_read_lines(source / "wnids.txt"))
        if len(set(wnids)) != len(wnids) or len(wnids) != classes or classes > 256:
            raise UserError(
                f"{source / 'wnids.txt'} lists {len(wnids)} classes, not {classes} different ones; {_AGAIN}."
            )
        splits = {"train": _list_train(source, wnids, train_per_class), "test": _list_val(source, wnids, val_images)}
        files = []
        total = sum(len(listed) for listed in splits.values())
        with tqdm(total=total, unit="image", disable=not progress) as bar:
            for split, listed in splits.items():
                bar.set_description(split)
                labels = np.array([label for _, label in listed], dtype=np.uint8)
                images = (_decode(path).tobytes() for path, _ in listed)
                files.append(_write_blocks(target / f"{split}_images.u8", images, bar))
                files.append(_write_blocks(target / f"{split}_labels.u8", [labels.tobytes()], None))
        counts = {f"{split}_images": len(listed) for split, listed in splits.items()}
        return write_manifest(target, KIND, {"wnids": wnids, "size": SIZE, **counts}, files)


def _write_blocks(path: Path, blocks: Iterable[bytes], bar: tqdm | None) -> Path:
    with replacing(path) as handle:
        for block in blocks:
            try:
                handle.write(block)
            except OSError as error:
                raise UserError(f"{path} cannot be written ({error}); make room and start again.") from error
            if bar is not None:
                bar.update()
    return path


@DATA.add("tiny_imagenet")
@dataclass(frozen=True)
class TinyImageNetData(ImageData):
    """Tiny-ImageNet; the test set is the official validation set."""

    home: ClassVar[Home] = Home(
        "tiny-imagenet-200", "make data-tiny-imagenet FROM=FOLDER", "tiny_imagenet", (MANIFEST_NAME,)
    )
    sizes: ClassVar[tuple[int, int]] = (100_000, 10_000)

    def load(self, split: str) -> ImageSet:
        """One split, as memory maps: "train" (100,000 images) or "test" (10,000).

        Raises:
            UserError: the folder is damaged or not prepared.
        """
        folder = Path(self.root) / self.kind
        manifest = read_manifest(folder, KIND)
        fields = manifest["fields"]
        if set(fields) != {"wnids", "size", "train_images", "test_images"}:
            raise UserError(f"{folder / MANIFEST_NAME} lacks Tiny-ImageNet's fields; prepare the data again.")
        count, size = fields[f"{split}_images"], fields["size"]
        images = np.memmap(folder / f"{split}_images.u8", dtype=np.uint8, mode="r", shape=(count, size, size, 3))
        labels = np.fromfile(folder / f"{split}_labels.u8", dtype=np.uint8).astype(np.int64)
        return ImageSet(
            images=images,
            labels=labels,
            classes=len(fields["wnids"]),
            name=KIND,
            split="train" if split == "train" else "test:official-val",
            fingerprint=derived_fingerprint(manifest["fingerprint"], split),
        )
