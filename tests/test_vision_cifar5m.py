"""CIFAR-5m's format: conversion, resumption, refusals, splits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vision_files import PARTS, write_parts
from weight_decay.data.images.cifar5m import convert_cifar5m, load_cifar5m
from weight_decay.data.manifest import verify_folder
from weight_decay.errors import UserError

ROWS = 20


def convert(source: Path, target: Path) -> dict:
    return convert_cifar5m(source, target, progress=False, part_rows=ROWS)


@pytest.mark.parametrize(
    ("name", "label_dtype", "compressed"),
    [("part{}.npz", "int64", False), ("cifar5m_part{}.npz", "uint8", True), ("part{}.npz", ">i4", False)],
)
def test_conversion_keeps_every_byte(tmp_path: Path, name: str, label_dtype: str, compressed: bool) -> None:
    images, labels = write_parts(tmp_path / "npz", ROWS, 8, name, label_dtype, compressed)
    manifest = convert(tmp_path / "npz", tmp_path / "out")
    train = load_cifar5m(tmp_path / "out", "train", test_images=15)
    test = load_cifar5m(tmp_path / "out", "test", test_images=15)
    np.testing.assert_array_equal(train.images, images[: 5 * ROWS])
    np.testing.assert_array_equal(train.labels, labels[: 5 * ROWS].astype(np.int64))
    np.testing.assert_array_equal(test.images, images[5 * ROWS : 5 * ROWS + 15])
    np.testing.assert_array_equal(test.labels, labels[5 * ROWS : 5 * ROWS + 15].astype(np.int64))
    assert isinstance(train.images, np.memmap) and isinstance(test.images, np.memmap)
    assert (train.name, train.classes, len(train)) == ("cifar5m-format", 10, 5 * ROWS)
    assert train.fingerprint != test.fingerprint
    assert verify_folder(tmp_path / "out") == manifest
    kept = {path.name for path in (tmp_path / "out").iterdir()}
    assert kept == {".lock", ".verified.json", "blocks.json", "images.u8", "labels.u8", "manifest.json"}


def test_impossible_splits_are_refused(tmp_path: Path) -> None:
    write_parts(tmp_path / "npz", ROWS)
    convert(tmp_path / "npz", tmp_path / "out")
    with pytest.raises(UserError, match="has 20; ask for fewer"):
        load_cifar5m(tmp_path / "out", "test")
    with pytest.raises(UserError, match="no split 'valid'"):
        load_cifar5m(tmp_path / "out", "valid", 10)


def _save(path: Path, x: np.ndarray, y: np.ndarray) -> None:
    np.savez(path, X=x, Y=y)


def _flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(bytes(content))


X, Y = np.zeros((ROWS, 8, 8, 3), np.uint8), np.zeros(ROWS, np.int64)
BAD_PARTS = {
    "missing": (lambda path: path.unlink(), "is missing"),
    "truncated": (lambda path: os.truncate(path, 2000), "truncated or damaged"),
    "empty": (lambda path: os.truncate(path, 0), "truncated or damaged"),
    "not a zip": (lambda path: path.write_text("<html>not found</html>"), "truncated or damaged"),
    "flipped byte": (_flip_a_byte, "truncated or damaged"),
    "no labels": (lambda path: np.savez(path, X=X), "no array 'Y'"),
    "label 10": (lambda path: _save(path, X, Y + 10), "label 10 of row 0 is outside 0..9"),
    "label -1": (lambda path: _save(path, X, np.where(np.arange(ROWS) == 7, -1, 0)), "label -1 of row 7"),
    "float labels": (lambda path: _save(path, X, Y.astype(float)), "Y is float64"),
    "one-hot labels": (lambda path: _save(path, X, np.zeros((ROWS, 10), np.int64)), "Y is int64"),
    "fewer labels": (lambda path: _save(path, X, Y[:-1]), "one per image"),
    "float images": (lambda path: _save(path, X.astype(np.float32), Y), "X is float32"),
    "channels first": (lambda path: _save(path, X.transpose(0, 3, 1, 2).copy(), Y), "must be uint8"),
    "column-major": (lambda path: _save(path, np.asfortranarray(X), Y), "row-major"),
    "other size": (lambda path: _save(path, np.zeros((ROWS, 9, 9, 3), np.uint8), Y), "images of 9 pixels"),
    "fewer rows": (lambda path: _save(path, X[:-1], Y[:-1]), "19 rows but every part must have 20"),
    "objects": (
        lambda path: np.savez(path, X=X, Y=np.array([None] * ROWS, dtype=object), allow_pickle=True),
        "not a plain",
    ),
}


@pytest.mark.parametrize("case", BAD_PARTS)
def test_a_bad_part_is_refused_in_one_sentence(tmp_path: Path, case: str) -> None:
    damage, message = BAD_PARTS[case]
    write_parts(tmp_path / "npz", ROWS)
    damage(tmp_path / "npz" / "part3.npz")
    with pytest.raises(UserError, match=message) as caught:
        convert(tmp_path / "npz", tmp_path / "out")
    assert "part3.npz" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="not a prepared data folder"):
        load_cifar5m(tmp_path / "out", "train", 10)


def test_the_zip_says_one_length_and_the_header_another(tmp_path: Path) -> None:
    import io
    import zipfile

    write_parts(tmp_path / "npz", ROWS)
    short = io.BytesIO()
    np.lib.format.write_array(short, X)
    labels = io.BytesIO()
    np.lib.format.write_array(labels, Y)
    with zipfile.ZipFile(tmp_path / "npz" / "part3.npz", "w") as archive:
        archive.writestr("X.npy", short.getvalue()[:-192])
        archive.writestr("Y.npy", labels.getvalue())
    with pytest.raises(UserError, match=r"part3.npz is truncated: X is shorter"):
        convert(tmp_path / "npz", tmp_path / "out")


def test_after_a_refusal_the_finished_parts_are_kept(tmp_path: Path) -> None:
    # At 32 pixels a part outgrows the buffer behind the header, so the damage shows while copying.
    images, labels = write_parts(tmp_path / "npz", ROWS, size=32)
    good = (tmp_path / "npz" / "part3.npz").read_bytes()
    _flip_a_byte(tmp_path / "npz" / "part3.npz")
    with pytest.raises(UserError, match=r"part3.npz is truncated or damaged"):
        convert(tmp_path / "npz", tmp_path / "out")
    assert len(json.loads((tmp_path / "out" / "progress.json").read_text())) == 3
    (tmp_path / "npz" / "part3.npz").write_bytes(good)
    # Mark what was written, to see that it is not written again.
    with (tmp_path / "out" / "images.u8.partial").open("r+b") as handle:
        handle.write(b"\x01\x02\x03")
    convert(tmp_path / "npz", tmp_path / "out")
    train = load_cifar5m(tmp_path / "out", "train", 10)
    assert train.images[0, 0, 0].tolist() == [1, 2, 3]
    np.testing.assert_array_equal(train.images[1:], images[1 : 5 * ROWS])
    np.testing.assert_array_equal(train.labels, labels[: 5 * ROWS])


def test_parts_that_changed_since_are_converted_again(tmp_path: Path) -> None:
    write_parts(tmp_path / "npz", ROWS, size=32)
    _flip_a_byte(tmp_path / "npz" / "part3.npz")
    with pytest.raises(UserError):
        convert(tmp_path / "npz", tmp_path / "out")
    large = np.zeros((ROWS, 32, 32, 3), np.uint8)
    _save(tmp_path / "npz" / "part0.npz", large + 9, Y + 9)
    _save(tmp_path / "npz" / "part3.npz", large, Y)
    convert(tmp_path / "npz", tmp_path / "out")
    train = load_cifar5m(tmp_path / "out", "train", 10)
    assert (train.images[:ROWS] == 9).all() and (train.labels[:ROWS] == 9).all()


def test_an_unofficial_length_warns_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    write_parts(tmp_path / "npz", ROWS)
    with pytest.raises(UserError, match="20 rows but every part must have 1000448"):
        convert_cifar5m(tmp_path / "npz", tmp_path / "out", progress=False, part_rows=1_000_448)
    with pytest.warns(UserWarning, match="20 rows per part"):
        convert_cifar5m(tmp_path / "npz", tmp_path / "out", progress=False)
    # Finished: returned as it is, even when the source has gone.
    assert convert(tmp_path / "gone", tmp_path / "out")["fields"]["part_rows"] == ROWS


def test_a_truncated_image_file_is_refused_when_opened(tmp_path: Path) -> None:
    write_parts(tmp_path / "npz", ROWS)
    convert(tmp_path / "npz", tmp_path / "out")
    os.truncate(tmp_path / "out" / "images.u8", 1000)
    with pytest.raises(UserError, match=r"images.u8 has 1000 bytes"):
        load_cifar5m(tmp_path / "out", "train", 10)


CONVERT = """
import sys, tracemalloc
from pathlib import Path
from weight_decay.data.images.cifar5m import convert_cifar5m
tracemalloc.start()
convert_cifar5m(Path(sys.argv[1]), Path(sys.argv[2]), progress=False, part_rows=int(sys.argv[3]))
print(tracemalloc.get_traced_memory()[1])
"""


def test_killed_conversions_end_with_the_same_bytes(tmp_path: Path) -> None:
    """kill -9 at several moments, then one run to the end, against an uninterrupted conversion."""
    rows = 10_000
    write_parts(tmp_path / "npz", rows, size=32)
    command = [sys.executable, "-c", CONVERT, str(tmp_path / "npz")]
    straight = subprocess.run(
        [*command, str(tmp_path / "straight"), str(rows)], capture_output=True, text=True, check=True
    )
    # A part is 31 MB; what is held at once is little more than the 8 MB block.
    assert 8e6 < int(straight.stdout) < 20e6
    target = tmp_path / "killed"
    killed = 0
    for parts in (0, 3):
        process = subprocess.Popen([*command, str(target), str(rows)])
        partial = target / "images.u8.partial"
        wanted = (parts + 0.5) * rows * 3072
        while process.poll() is None and not (partial.exists() and partial.stat().st_size >= wanted):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        assert not (target / "manifest.json").exists() or process.returncode == 0
    assert killed >= 1
    subprocess.run([*command, str(target), str(rows)], check=True, stdout=subprocess.DEVNULL)
    straight_manifest = verify_folder(tmp_path / "straight")
    assert verify_folder(target) == straight_manifest
    assert PARTS * rows * 3072 == straight_manifest["files"][0]["bytes"]
