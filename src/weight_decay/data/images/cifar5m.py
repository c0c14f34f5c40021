"""CIFAR-5m: six npz parts converted once to a uint8 memory map, then opened in an instant.

The source is `part{0..5}.npz` (or `cifar5m_part{0..5}.npz`), each with `X` uint8 (rows, size, size, 3)
and `Y` integer labels (rows,). The prepared folder holds `images.u8` and `labels.u8` (the parts one
after the other, no header), and `manifest.json`, written last.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
from tqdm import tqdm

from weight_decay.config.groups import ImageData
from weight_decay.config.registry import DATA
from weight_decay.config.schema import require
from weight_decay.data.images.cifar5m_parts import (
    CLASSES,
    OFFICIAL_PART_ROWS,
    PARTS,
    Part,
    damage_told,
    inspect_parts,
    open_member,
)
from weight_decay.data.images.image_set import ImageSet, derived_fingerprint
from weight_decay.data.manifest import MANIFEST_NAME, exclusive_lock, read_manifest, write_manifest
from weight_decay.data.where import Home
from weight_decay.errors import UserError
from weight_decay.runs.files import write_text

KIND = "cifar5m"
# A file beside the parts that says who made them; without one they are taken for the published set.
ORIGIN_NAME = "origin.json"
_IMAGES, _LABELS, _PROGRESS = "images.u8", "labels.u8", "progress.json"
_BLOCK_BYTES = 8 * 2**20


def convert_cifar5m(source: Path, target: Path, progress: bool = True, part_rows: int | None = None) -> dict[str, Any]:
    """Convert the six npz parts in `source` to a memory-mapped folder `target`, and return its manifest.

    All six headers are checked before a byte is written. Memory stays at a few megabytes. A killed
    conversion goes on after the last finished part when started again; a finished target is left as
    it is and its manifest returned. Two conversions into one target take turns.

    Args:
        source: folder with the parts; an `origin.json` beside them (the procedural generator writes
            one) is copied into the manifest.
        target: folder to create.
        progress: show a progress bar.
        part_rows: rows every part must have (1,000,448 as published). None accepts any number that
            all parts share, and warns where it is not the published one.

    Raises:
        UserError: a part is missing, truncated, mislabelled or of the wrong shape or length, or the
            disk is full.
    """
    with exclusive_lock(target / ".lock"):
        if (target / MANIFEST_NAME).exists():
            return read_manifest(target, KIND)
        parts = inspect_parts(source, part_rows)
        rows, size = parts[0].rows, parts[0].size
        bytes_of_row = size * size * 3
        done = _finished_parts(target, parts)
        needed = (PARTS - done) * rows * (bytes_of_row + 1)
        free = shutil.disk_usage(target).free
        if free < needed:
            raise UserError(f"{target} has {free:,} bytes free but {needed:,} are needed; make room and start again.")
        with tqdm(total=PARTS * rows, initial=done * rows, unit="image", disable=not progress) as bar:
            for number in range(done, PARTS):
                bar.set_description(parts[number].path.name)
                _append_part(target, parts[number], number, bar)
                finished = [part.identity() for part in parts[: number + 1]]
                write_text(target / _PROGRESS, json.dumps(finished))
        for name in (_IMAGES, _LABELS):
            if (target / f"{name}.partial").exists():
                (target / f"{name}.partial").replace(target / name)
        fields = {
            "parts": PARTS,
            "part_rows": rows,
            "size": size,
            "classes": CLASSES,
            "origin": _origin(source, parts[0]),
        }
        manifest = write_manifest(target, KIND, fields, [target / _IMAGES, target / _LABELS])
        (target / _PROGRESS).unlink()
        return manifest


def _origin(source: Path, part: Part) -> dict[str, Any]:
    path = source / ORIGIN_NAME
    if not path.exists():
        # The name goes into every table, so data of another extent must not carry the published set's.
        published = part.rows == OFFICIAL_PART_ROWS and part.size == 32
        return {"name": KIND if published else f"{KIND}-format"}
    try:
        origin = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(origin["name"], str):
            raise ValueError("its name is not text")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); make the parts again.") from error
    return origin


def _finished_parts(target: Path, parts: list[Part]) -> int:
    """How many parts an earlier, killed conversion of these very files has written in full."""
    try:
        finished = json.loads((target / _PROGRESS).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return 0
    if not isinstance(finished, list) or finished != [part.identity() for part in parts][: len(finished)]:
        return 0
    rows = len(finished) * parts[0].rows
    for name, size in ((_IMAGES, rows * parts[0].size ** 2 * 3), (_LABELS, rows)):
        # A kill between the last part and the manifest leaves the final names already in place.
        written = [path for path in (target / f"{name}.partial", target / name) if path.exists()]
        if not written or written[0].stat().st_size < size:
            return 0
    return len(finished)


def _append_part(target: Path, part: Part, number: int, bar: tqdm) -> None:
    bytes_of_row = part.size * part.size * 3
    block_rows = max(1, _BLOCK_BYTES // bytes_of_row)
    mode = "r+b" if number else "wb"
    images_path, labels_path = target / f"{_IMAGES}.partial", target / f"{_LABELS}.partial"
    with images_path.open(mode) as images, labels_path.open(mode) as labels:
        images.seek(number * part.rows * bytes_of_row)
        labels.seek(number * part.rows)
        # Whatever a killed run wrote of this part is cut off first.
        images.truncate()
        labels.truncate()
        with damage_told(part.path), zipfile.ZipFile(part.path) as archive:
            numbers = np.frombuffer(open_member(archive, part.path, "Y")[0].read(), dtype=part.label_dtype)
        wrong = np.flatnonzero((numbers < 0) | (numbers >= CLASSES))
        if len(wrong):
            raise UserError(
                f"{part.path}: label {numbers[wrong[0]]} of row {wrong[0]} is outside 0..{CLASSES - 1};"
                " fetch this CIFAR-5m part again."
            )
        _write(labels, numbers.astype(np.uint8).tobytes(), labels_path)
        with zipfile.ZipFile(part.path) as archive:
            source, _, _ = open_member(archive, part.path, "X")
            written = 0
            while written < part.rows:
                with damage_told(part.path):
                    block = source.read(min(block_rows, part.rows - written) * bytes_of_row)
                if not block or len(block) % bytes_of_row:
                    raise UserError(f"{part.path} is truncated at image {written}; fetch it again.")
                _write(images, block, images_path)
                written += len(block) // bytes_of_row
                bar.update(len(block) // bytes_of_row)
            with damage_told(part.path):
                source.read(1)  # reaching the end makes zipfile compare the checksum
        for handle in (images, labels):
            handle.flush()
            os.fsync(handle.fileno())


def _write(handle: IO[bytes], block: bytes, path: Path) -> None:
    try:
        handle.write(block)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error}); make room and start again, it will go on.") from error


def load_cifar5m(folder: Path, split: str, test_images: int = 10_000) -> ImageSet:
    """Open a prepared folder as memory maps; nothing is read until it is indexed.

    Args:
        folder: what `convert_cifar5m` wrote.
        split: "train" is all parts but the last; "test" the first `test_images` of the last.
        test_images: how many, in which publications differ.

    Returns:
        The set; its `name` is "cifar5m", "cifar5m-format" where rows or size are not the published
        ones, or what the parts' maker wrote (such as "procedural").

    Raises:
        UserError: the folder is damaged, or the split cannot be cut from it.
    """
    manifest = read_manifest(folder, KIND)
    fields = manifest["fields"]
    if set(fields) != {"parts", "part_rows", "size", "classes", "origin"}:
        raise UserError(f"{folder / MANIFEST_NAME} lacks CIFAR-5m's fields; prepare the data again.")
    rows, size, parts = fields["part_rows"], fields["size"], fields["parts"]
    if split not in ("train", "test"):
        raise UserError(f"CIFAR-5m has no split {split!r}; choose train or test.")
    if not 1 <= test_images <= rows:
        raise UserError(f"{test_images} test images were asked for but a part of {folder} has {rows}; ask for fewer.")
    images = np.memmap(folder / _IMAGES, dtype=np.uint8, mode="r", shape=(parts * rows, size, size, 3))
    labels = np.fromfile(folder / _LABELS, dtype=np.uint8)
    trained = (parts - 1) * rows
    if split == "test":
        part, text = slice(trained, trained + test_images), f"test:part{parts - 1}-first{test_images}"
    else:
        part, text = slice(0, trained), "train:parts" + "".join(str(number) for number in range(parts - 1))
    return ImageSet(
        images=images[part],
        labels=labels[part].astype(np.int64),
        classes=fields["classes"],
        name=fields["origin"]["name"],
        split=text,
        fingerprint=derived_fingerprint(manifest["fingerprint"], text),
        folder=folder,
    )


@DATA.add("cifar5m")
@dataclass(frozen=True)
class Cifar5mData(ImageData):
    """CIFAR-5m: trained on its first five parts, tested on the first `test_size` images of the sixth."""

    home: ClassVar[Home] = Home(
        "CIFAR-5m's six parts, 18.4 GB", "make data-cifar5m FROM=FOLDER", "cifar5m", (MANIFEST_NAME,)
    )
    sizes: ClassVar[tuple[int, int]] = (5_002_240, 1_000_448)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.test_size is not None,
            "test_size: CIFAR-5m's test part has 1,000,448 images and papers differ in how many they use; say how many",
        )

    def load(self, split: str) -> ImageSet:
        """One split, as memory maps."""
        assert self.test_size is not None
        return load_cifar5m(Path(self.root) / self.kind, split, self.test_size)
