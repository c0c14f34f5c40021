"""CIFAR-10/100 and Tiny-ImageNet in their published layouts, the registry, and the scripts."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image

import forked
from vision_files import load_images, write_parts, write_tiny_imagenet
from weight_decay.data.images.procedural import TEST_START, procedural_images
from weight_decay.data.images.tiny_imagenet import convert_tiny_imagenet
from weight_decay.data.manifest import verify_folder
from weight_decay.errors import UserError

SCRIPTS = Path(__file__).parent.parent / "scripts"
ROWS = 12


def write_cifar(root: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[np.ndarray, list[int]]]:
    """Write small files in CIFAR's layout.

    torchvision compares each file with the MD5 of the published one, which small files cannot have; so
    its lists of names are given these files' sums. The check itself runs as always.
    """
    source = getattr(torchvision.datasets, kind.upper())
    folder = root / source.base_folder
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    key, classes = ("labels", 10) if kind == "cifar10" else ("fine_labels", 100)

    def save(name: str, content: dict) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    expected = {}
    for split in ("train", "test"):
        sums, images, labels = [], [], []
        for name, _ in getattr(source, f"{split}_list"):
            rows = generator.integers(0, 256, (ROWS, 3072), dtype=np.uint8)
            numbers = generator.integers(0, classes, ROWS).tolist()
            sums.append(save(name, {"data": rows, key: numbers}))
            images.append(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            labels += numbers
        monkeypatch.setattr(source, f"{split}_list", sums)
        expected[split] = (np.concatenate(images), labels)
    meta = dict(source.meta)
    names = [f"class {number}" for number in range(classes)]
    meta["filename"], meta["md5"] = save(meta["filename"], {meta["key"]: names})
    monkeypatch.setattr(source, "meta", meta)
    return expected


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_cifar_files(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = write_cifar(tmp_path, kind, monkeypatch)
    fingerprints = set()
    for split in ("train", "test"):
        data = load_images(kind, split, tmp_path)
        np.testing.assert_array_equal(data.images, expected[split][0])
        assert data.labels.tolist() == expected[split][1]
        assert (data.name, data.split, data.classes) == (kind, split, 10 if kind == "cifar10" else 100)
        fingerprints.add(data.fingerprint)
    assert len(fingerprints) == 2


def test_cifar_missing_or_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="put the extracted cifar-10-batches-py there") as caught:
        load_images("cifar10", "train", tmp_path)
    assert "\n" not in str(caught.value)
    write_cifar(tmp_path, "cifar10", monkeypatch)
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    batch.write_bytes(batch.read_bytes()[:-1])
    with pytest.raises(UserError, match="cifar10 cannot be read"):
        load_images("cifar10", "train", tmp_path)


def convert_tiny(source: Path, target: Path) -> dict:
    return convert_tiny_imagenet(source, target, progress=False, classes=2, train_per_class=12, val_images=5)


def test_tiny_imagenet_conversion(tmp_path: Path) -> None:
    source = tmp_path / "tiny-imagenet-200"
    pixels = write_tiny_imagenet(source)
    manifest = convert_tiny(source, tmp_path / "tiny_imagenet")
    assert manifest["fields"]["wnids"] == ["n01443537", "n02124075"]
    train = load_images("tiny_imagenet", "train", tmp_path)
    test = load_images("tiny_imagenet", "test", tmp_path)
    # Classes by sorted wnid, files by number: _2 before _10.
    names = [(wnid, number) for wnid in ("n01443537", "n02124075") for number in range(12)]
    for row, (wnid, number) in enumerate(names):
        path = source / "train" / wnid / "images" / f"{wnid}_{number}.JPEG"
        np.testing.assert_array_equal(train.images[row], pixels[path])
    assert train.labels.tolist() == [0] * 12 + [1] * 12
    for row in range(5):
        np.testing.assert_array_equal(test.images[row], pixels[source / "val" / "images" / f"val_{row}.JPEG"])
    assert test.labels.tolist() == [1, 0, 1, 0, 1]
    assert (train.classes, train.name, test.split) == (2, "tiny_imagenet", "test:official-val")
    verify_folder(tmp_path / "tiny_imagenet")
    assert not list((tmp_path / "tiny_imagenet").glob("*.partial"))


def _resize(path: Path) -> None:
    Image.new("RGB", (32, 64)).save(path, "JPEG")


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:600])


JPEG = "train/n02124075/images/n02124075_3.JPEG"
BAD_FOLDERS = {
    "no wnids": (lambda folder: (folder / "wnids.txt").unlink(), "wnids.txt cannot be read"),
    "class too many": (lambda folder: (folder / "wnids.txt").write_text("a\nb\nc\n"), "lists 3 classes"),
    "image missing": (lambda folder: (folder / JPEG).unlink(), "has 11 JPEG files but must have 12"),
    "image cut": (lambda folder: _truncate(folder / JPEG), "n02124075_3.JPEG is not a whole JPEG"),
    "not an image": (lambda folder: (folder / JPEG).write_text("x"), "n02124075_3.JPEG is not a whole JPEG"),
    "image size": (lambda folder: _resize(folder / JPEG), "is 64×32 pixels"),
    "val image missing": (
        lambda folder: (folder / "val/images/val_2.JPEG").unlink(),
        r"val_2.JPEG is missing",
    ),
    "unknown wnid": (
        lambda folder: (folder / "val/val_annotations.txt").write_text("val_0.JPEG\tn0\t0\t0\t1\t1\n"),
        "line 1 must be",
    ),
    "val too short": (
        lambda folder: (folder / "val/val_annotations.txt").write_text("val_0.JPEG\tn01443537\t0\t0\t1\t1\n"),
        "lists 1 images but must list 5",
    ),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_bad_tiny_imagenet_is_refused_in_one_sentence(tmp_path: Path, case: str) -> None:
    damage, message = BAD_FOLDERS[case]
    write_tiny_imagenet(tmp_path / "source")
    damage(tmp_path / "source")
    with pytest.raises(UserError, match=message) as caught:
        convert_tiny(tmp_path / "source", tmp_path / "tiny_imagenet")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="not a prepared data folder"):
        load_images("tiny_imagenet", "train", tmp_path)


def test_registry_reads_procedural_prefixes(tmp_path: Path) -> None:
    options = {"seed": 2, "size": 16, "test_size": 60}
    train = load_images("procedural", "train", tmp_path, train_size=110, **options)
    test = load_images("procedural", "test", tmp_path, train_size=110, **options)
    images, labels = procedural_images(2, np.arange(110), 16)
    np.testing.assert_array_equal(np.asarray(train.images), images)
    np.testing.assert_array_equal(train.labels, labels)
    images, labels = procedural_images(2, np.arange(TEST_START, TEST_START + 60), 16)
    np.testing.assert_array_equal(np.asarray(test.images), images)
    assert (train.name, test.name, train.classes) == ("procedural", "procedural", 10)


def run_script(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return forked.run([str(SCRIPTS / name), *(str(argument) for argument in arguments)])


def test_scripts_make_convert_and_refuse(tmp_path: Path) -> None:
    made = run_script("make_procedural.py", "parts", tmp_path / "npz", "--rows-per-part", 30, "--size", 16)
    assert made.returncode == 0, made.stderr
    converted = run_script(
        "prepare_cifar5m.py",
        tmp_path / "npz",
        tmp_path / "cifar5m",
        "--part-rows",
        30,
        "--verify",
        "--statistics",
    )
    assert converted.returncode == 0, converted.stderr
    data = load_images("cifar5m", "train", tmp_path, test_size=30)
    # The parts say who made them, so procedural data cannot pass for CIFAR-5m.
    assert data.name == "procedural" and "made by procedural" in converted.stdout
    mean = data.channel_statistics()[0].round(2).tolist()
    assert str(mean) in converted.stdout
    write_parts(tmp_path / "short", rows=5)
    refused = run_script("prepare_cifar5m.py", tmp_path / "short", tmp_path / "out")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ") and refused.stderr.count("\n") == 1
    refused = run_script("prepare_tiny_imagenet.py", tmp_path / "absent", tmp_path / "tiny")
    assert refused.returncode == 2 and "wnids.txt" in refused.stderr and "Traceback" not in refused.stderr


def test_the_sheet_is_drawn(tmp_path: Path) -> None:
    drawn = run_script("make_procedural.py", "sheet", tmp_path / "shapes.png", "--size", 16)
    assert drawn.returncode == 0, drawn.stderr
    with Image.open(tmp_path / "shapes.png") as sheet:
        assert sheet.size == (20 * 48, 10 * 48)
