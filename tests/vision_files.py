"""Small data folders in the exact published formats, for the vision-data tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tiny_runs import FASHION_MNIST, idx, write_fashion_mnist
from weight_decay.config.registry import DATA
from weight_decay.data.images.image_set import ImageSet

__all__ = ["FASHION_MNIST", "idx", "load_images", "write_fashion_mnist", "write_parts", "write_tiny_imagenet"]

PARTS = 6


def write_parts(
    folder: Path,
    rows: int = 20,
    size: int = 8,
    name: str = "part{}.npz",
    label_dtype: str = "int64",
    compressed: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Write six CIFAR-5m parts with NumPy itself; returns all images and labels in part order."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(7)
    images = generator.integers(0, 256, (PARTS * rows, size, size, 3), dtype=np.uint8)
    labels = generator.integers(0, 10, PARTS * rows).astype(label_dtype)
    for number in range(PARTS):
        part = slice(number * rows, (number + 1) * rows)
        save = np.savez_compressed if compressed else np.savez
        save(folder / name.format(number), X=images[part], Y=labels[part])
    return images, labels


def write_tiny_imagenet(folder: Path, train_per_class: int = 12, val_images: int = 5) -> dict[Path, np.ndarray]:
    """Write a two-class tiny-imagenet-200 folder; returns the pixels each JPEG decodes to, by path.

    wnids.txt is unsorted, as in the published archive, and one training image is grey.
    """
    generator = np.random.default_rng(3)
    wnids = ["n02124075", "n01443537"]
    folder.mkdir(parents=True)
    (folder / "wnids.txt").write_text("\n".join(wnids) + "\n")
    pixels: dict[Path, np.ndarray] = {}

    def save(path: Path, grey: bool) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (64, 64) if grey else (64, 64, 3)
        Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(path, "JPEG")
        with Image.open(path) as image:
            pixels[path] = np.asarray(image.convert("RGB"))

    for wnid in wnids:
        for number in range(train_per_class):
            save(folder / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", grey=number == 1)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
    lines = []
    for number in range(val_images):
        save(folder / "val" / "images" / f"val_{number}.JPEG", grey=False)
        lines.append(f"val_{number}.JPEG\t{wnids[number % 2]}\t0\t32\t44\t62")
    (folder / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return pixels


def load_images(
    kind: str, split: str, root: Path, name: str | None = None, size: int = 32, seed: int = 0, **counts: int
) -> ImageSet:
    """A split of a kind of data below `root`; `counts` are train_size and test_size."""
    settings = {"kind": kind, "name": name, "image_size": size, "classes": 10, "seed": seed, "normalise": True}
    settings |= {"drop_last": False, "order": "shuffled", "augment": False}
    sizes = {"train_size": None, "test_size": None, **counts}
    return DATA[kind](**settings, **sizes, root=str(root)).load(split)
