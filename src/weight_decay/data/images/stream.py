"""The two ways to read an image set: an endless training stream and a fixed evaluation order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from weight_decay.data.images.image_set import ImageSet, seeded_order
from weight_decay.data.images.resident import resident_copy
from weight_decay.data.prefetch import Prefetcher
from weight_decay.device.memory import pinned, to_device
from weight_decay.errors import UserError

_AUGMENT_STREAM = 7
"""Keeps the draws of crops and flips apart from others of the same seed."""


@dataclass(frozen=True)
class Reading:
    """How an epoch of images is read.

    drop_last: no batch straddles epochs.
    order: "shuffled" anew for every epoch, "repeated": one permutation for all of them, or "stored".
    augment: crop and flip the images at random; see `crop_and_flip`.
    """

    drop_last: bool = False
    order: Literal["shuffled", "repeated", "stored"] = "shuffled"
    augment: bool = False


_SHUFFLED = Reading()


class ImageStream:
    """Endless training batches; `batch(step)` is a pure function of (set, seed, step).

    The stream is the concatenation of one permutation of the set per epoch, keyed by (seed, epoch);
    step s takes positions s·B to (s+1)·B of it. A batch may straddle epochs, so after s steps exactly
    s·B samples were presented, whatever the size of the set. With `drop_last` an epoch ends with its last
    whole batch instead, as in a torch DataLoader, and other images are left out of the next.

    Args:
        image_set: what to draw from.
        batch_size: B.
        seed: the data seed, ≥ 0.
        device: where batches appear.
        resident: keep all images on the device; None: if they fit. It changes
            speed alone: otherwise a background thread gathers the next batches from the array.
        reading: order, ends of epochs, augmentation.

    Raises:
        UserError: with `drop_last`, a batch size above the size of the set.
    """

    def __init__(
        self,
        image_set: ImageSet,
        batch_size: int,
        seed: int,
        device: torch.device,
        resident: bool | None = None,
        reading: Reading = _SHUFFLED,
    ):
        self.image_set, self.batch_size, self.seed, self.device = image_set, batch_size, seed, device
        self._kept_order, self._augment = reading.order, reading.augment
        self._epoch_samples = epoch_samples(len(image_set), batch_size, reading.drop_last)
        self._orders: dict[int, torch.Tensor] = {}
        self._labels = torch.from_numpy(image_set.labels)
        copy = None if resident is False else resident_copy(image_set, device)
        self.resident = copy is not None
        if copy is not None:
            self._images, self._labels = copy.images, copy.labels
        else:
            self._read = Prefetcher[tuple[torch.Tensor, torch.Tensor]]()

    def epoch(self, step: int) -> float:
        """Passes over the set once `step` steps are done."""
        return step * self.batch_size / self._epoch_samples

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The batch of step 0, 1, ...: uint8 (B, 3, H, W) in channels_last format, int64 (B,)."""
        if step < 0:
            raise ValueError(f"step {step} is negative")
        if self.resident:
            rows = self._rows(step)
            return self._seen(self._images[rows], step).permute(0, 3, 1, 2), self._labels[rows]
        images, labels = self._read(step, self._gather)
        images = images.to(self.device, non_blocking=images.is_pinned())
        return images.permute(0, 3, 1, 2), labels.to(self.device, non_blocking=labels.is_pinned())

    def _seen(self, images: torch.Tensor, step: int) -> torch.Tensor:
        return crop_and_flip(images, self.seed, step) if self._augment else images

    def _rows(self, step: int) -> torch.Tensor:
        """Rows of the set for a step, int64, on the device if the images are there."""
        size = self._epoch_samples
        position = step * self.batch_size
        end = position + self.batch_size
        pieces = []
        while position < end:
            epoch, start = divmod(position, size)
            stop = min(size, start + end - position)
            pieces.append(self._order(epoch)[start:stop])
            position += stop - start
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _order(self, epoch: int) -> torch.Tensor:
        epoch = epoch if self._kept_order == "shuffled" else 0
        if epoch not in self._orders:
            size = len(self.image_set)
            rows = np.arange(size) if self._kept_order == "stored" else seeded_order(self.seed, epoch, size)
            order = torch.from_numpy(rows)
            # The newest two suffice: a batch that straddles epochs needs both again at the next step.
            while len(self._orders) >= 2:
                del self._orders[next(iter(self._orders))]
            self._orders[epoch] = to_device(order, self.device) if self.resident else order
        return self._orders[epoch]

    def _gather(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = self._rows(step)
        images, labels = torch.from_numpy(self.image_set.images[rows.numpy()]), self._labels[rows]
        images = self._seen(images, step)
        return pinned(images, self.device), pinned(labels, self.device)


def crop_and_flip(images: torch.Tensor, seed: int, step: int) -> torch.Tensor:
    """The images of the batch of a step, each cropped from a margin and every second one flipped.

    images: (b, S, S, 3), uint8, on any device. The margin is an eighth of S wide and black (0 before normalisation), as
    torchvision's RandomCrop(32, padding=4) has it; the crop is uniform among its (2·S/8 + 1)² places.
    """
    count, size = images.shape[:2]
    margin = size // 8
    bits = np.random.Philox(key=np.array([seed, step], np.uint64), counter=[0, 0, 0, _AUGMENT_STREAM])
    draws = np.random.Generator(bits).integers(0, [2 * margin + 1, 2 * margin + 1, 2], size=(count, 3))
    top, left, flipped = draws.T
    along = np.arange(size)
    rows = top[:, None] + along
    columns = left[:, None] + np.where(flipped[:, None] == 1, along[::-1], along)
    padded = images.new_zeros(count, size + 2 * margin, size + 2 * margin, images.shape[3])
    padded[:, margin : margin + size, margin : margin + size] = images
    index = [to_device(torch.from_numpy(np.ascontiguousarray(values)), images.device) for values in (rows, columns)]
    each = torch.arange(count, device=images.device)[:, None, None]
    return padded[each, index[0][:, :, None], index[1][:, None, :]]


def epoch_samples(images: int, batch_size: int, drop_last: bool) -> int:
    """Images of one pass over a set of `images`; UserError if `drop_last` leaves none."""
    kept = images - images % batch_size if drop_last else images
    if kept == 0:
        raise UserError(
            f"data.drop_last: {images} images do not fill one batch of {batch_size}; make batch_size smaller."
        )
    return kept


class FixedImages:
    """The images of `rows` (all if None, in dataset order) in that order, in the same batches at every iteration.

    Iterating yields uint8 (b, 3, H, W) in channels_last format and int64 (b,), both on the device;
    the last batch holds what is left. `samples` counts images.
    """

    def __init__(self, image_set: ImageSet, batch_size: int, device: torch.device, rows: np.ndarray | None = None):
        # Training likely holds the whole set on the device already; a part of it alone where the whole does not fit.
        copy = resident_copy(image_set, device)
        if copy is None and rows is not None:
            image_set, rows = image_set.take(rows), None
            copy = resident_copy(image_set, device)
        self.image_set, self.batch_size, self.device = image_set, batch_size, device
        self.samples = len(image_set) if rows is None else len(rows)
        self._rows = None if rows is None else to_device(torch.from_numpy(rows), device)
        self._images = None if copy is None else copy.images
        self._labels = torch.from_numpy(image_set.labels).to(device) if copy is None else copy.labels

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for start in range(0, self.samples, self.batch_size):
            stop = min(start + self.batch_size, self.samples)
            part = slice(start, stop) if self._rows is None else self._rows[start:stop]
            if self._images is None:
                images = to_device(torch.from_numpy(np.array(self.image_set.images[start:stop])), self.device)
            else:
                images = self._images[part]
            yield images.permute(0, 3, 1, 2), self._labels[part]
