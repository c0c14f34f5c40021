"""The procedural generator: pure, chunk-free, platform-free, balanced, and CIFAR-5m in format."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import zipfile
from pathlib import Path

import numpy as np
import pytest

from weight_decay.data.images.cifar5m import load_cifar5m
from weight_decay.data.images.procedural import (
    CLASS_NAMES,
    TEST_START,
    ensure_procedural,
    procedural_images,
    write_procedural_cifar5m,
)
from weight_decay.data.manifest import verify_folder
from weight_decay.errors import UserError


@pytest.mark.parametrize("size", [16, 32])
def test_an_image_depends_on_seed_and_index_alone(size: int) -> None:
    images, labels = procedural_images(5, np.arange(600), size)
    assert images.shape == (600, size, size, 3) and images.dtype == np.uint8 and labels.dtype == np.int64
    scattered = np.random.default_rng(0).permutation(600)[:333]
    again, again_labels = procedural_images(5, scattered, size)
    np.testing.assert_array_equal(again, images[scattered])
    np.testing.assert_array_equal(again_labels, labels[scattered])
    alone, label = procedural_images(5, np.array([417]), size)
    np.testing.assert_array_equal(alone[0], images[417])
    assert label[0] == labels[417]


def test_seeds_and_indices_give_different_images() -> None:
    first, _ = procedural_images(0, np.arange(500))
    second, _ = procedural_images(1, np.arange(500))
    test, _ = procedural_images(0, np.arange(TEST_START, TEST_START + 500))
    distinct = {image.tobytes() for block in (first, second, test) for image in block}
    assert len(distinct) == 1500


def test_bytes_are_frozen() -> None:
    """Golden checksums: on another platform they must be the same; after a change, raise the version."""
    digests = []
    for size in (16, 32):
        images, labels = procedural_images(0, np.r_[0:64, TEST_START : TEST_START + 64], size)
        digests.append(hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()[:16])
    assert digests == ["a03f59d616ed4ab5", "f298232f2129567d"]


def test_labels_are_uniform_and_one_shape_size_does_not_change_them() -> None:
    _, small = procedural_images(0, np.arange(20_000), 8)
    _, large = procedural_images(0, np.arange(2000), 16)
    np.testing.assert_array_equal(small[:2000], large)
    counts = np.bincount(small, minlength=len(CLASS_NAMES))
    # Chi-squared with 9 degrees of freedom: 33.7 is passed once in 10,000 draws.
    assert ((counts - 2000) ** 2 / 2000).sum() < 33.7


def test_an_image_shows_its_label() -> None:
    """Class means over colour-free edge maps tell unseen images apart far above chance."""

    def edges(images: np.ndarray) -> np.ndarray:
        grey = images.astype(np.float64).mean(axis=3)
        grey = (grey - grey.mean(axis=(1, 2), keepdims=True)) / grey.std(axis=(1, 2), keepdims=True)
        flat = np.abs(np.fft.fft2(grey)).reshape(len(grey), -1)
        return flat / np.linalg.norm(flat, axis=1, keepdims=True)

    train, train_labels = procedural_images(0, np.arange(6000), 16)
    test, test_labels = procedural_images(0, np.arange(TEST_START, TEST_START + 2000), 16)
    means = np.stack([edges(train[train_labels == label]).mean(axis=0) for label in range(10)])
    means -= means.mean(axis=0)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    accuracy = (np.argmax(edges(test) @ means.T, axis=1) == test_labels).mean()
    assert accuracy > 0.2


def test_parts_are_cifar5ms_own_files(tmp_path: Path) -> None:
    write_procedural_cifar5m(tmp_path, seed=3, rows_per_part=30, size=16)
    expected, expected_labels = procedural_images(3, np.arange(150), 16)
    held_out, held_out_labels = procedural_images(3, np.arange(TEST_START, TEST_START + 30), 16)
    expected, expected_labels = np.r_[expected, held_out], np.r_[expected_labels, held_out_labels]
    for number in range(6):
        part = slice(30 * number, 30 * number + 30)
        with np.load(tmp_path / f"part{number}.npz", allow_pickle=False) as archive:
            assert sorted(archive.files) == ["X", "Y"]
            np.testing.assert_array_equal(archive["X"], expected[part])
            np.testing.assert_array_equal(archive["Y"], expected_labels[part])
            assert archive["Y"].dtype == np.int64
        with zipfile.ZipFile(tmp_path / f"part{number}.npz") as archive:
            assert archive.testzip() is None
    assert json.loads((tmp_path / "origin.json").read_text())["name"] == "procedural"


def test_ensure_makes_once_nests_and_cleans_up(tmp_path: Path) -> None:
    small = ensure_procedural(tmp_path, seed=0, size=16, train_images=200, test_images=64)
    large = ensure_procedural(tmp_path, seed=0, size=16, train_images=700, test_images=64)
    assert small != large
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {small.name, large.name}
    assert not list(tmp_path.rglob("*.npz"))
    verify_folder(small)
    few, many = (load_cifar5m(folder, "train", 64) for folder in (small, large))
    assert few.name == "procedural"
    np.testing.assert_array_equal(few.images, many.images[: len(few)])
    tests = [load_cifar5m(folder, "test", 64) for folder in (small, large)]
    np.testing.assert_array_equal(tests[0].images, tests[1].images)
    stamp = (small / "images.u8").stat().st_mtime_ns
    assert ensure_procedural(tmp_path, seed=0, size=16, train_images=200, test_images=64) == small
    assert (small / "images.u8").stat().st_mtime_ns == stamp


def test_a_damaged_cache_is_made_again(tmp_path: Path) -> None:
    folder = ensure_procedural(tmp_path, 0, 16, 50, 10)
    good = (folder / "images.u8").read_bytes()
    (folder / "images.u8").write_bytes(good[:-1])
    with pytest.warns(UserWarning, match="making .* again"):
        assert ensure_procedural(tmp_path, 0, 16, 50, 10) == folder
    assert (folder / "images.u8").read_bytes() == good


def test_processes_that_start_at_once_share_one_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        folders = pool.starmap(ensure_procedural, [(tmp_path, 0, 16, 3000, 100)] * 3)
    assert len(set(folders)) == 1
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [folders[0].name]
    verify_folder(folders[0])


def test_bad_requests(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="seed"):
        procedural_images(-1, np.arange(3))
    with pytest.raises(UserError, match="size"):
        procedural_images(0, np.arange(3), 4)
    with pytest.raises(UserError, match="at least 1"):
        ensure_procedural(tmp_path, 0, 16, 0, 10)
