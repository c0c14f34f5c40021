"""Image sets, the pure training stream, and the fixed evaluation order."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from weight_decay.data.images.image_set import ImageSet, RowView, seeded_order
from weight_decay.data.images.stream import FixedImages, ImageStream, Reading
from weight_decay.errors import UserError

CPU = torch.device("cpu")


def make_set(count: int, classes: int = 10, size: int = 4) -> ImageSet:
    """Images whose first two bytes spell their own index, so that a batch tells which rows it holds."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.arange(count) % 256, np.arange(count) // 256
    labels = generator.integers(0, classes, count)
    return ImageSet(images, labels.astype(np.int64), classes, "toy", "train", "f" * 64)


def indices_of(images: torch.Tensor) -> np.ndarray:
    return (images[:, 0, 0, 0].int() + 256 * images[:, 1, 0, 0].int()).numpy()


def rows_of(stream: ImageStream, steps: int) -> np.ndarray:
    return np.concatenate([indices_of(stream.batch(step)[0]) for step in range(steps)])


@pytest.mark.parametrize(("count", "batch"), [(50, 8), (7, 16), (64, 16), (5, 5)])
def test_every_epoch_is_a_permutation_though_batches_straddle(count: int, batch: int) -> None:
    stream = ImageStream(make_set(count), batch, 3, CPU)
    epochs = 6
    rows = rows_of(stream, -(-epochs * count // batch))[: epochs * count].reshape(epochs, count)
    np.testing.assert_array_equal(np.sort(rows, axis=1), np.tile(np.arange(count), (epochs, 1)))
    assert len({tuple(row) for row in rows}) > 1
    assert stream.epoch(9) == pytest.approx(9 * batch / count)


def test_batches_hold_the_sets_bytes_and_labels() -> None:
    toy = make_set(50)
    images, labels = ImageStream(toy, 8, 3, CPU).batch(11)
    rows = indices_of(images)
    assert images.dtype == torch.uint8 and labels.dtype == torch.int64
    assert images.shape == (8, 3, 4, 4) and images.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(images.permute(0, 2, 3, 1).numpy(), toy.images[rows])
    np.testing.assert_array_equal(labels.numpy(), toy.labels[rows])


@pytest.mark.parametrize("resident", [True, False])
def test_batch_is_pure_in_seed_and_step(resident: bool) -> None:
    toy = make_set(50)
    reference = ImageStream(toy, 8, 3, CPU, resident=True)
    stream = ImageStream(toy, 8, 3, CPU, resident=resident)
    # Out of order, repeated, far apart: prefetch and cached epochs must not show.
    for step in [40, 0, 1, 2, 40, 6, 5, 1000, 7, 1001]:
        for ours, theirs in zip(stream.batch(step), reference.batch(step), strict=True):
            assert torch.equal(ours, theirs)
    other = ImageStream(toy, 8, 4, CPU, resident=resident)
    assert rows_of(other, 6).tolist() != rows_of(reference, 6).tolist()


def test_the_order_is_frozen() -> None:
    """Golden values: a change would silently alter every published run."""
    assert rows_of(ImageStream(make_set(10), 5, 0, CPU), 4).tolist() == GOLDEN_ORDER


GOLDEN_ORDER = [0, 2, 9, 1, 8, 5, 4, 3, 6, 7, 5, 3, 7, 8, 2, 4, 1, 0, 6, 9]


def test_global_random_state_is_neither_read_nor_moved() -> None:
    toy = make_set(50)
    np.random.seed(1)
    torch.manual_seed(1)
    before = rows_of(ImageStream(toy, 8, 3, CPU), 3)
    states = np.random.get_state()[1].copy(), torch.get_rng_state()
    np.random.seed(2)
    np.testing.assert_array_equal(rows_of(ImageStream(toy, 8, 3, CPU), 3), before)
    np.random.seed(1)
    rows_of(ImageStream(toy, 8, 3, CPU), 3)
    np.testing.assert_array_equal(np.random.get_state()[1], states[0])
    assert torch.equal(torch.get_rng_state(), states[1])


def test_a_negative_step_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        ImageStream(make_set(50), 8, 0, CPU).batch(-1)


def test_gather_errors_of_the_prefetch_thread_reach_the_caller() -> None:
    toy = make_set(50)
    broken = ImageSet(RowView(toy.images, np.arange(50) + 10), toy.labels, 10, "toy", "train", "")
    with pytest.raises(IndexError):
        ImageStream(broken, 50, 0, CPU, resident=False).batch(0)


def test_subsets_nest_and_are_lazy() -> None:
    toy = make_set(300)
    small, large = toy.subset(40, seed=5), toy.subset(200, seed=5)
    np.testing.assert_array_equal(np.asarray(small.images), np.asarray(large.images)[:40])
    np.testing.assert_array_equal(small.labels, large.labels[:40])
    assert isinstance(large.images, RowView) and large.images.base is toy.images
    assert large.subset(10, seed=1).images.base is toy.images  # type: ignore[union-attr]
    assert len(set(large.images.rows.tolist())) == 200
    fingerprints = {toy.fingerprint, small.fingerprint, large.fingerprint, toy.subset(40, seed=6).fingerprint}
    assert len(fingerprints) == 4
    assert toy.subset(40, seed=5).fingerprint == small.fingerprint
    with pytest.raises(UserError, match="ask for 1 to 300"):
        toy.subset(301, seed=0)


@pytest.mark.parametrize("sizes", [(100, 100, 100), (10, 40, 150)])
def test_a_choice_gives_every_class_its_share_whatever_the_order_on_disk(sizes: tuple[int, ...]) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)  # class by class, as Tiny-ImageNet is stored
    toy = dataclasses.replace(make_set(len(labels)), labels=labels, classes=len(sizes))
    for size in (1, 7, 30, len(labels)):
        rows = toy.choice(size, seed=4)
        counts = np.bincount(labels[rows], minlength=len(sizes))
        assert np.abs(counts - size * np.array(sizes) / len(labels)).max() <= 1
        assert len(set(rows.tolist())) == size and (np.diff(rows) > 0).all()
        assert set(rows.tolist()) <= set(toy.choice(min(size + 20, len(labels)), seed=4).tolist())
    assert toy.choice(30, seed=4).tolist() == toy.choice(30, seed=4).tolist() != toy.choice(30, seed=5).tolist()
    chosen = toy.chosen(30, seed=4)
    np.testing.assert_array_equal(chosen.labels, labels[toy.choice(30, seed=4)])
    assert chosen.fingerprint not in (toy.fingerprint, toy.chosen(30, seed=5).fingerprint)
    with pytest.raises(UserError, match="ask for 1 to"):
        toy.choice(len(labels) + 1, seed=4)


def test_class_balanced_takes_as_many_of_each_class() -> None:
    toy = make_set(300, classes=3)
    balanced = toy.class_balanced(20, seed=1)
    assert np.bincount(balanced.labels).tolist() == [20, 20, 20]
    for images, label in zip(np.asarray(balanced.images), balanced.labels, strict=True):
        row = int(np.flatnonzero((toy.images == images).all((1, 2, 3)))[0])
        assert toy.labels[row] == label
    assert balanced.fingerprint != toy.class_balanced(20, seed=2).fingerprint
    with pytest.raises(UserError, match="images of class"):
        toy.class_balanced(200, seed=1)


def test_channel_statistics_match_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weight_decay.data.images.image_set._CHUNK_BYTES", 1000)
    toy = make_set(300).subset(131, seed=0)
    mean, deviation = toy.channel_statistics()
    pixels = np.asarray(toy.images).reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(deviation, pixels.std(axis=0), rtol=1e-12)


@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize("limit", [None, 21])
def test_fixed_images_repeat_their_rows(fits: bool, limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fits:
        monkeypatch.setattr("weight_decay.data.images.stream.resident_copy", lambda *_: None)
    toy = make_set(50).subset(30, seed=2)
    rows = None if limit is None else np.random.default_rng(0).permutation(30)[:limit]
    fixed = FixedImages(toy, 8, CPU, rows)
    count = limit or 30
    wanted = np.arange(30) if rows is None else rows
    assert fixed.samples == count
    for _ in range(2):
        batches = list(fixed)
        assert len(batches) == -(-count // 8)
        images, labels = (torch.cat(column) for column in zip(*batches, strict=True))
        np.testing.assert_array_equal(images.permute(0, 2, 3, 1).numpy(), np.asarray(toy.images)[wanted])
        np.testing.assert_array_equal(labels.numpy(), toy.labels[wanted])
    assert batches[0][0].is_contiguous(memory_format=torch.channels_last)


def test_drop_last_ends_an_epoch_with_its_last_whole_batch() -> None:
    toy = make_set(20)
    stream = ImageStream(toy, 8, 3, CPU, reading=Reading(drop_last=True))
    assert stream.epoch(4) == 2.0
    rows = rows_of(stream, 4)
    for epoch in range(2):
        order = seeded_order(3, epoch, 20)
        assert rows[16 * epoch : 16 * (epoch + 1)].tolist() == order[:16].tolist()
    with pytest.raises(UserError, match="do not fill one batch of 21"):
        ImageStream(toy, 21, 3, CPU, reading=Reading(drop_last=True))


def test_the_order_of_training_images_is_a_choice() -> None:
    toy = make_set(12)
    repeated = rows_of(ImageStream(toy, 4, 3, CPU, reading=Reading(order="repeated")), 6)
    assert repeated[:12].tolist() == repeated[12:].tolist() == seeded_order(3, 0, 12).tolist()
    assert rows_of(ImageStream(toy, 4, 3, CPU, reading=Reading(order="stored")), 6).tolist() == [*range(12), *range(12)]


def test_a_malformed_set_is_refused() -> None:
    toy = make_set(5)
    with pytest.raises(ValueError, match="labels of shape"):
        ImageSet(toy.images, toy.labels[:4], 10, "toy", "train", "")
    with pytest.raises(ValueError, match="uint8"):
        ImageSet(toy.images.astype(np.float32), toy.labels, 10, "toy", "train", "")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("resident", [True, False])
def test_cuda_batches_equal_cpu_batches(resident: bool) -> None:
    toy = make_set(50)
    gpu = torch.device("cuda")
    ours, reference = ImageStream(toy, 8, 3, gpu, resident), ImageStream(toy, 8, 3, CPU)
    for step in range(20):
        images, labels = ours.batch(step)
        assert images.is_cuda and images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(images.cpu(), reference.batch(step)[0])
        assert torch.equal(labels.cpu(), reference.batch(step)[1])
