"""CIFAR-10 and CIFAR-100, read by torchvision from its own download layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from weight_decay.config.groups import ImageData
from weight_decay.config.registry import DATA
from weight_decay.data.images.image_set import ImageSet, content_fingerprint
from weight_decay.data.where import Home, torchvision_command
from weight_decay.errors import UserError


@DATA.add("cifar10")
@dataclass(frozen=True)
class Cifar10(ImageData):
    """CIFAR-10."""

    home: ClassVar[Home] = Home("CIFAR-10", torchvision_command("CIFAR10"), "cifar-10-batches-py", ("data_batch_1",))
    sizes: ClassVar[tuple[int, int]] = (50_000, 10_000)

    def load(self, split: str) -> ImageSet:
        """One of the official splits, in memory: 50,000 train and 10,000 test images, uint8 (N, 32, 32, 3).

        Raises:
            UserError: files are missing or damaged (torchvision checks their MD5).
        """
        # Imported here: it takes a second, and runs on other data do without it.
        from torchvision.datasets import CIFAR10, CIFAR100

        root = Path(self.root)
        source = {"cifar10": CIFAR10, "cifar100": CIFAR100}[self.kind]
        try:
            data = source(str(root), train=split == "train")
        except (RuntimeError, OSError, EOFError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{self.kind} cannot be read from {root} ({reason}); put the extracted"
                f" {source.base_folder} there or allow the download."
            ) from error
        images = np.ascontiguousarray(data.data)
        labels = np.asarray(data.targets, dtype=np.int64)
        return ImageSet(images, labels, len(data.classes), self.kind, split, content_fingerprint(images, labels))


@DATA.add("cifar100")
@dataclass(frozen=True)
class Cifar100(Cifar10):
    """CIFAR-100."""

    home: ClassVar[Home] = Home("CIFAR-100", torchvision_command("CIFAR100"), "cifar-100-python", ("train",))
