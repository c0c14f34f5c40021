"""One door to every image set: `load_images(kind, split, root, ...)`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from weight_decay.data.images.cifar import load_cifar
from weight_decay.data.images.cifar5m import load_cifar5m
from weight_decay.data.images.fashion_mnist import load_fashion_mnist
from weight_decay.data.images.image_set import ImageSet
from weight_decay.data.images.own import load_image_folder, load_npz, npz_file
from weight_decay.data.images.procedural import ensure_procedural
from weight_decay.data.images.tiny_imagenet import load_tiny_imagenet
from weight_decay.errors import UserError

# The options each kind reads. All that a kind reads must be given, and nothing else may be.
KINDS: dict[str, frozenset[str]] = {
    "procedural": frozenset({"seed", "size", "train_images", "test_images"}),
    "cifar5m": frozenset({"train_parts", "test_part", "test_images"}),
    "cifar10": frozenset({"download"}),
    "cifar100": frozenset({"download"}),
    "tiny_imagenet": frozenset(),
    "fashion_mnist": frozenset({"size"}),
    "image_folder": frozenset({"size"}),
    "npz": frozenset({"size"}),
}


def load_images(
    kind: str,
    split: str,
    root: Path,
    *,
    name: str | None = None,
    seed: int | None = None,
    size: int | None = None,
    train_images: int | None = None,
    test_images: int | None = None,
    train_parts: Sequence[int] | None = None,
    test_part: int | None = None,
    download: bool | None = None,
) -> ImageSet:
    """Load a split ("train" or "test") of a data set below the folder `root`.

    Args:
        kind: "procedural" (made in `root` on first use), "cifar5m" and "tiny_imagenet" (prepared
            folders `root/cifar5m`, `root/tiny_imagenet`), "cifar10", "cifar100", "fashion_mnist" (torchvision's
            folders), "image_folder" (pictures by class in `root/name`), "npz" (`root/name.npz`).
        split: "train" or "test".
        root: the folder of all data sets.
        name: the folder below `root` of a set of one's own; None for the kind's usual one.
        seed, size, train_images, test_images: the procedural set; "train" is its first `train_images`.
            `size` is also that of Fashion-MNIST and of one's own images.
        train_parts, test_part, test_images: how CIFAR-5m is split.
        download: whether CIFAR-10/100 may be fetched.

    Raises:
        UserError: an unknown kind or split, an option that this kind does not read or lacks, or data that
            is missing or damaged.
    """
    options = {
        "seed": seed,
        "size": size,
        "train_images": train_images,
        "test_images": test_images,
        "train_parts": train_parts,
        "test_part": test_part,
        "download": download,
    }
    if kind not in KINDS:
        raise UserError(f"There is no image set {kind!r}; choose one of {', '.join(KINDS)}.")
    if split not in ("train", "test"):
        raise UserError(f"There is no split {split!r}; choose train or test.")
    given = {name for name, value in options.items() if value is not None}
    if given != KINDS[kind]:
        raise UserError(
            f"The image set {kind!r} takes the options {sorted(KINDS[kind])} but was given {sorted(given)}."
        )
    if kind == "tiny_imagenet":
        return load_tiny_imagenet(root / kind, split)
    if kind == "fashion_mnist":
        assert size is not None
        return load_fashion_mnist(split, root, size, name)
    if kind in ("image_folder", "npz"):
        assert size is not None
        folder = root / (name or kind)
        return load_image_folder(folder, split, size) if kind != "npz" else load_npz(npz_file(folder), split, size)
    if kind == "cifar5m":
        assert train_parts is not None and test_part is not None and test_images is not None
        return load_cifar5m(root / kind, split, test_images, train_parts, test_part)
    if kind == "procedural":
        assert seed is not None and size is not None and train_images is not None and test_images is not None
        folder = ensure_procedural(root, seed, size, train_images, test_images)
        whole = load_cifar5m(folder, split, test_images)
        return whole.first(train_images) if split == "train" else whole
    assert download is not None
    return load_cifar(kind, split, root, download)
