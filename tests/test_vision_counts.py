"""Channel statistics of prepared data are counted once and kept beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vision_files import write_parts
from weight_decay.data.images import image_set
from weight_decay.data.images.cifar5m import convert_cifar5m, load_cifar5m
from weight_decay.data.images.image_set import COUNTS_NAME


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_parts(tmp_path / "parts")
    convert_cifar5m(tmp_path / "parts", tmp_path / "data")
    return tmp_path / "data"


def test_statistics_are_counted_once_for_each_set(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_cifar5m(folder, "train", test_images=10)
    sets = [whole, whole.subset(50, 1), whole.subset(50, 2)]
    counted = [found.channel_statistics() for found in sets]
    pixels = np.asarray(sets[1].images).reshape(-1, 3).astype(float)
    assert np.allclose(counted[1], [pixels.mean(0), pixels.std(0)])
    monkeypatch.setattr(image_set, "chunks", lambda images: pytest.fail("counted again"))
    again = load_cifar5m(folder, "train", test_images=10)
    for found, before in zip([again, again.subset(50, 1), again.subset(50, 2)], counted, strict=True):
        assert np.array_equal(found.channel_statistics(), before)


@pytest.mark.parametrize("damage", ["", "{", "[]", "zeros", "short"])
def test_damaged_counts_are_counted_again(folder: Path, damage: str) -> None:
    found = load_cifar5m(folder, "train", test_images=10)
    before = found.channel_statistics()
    counts = {"zeros": np.zeros((3, 256), int).tolist(), "short": [[1]]}.get(damage)
    text = damage if counts is None else f'{{"{found.fingerprint}": {counts}}}'
    (folder / COUNTS_NAME).write_text(text)
    assert np.array_equal(found.channel_statistics(), before)


def test_a_folder_that_cannot_be_written_to_is_no_obstacle(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr("weight_decay.data.images.image_set.write_json", refuse)
    load_cifar5m(folder, "train", test_images=10).channel_statistics()
    assert not (folder / COUNTS_NAME).exists()
