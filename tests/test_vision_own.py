"""Images of one's own without code: a folder of pictures by class, and an npz file."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import read_summary
from vision_files import load_images
from weight_decay.config.run import RunConfig
from weight_decay.errors import UserError
from weight_decay.runs.folder import Labels
from weight_decay.training.run import run

CLASSES = ("bird", "cat", "dog")


def write_pictures(folder: Path, side: tuple[int, int] = (16, 16), counts: tuple[int, int] = (40, 12)) -> None:
    """PNG files whose brightness tells their class."""
    generator = np.random.default_rng(0)
    for split, count in zip(("train", "test"), counts, strict=True):
        for label, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(80 * label, 80 * label + 60, (*side, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")


def arrays(count: int = 90, side: int = 16) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(1)
    made = {}
    for split, rows in (("train", count), ("test", count // 3)):
        made[f"{split}_images"] = generator.integers(0, 256, (rows, side, side, 3), dtype=np.uint8)
        made[f"{split}_labels"] = np.arange(rows) % 3
    return made


def test_a_folder_of_pictures_keeps_every_pixel_and_label(tmp_path: Path) -> None:
    write_pictures(tmp_path / "mine")
    (tmp_path / "mine" / "train" / "bird" / "notes.txt").write_text("no picture")
    for split, count in (("train", 120), ("test", 36)):
        data = load_images("image_folder", split, tmp_path, size=16, name="mine")
        assert (len(data), data.classes, data.name) == (count, 3, "mine")
        images = np.asarray(data.images)
        found = {(image.tobytes(), int(label)) for image, label in zip(images, data.labels, strict=True)}
        expected = {
            (np.asarray(Image.open(path)).tobytes(), CLASSES.index(path.parent.name))
            for path in (tmp_path / "mine" / split).glob("*/*.png")
        }
        assert found == expected
        # On disk they lie class by class; the first of them must not be of one class.
        assert set(data.labels[:18].tolist()) == {0, 1, 2}
    again = load_images("image_folder", "test", tmp_path, size=16, name="mine")
    assert again.fingerprint == data.fingerprint


def test_pictures_are_cut_to_their_centre_and_scaled(tmp_path: Path) -> None:
    write_pictures(tmp_path / "image_folder", side=(16, 40), counts=(2, 1))
    data = load_images("image_folder", "train", tmp_path, size=16)
    expected = {
        np.asarray(Image.open(path))[:, 12:28].tobytes() for path in (tmp_path / "image_folder/train").glob("*/*")
    }
    assert {image.tobytes() for image in np.asarray(data.images)} == expected
    flat = tmp_path / "flat"
    for split in ("train", "val"):
        for name in ("a", "b"):
            (flat / split / name).mkdir(parents=True)
            Image.new("L", (37, 91), 77).save(flat / split / name / "grey.jpg", quality=100)
    for split in ("train", "test"):
        small = np.asarray(load_images("image_folder", split, tmp_path, size=8, name="flat").images)
        assert small.shape == (2, 8, 8, 3) and np.abs(small.astype(int) - 77).max() <= 1


@pytest.mark.parametrize(("dtype", "suffix"), [(np.uint16, "png"), (np.int32, "tif"), (np.float32, "tif")])
def test_a_picture_of_more_than_8_bits_is_refused(tmp_path: Path, dtype: type, suffix: str) -> None:
    """Pillow cuts off at 255, which would make it white, or black where it holds shares of 1."""
    write_pictures(tmp_path / "mine", counts=(4, 4))
    pixels = (np.arange(256).reshape(16, 16) * (257 if dtype is not np.float32 else 1 / 255)).astype(dtype)
    Image.fromarray(pixels).save(tmp_path / "mine" / "train" / "cat" / f"deep.{suffix}")
    with pytest.raises(UserError, match="more than 8 bits a channel"):
        load_images("image_folder", "train", tmp_path, size=16, name="mine")


def test_what_is_wrong_with_a_folder_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "image_folder"
    with pytest.raises(UserError, match=r"train must hold a folder of pictures for each class, but has 0"):
        load_images("image_folder", "train", tmp_path, size=16)
    write_pictures(folder, counts=(2, 1))
    (folder / "train" / "cat" / "1.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"cat.1\.png is no picture that can be read"):
        load_images("image_folder", "train", tmp_path, size=16)
    (folder / "test" / "cow").mkdir()
    with pytest.raises(UserError, match=r"cow is of no class of .*train"):
        load_images("image_folder", "test", tmp_path, size=16)


@pytest.mark.parametrize("names", [("{}_images", "{}_labels"), ("x_{}", "y_{}"), ("X_{}", "Y_{}")])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_is_read_as_it_is(tmp_path: Path, names: tuple[str, str], save: Callable[..., None]) -> None:
    made = arrays()
    renamed = {
        name.format(split): made[f"{split}_{what}"]
        for split in ("train", "test")
        for name, what in zip(names, ("images", "labels"), strict=True)
    }
    save(tmp_path / "mine.npz", **renamed)
    for split in ("train", "test"):
        data = load_images("npz", split, tmp_path, size=16, name="mine")
        assert np.array_equal(np.asarray(data.images), made[f"{split}_images"]) and data.classes == 3
        assert data.labels.tolist() == made[f"{split}_labels"].tolist()


@pytest.mark.parametrize("last", [(), (1,)])
def test_grey_arrays_get_three_equal_channels(tmp_path: Path, last: tuple[int, ...]) -> None:
    made = arrays()
    for split in ("train", "test"):
        made[f"{split}_images"] = made[f"{split}_images"][..., 0].reshape(-1, 16, 16, *last)
        made[f"{split}_labels"] = made[f"{split}_labels"][:, None].astype(np.uint8)
    np.savez(tmp_path / "npz.npz", **made)
    images = np.asarray(load_images("npz", "train", tmp_path, size=16).images)
    for channel in range(3):
        assert np.array_equal(images[..., channel], made["train_images"].reshape(-1, 16, 16))


def test_what_is_wrong_with_an_npz_is_named(tmp_path: Path) -> None:
    path = tmp_path / "npz.npz"
    good = arrays()
    for change, reason in (
        ({"train_images": good["train_images"].astype(np.float32)}, r"holds float32 but must hold uint8"),
        ({"train_images": good["train_images"][:, :12]}, r"shape \(90, 12, 16, 3\) but must be \(N, 16, 16\)"),
        ({"train_labels": good["train_labels"][:80]}, r"shape \(80,\) but must be \(90,\)"),
        ({"train_labels": good["train_labels"] - 1}, r"numbers from 0 to 1"),
        ({"train_labels": np.array([None] * 90)}, r"holds object but must hold whole numbers"),
    ):
        np.savez(path, **{**good, **change})  # type: ignore[arg-type]
        with pytest.raises(UserError, match=reason):
            load_images("npz", "train", tmp_path, size=16)
    np.savez(path, **{key: value for key, value in good.items() if key != "test_labels"})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="has no array test_labels or y_test or Y_test"):
        load_images("npz", "test", tmp_path, size=16)
    # A header that claims more than there is: refused before anything of that size is allocated.
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 16, 16, 3)})
    np.savez(path, **{key: value for key, value in good.items() if key != "train_images"})  # type: ignore[arg-type]
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("train_images.npy", header.getvalue() + bytes(100))
    with pytest.raises(UserError, match="train_images is not as long as its header says"):
        load_images("npz", "train", tmp_path, size=16)
    path.write_bytes(b"no zip file")
    with pytest.raises(UserError, match="cannot be read"):
        load_images("npz", "train", tmp_path, size=16)


@pytest.mark.parametrize("kind", ["image_folder", "npz"])
def test_runs_on_them(kind: str, tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    if kind == "npz":
        np.savez(root / "mine.npz", **arrays(120))  # type: ignore[arg-type]
    else:
        write_pictures(root / "mine")
    sizes = "data.image_size=16 data.train_size=null data.test_size=null probes.evaluation_train_samples=64"
    config = tiny("vision", f"data={kind} data.name=mine data.classes=3 {sizes} data.root={root}")
    run(config, Labels("single", "micro", "x"))
    (folder,) = (Path(config.execution.results) / "runs").iterdir()
    summary = read_summary(folder)
    assert summary["status"] == "completed" and summary["data"]["name"] == "mine"
    assert summary["data"]["train_samples"] == 120
    wrong = tiny("vision", f"data={kind} data.name=mine data.classes=10 {sizes} data.root={root}")
    with pytest.raises(UserError, match=r"has 3 classes of 16 pixels; set data\.classes and data\.image_size so"):
        run(wrong, Labels("single", "micro", "x"))
