"""Fashion-MNIST from idx files: as torchvision reads them, raw or gzipped, wherever they lie, and damaged."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import FashionMNIST

from conftest import read_summary
from vision_files import idx, load_images
from vision_files import write_fashion_mnist as write
from weight_decay.config.run import RunConfig
from weight_decay.data.images.fashion_mnist import read_idx, resized
from weight_decay.errors import UserError
from weight_decay.runs.folder import Labels
from weight_decay.training.run import run


@pytest.mark.parametrize(
    ("folder", "style", "name"),
    [
        ("fashion_mnist", "{}-{}-idx{}-ubyte", None),
        ("fashion_mnist", "{}-{}-idx{}-ubyte.gz", None),
        ("fashion_mnist", "{}-{}.idx{}-ubyte", None),
        ("FashionMNIST/raw", "{}-{}-idx{}-ubyte", None),
        ("mine/FashionMNIST/raw", "{}-{}-idx{}-ubyte.gz", "mine"),
    ],
)
def test_any_layout_is_read_as_it_is(tmp_path: Path, folder: str, style: str, name: str | None) -> None:
    arrays = write(tmp_path / folder, style)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        data = load_images("fashion_mnist", split, tmp_path, size=28, name=name)
        pixels, labels = arrays[prefix]
        assert data.classes == 10 and data.labels.tolist() == labels.tolist()
        for channel in range(3):
            assert np.array_equal(np.asarray(data.images)[..., channel], pixels)


def test_torchvision_reads_the_same_files_the_same(tmp_path: Path) -> None:
    write(tmp_path / "FashionMNIST" / "raw")
    for split in ("train", "test"):
        theirs = FashionMNIST(str(tmp_path), train=split == "train", download=False)
        ours = load_images("fashion_mnist", split, tmp_path, size=28)
        assert np.array_equal(theirs.data.numpy(), np.asarray(ours.images)[..., 0])
        assert theirs.targets.tolist() == ours.labels.tolist()


def test_sizes_are_borders_and_means_of_blocks() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 28, 28), dtype=np.uint8)
    framed = np.zeros((7, 32, 32), np.uint8)
    framed[:, 2:30, 2:30] = pixels
    assert np.array_equal(resized(pixels, 28), pixels) and np.array_equal(resized(pixels, 32), framed)
    for size, whole in ((14, pixels), (16, framed), (8, framed)):
        block = whole.shape[1] // size
        expected = np.empty((7, size, size))
        for row in range(size):
            for column in range(size):
                part = whole[:, row * block : (row + 1) * block, column * block : (column + 1) * block]
                expected[:, row, column] = np.floor(part.reshape(7, -1).mean(axis=1) + 0.5)
        assert np.array_equal(resized(pixels, size), expected)


def test_damage_and_absence_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not in .*fashion_mnist or .*FashionMNIST; get it with python -c"):
        load_images("fashion_mnist", "train", tmp_path, size=28)
    folder = tmp_path / "fashion_mnist"
    write(folder)
    with pytest.raises(UserError, match=r"data\.image_size: .* 8, 14, 16, 28, 32 pixels, not 20"):
        load_images("fashion_mnist", "train", tmp_path, size=20)
    path = folder / "train-images-idx3-ubyte"
    whole = path.read_bytes()
    for content, reason in (
        (whole[:-1], "too few for its|shorter than its header"),
        (whole + b"x", "longer than its header"),
        (b"\x89PNG" + whole, "no idx file|not an idx file"),
        (struct.pack(">4B3I", 0, 0, 8, 3, 2**31, 2**31, 28) + whole[16:], "too few for its"),
        (whole[:2], "not an idx file"),
        (whole[:9], "cannot be read"),
        (idx(np.zeros((300, 27, 28))), r"shape \(300, 27, 28\)"),
        (idx(np.zeros((299, 28, 28))), r"shape \(299, 28, 28\) and labels of shape \(300,\)"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=reason):
            load_images("fashion_mnist", "train", tmp_path, size=28)
    path.unlink()
    # A header may not make a small archive claim what it cannot hold.
    bomb = gzip.compress(struct.pack(">4B3I", 0, 0, 8, 3, 10**6, 28, 28) + bytes(100))
    (folder / f"{path.name}.gz").write_bytes(bomb)
    with pytest.raises(UserError, match="too few for its 784,000,000 values"):
        load_images("fashion_mnist", "train", tmp_path, size=28)
    cut = gzip.compress(whole)
    (folder / f"{path.name}.gz").write_bytes(cut[: len(cut) // 2])
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz cannot be read"):
        load_images("fashion_mnist", "train", tmp_path, size=28)
    (folder / f"{path.name}.gz").write_bytes(cut)
    labels = folder / "train-labels-idx1-ubyte"
    labels.write_bytes(idx(np.full(300, 10)))
    with pytest.raises(UserError, match=r"train label 10, outside 0\.\.9"):
        load_images("fashion_mnist", "train", tmp_path, size=28)
    labels.unlink()
    with pytest.raises(UserError, match=r"train-labels-idx1-ubyte \(or \.gz\) is missing"):
        load_images("fashion_mnist", "train", tmp_path, size=28)
    assert read_idx(folder / "t10k-labels-idx1-ubyte").shape == (140,)


def test_a_run_on_it(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    write(tmp_path / "data" / "fashion_mnist")
    more = f"data=fashion_mnist data.image_size=16 data.train_size=null data.root={tmp_path / 'data'}"
    summary = read_summary(run_and_folder(tiny("vision", more)))
    assert summary["status"] == "completed"
    assert summary["data"]["name"] == "fashion_mnist" and summary["data"]["train_samples"] == 300


def run_and_folder(config: RunConfig) -> Path:
    run(config, Labels("single", "micro", "x"))
    (folder,) = (Path(config.execution.results) / "runs").iterdir()
    return folder
