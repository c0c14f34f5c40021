"""Image sets in a device's memory, each there once however many read it.

A stream, an evaluation and a re-estimation of the same set share one copy, and so do the runs that a process makes one
after the other: `hold` keeps the sets of the latest run until a run with others comes.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from weight_decay.data.images.image_set import ImageSet, chunks
from weight_decay.device.memory import room_for_data, to_device


@dataclass(frozen=True, eq=False)
class ResidentImages:
    """All of a set on a device: uint8 images (N, H, W, 3) and int64 labels (N,)."""

    images: Tensor
    labels: Tensor


_there: weakref.WeakValueDictionary[tuple[str, str], ResidentImages] = weakref.WeakValueDictionary()
_held: dict[tuple[str, str], ResidentImages] = {}
_wanted: set[tuple[str, str]] = set()


def resident_copy(image_set: ImageSet, device: torch.device) -> ResidentImages | None:
    """The one copy of the set on `device`, brought there now if it was not; None if its images do not fit."""
    key = (image_set.fingerprint, str(device))
    copy = _there.get(key)
    if copy is None:
        if image_set.images.nbytes > room_for_data(device):
            return None
        copy = _there[key] = ResidentImages(
            _upload(image_set, device), to_device(torch.from_numpy(image_set.labels), device)
        )
    if key in _wanted:
        _held[key] = copy
    return copy


def hold(image_sets: list[ImageSet], device: torch.device) -> None:
    """Keep these sets once they are on `device`, and let go of all others that were kept."""
    global _wanted
    _wanted = {(image_set.fingerprint, str(device)) for image_set in image_sets}
    for key in set(_held) - _wanted:
        del _held[key]


def _upload(image_set: ImageSet, device: torch.device) -> Tensor:
    images = torch.empty(image_set.images.shape, dtype=torch.uint8, device=device)
    for start, stop in chunks(image_set.images):
        images[start:stop].copy_(torch.from_numpy(np.array(image_set.images[start:stop])))
    return images
