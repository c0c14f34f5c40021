"""A set of labelled images (uint8, NHWC), in memory or memory-mapped, and the sets cut from it."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from weight_decay.data.content import kept_object
from weight_decay.errors import UserError
from weight_decay.runs.files import write_json

COUNTS_NAME = "channel_counts.json"
"""In a folder of prepared data: for each set of them how often each level occurs in each channel."""

# Philox counters of the uses of a seed, so that a subset never repeats an epoch's order.
_EPOCH_DOMAIN, _SUBSET_DOMAIN, _CHOICE_DOMAIN = 0, 1, 2
_CHUNK_BYTES = 64 * 2**20


def seeded_order(seed: int, stream: int, size: int, domain: int = _EPOCH_DOMAIN) -> np.ndarray:
    """A permutation of range(size), int64, that depends on (seed, stream, size, domain) alone.

    It sorts raw Philox words, whose values NumPy guarantees for every version; the higher-level
    `Generator.permutation` carries no such promise.
    """
    generator = np.random.Philox(
        key=np.array([seed, stream], dtype=np.uint64), counter=np.array([0, 0, 0, domain], dtype=np.uint64)
    )
    return np.argsort(generator.random_raw(size), kind="stable")


class RowView:
    """Chosen rows of an array (often a memory map), read only when indexed; shaped like the result."""

    def __init__(self, base: np.ndarray, rows: np.ndarray):
        self.base, self.rows = base, rows
        self.shape = (len(rows), *base.shape[1:])
        self.dtype = base.dtype
        self.nbytes = len(rows) * int(np.prod(base.shape[1:])) * base.dtype.itemsize

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Any) -> np.ndarray:
        return self.base[self.rows[key]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.base[self.rows], dtype=dtype)


def derived_fingerprint(*parts: object) -> str:
    """SHA-256 of the parts' text, for a set that is cut from a fingerprinted one."""
    return hashlib.sha256("/".join(str(part) for part in parts).encode()).hexdigest()


def content_fingerprint(images: np.ndarray, labels: np.ndarray) -> str:
    """SHA-256 of the shape and every byte of images and labels, for a set without a manifest."""
    digest = hashlib.sha256(str(images.shape).encode())
    digest.update(np.ascontiguousarray(images).data)
    digest.update(np.ascontiguousarray(labels, dtype="<i8").data)
    return digest.hexdigest()


@dataclass(frozen=True)
class ImageSet:
    """Labelled images of one split.

    Attributes:
        images: uint8 (N, H, W, 3), an array, a memory map or a `RowView` of one; index it, or call
            `numpy.asarray` where all of it is wanted in memory.
        labels: int64 (N,), in 0..classes-1.
        classes: number of classes.
        name: the data set's name for tables.
        split: "train" or "test", with what was cut from it.
        fingerprint: 64 hex digits that name the content.
        folder: where prepared data lie, and what was counted of them is kept; None for others.
    """

    images: np.ndarray | RowView
    labels: np.ndarray
    classes: int
    name: str
    split: str
    fingerprint: str
    folder: Path | None = None

    def __post_init__(self) -> None:
        if len(self.images.shape) != 4 or self.images.shape[3] != 3:
            raise ValueError(f"images must be (N, H, W, 3), not {self.images.shape}")
        if self.images.dtype != np.uint8 or self.labels.dtype != np.int64:
            raise ValueError("images must be uint8 and labels int64")
        if self.labels.shape != (self.images.shape[0],):
            raise ValueError(f"{self.images.shape[0]} images but labels of shape {self.labels.shape}")

    def __len__(self) -> int:
        return len(self.labels)

    def _cut(self, rows: np.ndarray, what: str) -> ImageSet:
        images = self.images
        return replace(
            self,
            images=RowView(images.base, images.rows[rows]) if isinstance(images, RowView) else RowView(images, rows),
            labels=self.labels[rows],
            split=f"{self.split}:{what}",
            fingerprint=derived_fingerprint(self.fingerprint, what),
        )

    def first(self, size: int) -> ImageSet:
        """The first `size` images, in dataset order, without copying.

        Raises:
            UserError: `size` is not between 1 and the number of images.
        """
        self._check_size(size)
        return self._cut(np.arange(size), f"first{size}")

    def subset(self, size: int, seed: int) -> ImageSet:
        """The first `size` images in an order drawn from `seed`: a smaller subset is a prefix of a larger.

        Images are not copied. These are the training-set sizes of Figure 1.

        Raises:
            UserError: `size` is not between 1 and the number of images.
        """
        self._check_size(size)
        rows = seeded_order(seed, 0, len(self), _SUBSET_DOMAIN)[:size]
        return self._cut(rows, f"subset{size}-seed{seed}")

    def choice(self, size: int, seed: int) -> np.ndarray:
        """Rows of `size` images drawn from `seed`, each class with its share of the set; int64 (size,), ascending.

        For measurements on a part of a set: the first images of a set that is stored class by class would be those of
        a few classes. A smaller choice lies inside a larger one, and every class is within one image of its share.

        Raises:
            UserError: `size` is not between 1 and the number of images.
        """
        self._check_size(size)
        drawn, of_class = self._drawn(seed)
        # The r-th of a class's n images comes at (r + 1/2) / n of the way: all classes are used up at the same pace.
        place = np.empty(len(self))
        for members in of_class:
            place[members] = (np.arange(len(members)) + 0.5) / max(len(members), 1)
        return np.sort(drawn[np.argsort(place[drawn], kind="stable")[:size]])

    def chosen(self, size: int, seed: int) -> ImageSet:
        """The images of `choice`, in dataset order, without copying."""
        return self._cut(self.choice(size, seed), f"chosen{size}-seed{seed}")

    def take(self, rows: np.ndarray) -> ImageSet:
        """The images of these rows, in their order, without copying."""
        return self._cut(rows, f"rows{hashlib.sha256(rows.tobytes()).hexdigest()[:16]}")

    def class_balanced(self, per_class: int, seed: int) -> ImageSet:
        """`per_class` images of each class drawn from `seed`, in dataset order (for ‖J‖ the paper takes 500 each).

        Raises:
            UserError: a class has fewer images than that.
        """
        rows = []
        for label, drawn in enumerate(self._drawn(seed)[1]):
            members = drawn[:per_class]
            if len(members) < per_class or per_class < 1:
                raise UserError(
                    f"{self.name} ({self.split}) has {len(members)} images of class {label} where"
                    f" {per_class} were asked for; ask for between 1 and what it has."
                )
            rows.append(members)
        return self._cut(np.sort(np.concatenate(rows)), f"balanced{per_class}-seed{seed}")

    def _drawn(self, seed: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """All rows in an order drawn from `seed`, and those of each class in this order."""
        drawn = seeded_order(seed, 0, len(self), _CHOICE_DOMAIN)
        return drawn, [drawn[self.labels[drawn] == label] for label in range(self.classes)]

    def channel_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each channel over all pixels: two float64 (3,), levels 0-255.

        Streams over the images and counts in integers, so the result is exact at any size.
        """
        counts = self._channel_counts()
        levels = np.arange(256, dtype=np.float64)
        total = counts.sum(axis=1)
        mean = (counts @ levels) / total
        variance = (counts * (levels[None, :] - mean[:, None]) ** 2).sum(axis=1) / total
        return mean, np.sqrt(variance)

    def _channel_counts(self) -> np.ndarray:
        """How often each level occurs in each channel, int64 (3, 256).

        Of prepared data they are kept beside these: counting the five million images of CIFAR-5m takes about 98 s.
        """
        kept = {} if self.folder is None else kept_object(self.folder / COUNTS_NAME)
        with contextlib.suppress(KeyError, ValueError, TypeError):
            counts = np.asarray(kept[self.fingerprint], dtype=np.int64)
            pixels = int(np.prod(self.images.shape[:3]))
            if counts.shape == (3, 256) and (counts >= 0).all() and (counts.sum(1) == pixels).all():
                return counts
        counts = np.zeros((3, 256), dtype=np.int64)
        for start, stop in chunks(self.images):
            block = self.images[start:stop].reshape(-1, 3)
            for channel in range(3):
                counts[channel] += np.bincount(block[:, channel], minlength=256)
        if self.folder is not None:
            with contextlib.suppress(OSError):
                # What another run keeps between these two calls is lost, and counted again one day.
                kept = kept_object(self.folder / COUNTS_NAME)
                write_json(self.folder / COUNTS_NAME, {**kept, self.fingerprint: counts.tolist()})
        return counts

    def _check_size(self, size: int) -> None:
        if not 1 <= size <= len(self):
            raise UserError(
                f"{size} images were asked for but {self.name} ({self.split}) has {len(self)};"
                f" ask for 1 to {len(self)}."
            )


def chunks(images: np.ndarray | RowView) -> Iterator[tuple[int, int]]:
    """Row ranges (start, stop) that cover the images in order, about 64 MiB each."""
    rows = max(1, _CHUNK_BYTES // int(np.prod(images.shape[1:])))
    for start in range(0, len(images), rows):
        yield start, min(start + rows, len(images))
