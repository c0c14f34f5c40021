"""Augmentation of training images: random crops and flips, a pure function of (seed, step)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from weight_decay.device.memory import to_device

_STREAM = 7
"""Keeps these draws apart from others of the same seed."""


def crop_and_flip(images: Tensor, seed: int, step: int, batch_size: int, first: int) -> Tensor:
    """Images `first`, `first` + 1, ... of the batch of a step, each cropped from a margin and every second one flipped.

    images: (b, S, S, 3), uint8, on any device. The margin is an eighth of S wide and black (0 before normalisation), as
    torchvision's RandomCrop(32, padding=4) has it; the crop is uniform among its (2·S/8 + 1)² places. Draws are made
    for the whole batch of `batch_size`, so an image's are the same however the batch is split.
    """
    count, size = images.shape[:2]
    margin = size // 8
    bits = np.random.Philox(key=np.array([seed, step], np.uint64), counter=[0, 0, 0, _STREAM])
    draws = np.random.Generator(bits).integers(0, [2 * margin + 1, 2 * margin + 1, 2], size=(batch_size, 3))
    top, left, flipped = draws[first : first + count].T
    along = np.arange(size)
    rows = top[:, None] + along
    columns = left[:, None] + np.where(flipped[:, None] == 1, along[::-1], along)
    padded = images.new_zeros(count, size + 2 * margin, size + 2 * margin, images.shape[3])
    padded[:, margin : margin + size, margin : margin + size] = images
    index = [to_device(torch.from_numpy(np.ascontiguousarray(values)), images.device) for values in (rows, columns)]
    each = torch.arange(count, device=images.device)[:, None, None]
    return padded[each, index[0][:, :, None], index[1][:, None, :]]
