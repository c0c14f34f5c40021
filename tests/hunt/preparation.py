"""Hostile and damaged sources of data, and damage to prepared data: refused, or the very same content."""

# ruff: noqa: E501  (tables of nonsense)
from __future__ import annotations

import functools
import gzip
import io
import os
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hunt.folders import damage
from hunt.laboratory import Laboratory, clear
from hunt.ledger import Ledger, in_a_child
from text_helpers import run as prepare_text
from text_helpers import some_texts, write_jsonl
from vision_files import load_images, write_fashion_mnist, write_parts
from weight_decay.data.images.cifar5m import convert_cifar5m, load_cifar5m
from weight_decay.data.text.files import open_folder

AREA = "data preparation"


def _npz(path: Path, **arrays: Any) -> None:
    np.savez(path, **arrays)


def _npy(header: bytes, body: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


def _bomb(path: Path, name: str, megabytes: int) -> None:
    """An archive of a few kilobytes that unpacks to many megabytes of zeros."""
    shape = (megabytes * 1024, 1024)
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open(name, "w", force_zip64=True) as member,
    ):
        member.write(_npy(header))
        for _ in range(megabytes):
            member.write(bytes(1 << 20))


HEADERS = (
    b"{'descr': '|O', 'fortran_order': False, 'shape': (3,), }\n",
    b"{'descr': '|u1', 'fortran_order': False, 'shape': (-1,), }\n",
    b"{'descr': '|u1', 'fortran_order': False, 'shape': (9999999999999,), }\n",
    b"{'descr': '|u1', 'fortran_order': True, 'shape': (4, 8, 8, 3), }\n",
    b"__import__('os').system('touch /tmp/hunt-ran-code')\n",
    b"{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (3,), }\n",
    b"{" * 3000,
    b"",
    b"(" * 60000,
)
NAMES = ("train_images", "train_labels", "test_images", "test_labels")


def _good_npz(path: Path) -> None:
    generator = np.random.default_rng(1)
    arrays: dict[str, Any] = {}
    for role, count in (("train", 12), ("test", 6)):
        arrays[f"{role}_images"] = generator.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        arrays[f"{role}_labels"] = np.arange(count) % 3
    _npz(path, **arrays)


def hostile_npz(folder: Path, draw: random.Random) -> str:
    """Arrays of one's own of which one is not what it should be."""
    path = folder / "mine.npz"
    _good_npz(path)
    kind = draw.randrange(6)
    name = draw.choice(NAMES)
    if kind == 0:
        _rewritten(path, name, _npy(draw.choice(HEADERS), draw.randbytes(40)))
    elif kind == 1:
        with np.load(path) as found:
            arrays = dict(found)
        wild: list[Any] = [
            np.array([{"a": 1}], dtype=object), np.zeros(0), np.zeros((3, 3)), np.full(12, 1e300), np.full(12, -1), np.array("x"),
            np.zeros((12, 8, 8, 3), np.complex64), np.full((12, 8, 8, 3), np.nan), np.arange(0, 12, dtype="datetime64[s]"), np.zeros((12, 0, 0, 3), np.uint8),
        ]  # fmt: skip
        arrays[name] = draw.choice(wild)
        _npz(path, **arrays)
    elif kind == 2:
        _bomb(path, f"{name}.npy", 200)
    elif kind == 3:
        _rewritten(path, draw.choice(["../../escaped", "/etc/absolute", "a\0b", "x" * 300]), b"1")
    elif kind == 4:
        path.unlink()
        path.symlink_to(draw.choice([path, Path("/dev/zero"), Path("/dev/null"), Path("nowhere"), folder]))
    else:
        with np.load(path) as found:
            arrays = {key: value for key, value in found.items() if key != name}
        _npz(path, **arrays)
    for split in ("train", "test"):
        load_images("npz", split, folder, "mine", 8)
    return "survived"


def _rewritten(path: Path, name: str, content: bytes) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    members[f"{name}.npy"] = content
    with zipfile.ZipFile(path, "w") as archive:
        for member, body in members.items():
            archive.writestr(zipfile.ZipInfo(member.replace("\0", "?")), body)


def damaged_npz(folder: Path, draw: random.Random) -> str:
    """One's own arrays with damage that disks do: the archive's checksums find it."""
    path = folder / "mine.npz"
    _good_npz(path)
    wanted = [load_images("npz", split, folder, "mine", 8).fingerprint for split in ("train", "test")]
    other = folder / "other.bin"
    other.write_bytes(draw.randbytes(300))
    damage(path, draw, [other])
    found = [load_images("npz", split, folder, "mine", 8).fingerprint for split in ("train", "test")]
    return "survived" if found == wanted else "silent"


def damaged_parts(folder: Path, draw: random.Random) -> str:
    """CIFAR-5m's parts, one of them damaged or hostile, then converted."""
    write_parts(folder / "parts", compressed=draw.random() < 0.5)
    parts = sorted((folder / "parts").glob("*.npz"))
    convert_cifar5m(folder / "parts", folder / "whole", progress=False)
    wanted = (folder / "whole" / "images.u8").read_bytes(), (folder / "whole" / "labels.u8").read_bytes()
    path = draw.choice(parts)
    if draw.random() < 0.3:
        _rewritten(path, draw.choice("XY"), _npy(draw.choice(HEADERS), draw.randbytes(60)))
    else:
        damage(path, draw, [folder / "whole" / "images.u8"])
    convert_cifar5m(folder / "parts", folder / "out", progress=False)
    found = (folder / "out" / "images.u8").read_bytes(), (folder / "out" / "labels.u8").read_bytes()
    return "survived" if found == wanted else "silent"


def half_written(folder: Path, draw: random.Random) -> str:
    """A conversion that was killed, whose leftovers are damaged, and which is started again."""
    write_parts(folder / "parts")
    convert_cifar5m(folder / "parts", folder / "whole", progress=False)
    shutil.copytree(folder / "whole", folder / "out")
    (folder / "out" / "manifest.json").unlink()
    for name in ("images.u8", "labels.u8"):
        path = folder / "out" / name
        content = path.read_bytes()
        partial = path.with_name(f"{name}.partial")
        partial.write_bytes(content[: draw.randrange(len(content))])
        path.unlink()
    progress = folder / "out" / "progress.json"
    progress.write_text(draw.choice(["[]", "{}", "[[", "null", "[1,2,3,4,5,6]", "[" * 50_000, '["part0.npz"]']))
    convert_cifar5m(folder / "parts", folder / "out", progress=False)
    found = [(folder / "out" / name).read_bytes() for name in ("images.u8", "labels.u8")]
    wanted = [(folder / "whole" / name).read_bytes() for name in ("images.u8", "labels.u8")]
    return "survived" if found == wanted else "silent"


def damaged_folder(folder: Path, draw: random.Random) -> str:
    """A prepared folder of images or tokens with damage to any of its files."""
    if draw.random() < 0.5:
        write_parts(folder / "parts")
        target = folder / "out"
        convert_cifar5m(folder / "parts", target, progress=False)

        def read() -> bytes:
            parts = [load_cifar5m(target, split, 10) for split in ("train", "test")]
            return b"".join(np.asarray(part.images).tobytes() + part.labels.tobytes() for part in parts)
    else:
        prepare_text(write_jsonl(folder / "text.jsonl", some_texts(20)), folder / "mine")
        target = folder / "mine"

        def read() -> bytes:
            parts = [open_folder(folder / "mine", split) for split in ("train", "val")]
            return b"".join(np.asarray(part.tokens).tobytes() for part in parts)

    wanted = read()
    there = sorted(path for path in target.iterdir() if path.is_file() and path.stat().st_size)
    damage(draw.choice(there), draw, there)
    return "survived" if read() == wanted else "silent"


def hostile_text(folder: Path, draw: random.Random) -> str:
    """Sources of text that are none, or only nearly."""
    source = folder / "source"
    source.mkdir()
    name = draw.choice(["a.txt", "a.jsonl", "a.parquet", "a.json", "ü \n.txt", "-rf.txt", "a.txt.gz"])
    contents = [
        b"", b"\0" * 100, b"\xff\xfe\xfd", b"[" * 100_000, b'{"text": "' + b"x" * 100_000, b'{"text": 1}\n{"text": null}\n', b'{"txt": "a"}\n',
        b"PAR1" + draw.randbytes(60) + b"PAR1", b'{"text": "\\ud800"}\n' * 9, b"one\r\n\r\ntwo\n" * 50, b'{"text": "a"}\n' * 30, draw.randbytes(2000),
        gzip.compress(b"a" * 1_000_000), b'{"text": "<|endoftext|>"}\n' * 20,
    ]  # fmt: skip
    (source / name).write_bytes(draw.choice(contents))
    kind = draw.randrange(6)
    if kind == 0:
        (source / "loop").symlink_to(source)
    elif kind == 1:
        (source / "b.txt").symlink_to("/dev/zero")
    elif kind == 2:
        os.mkfifo(source / "c.txt")
    elif kind == 3:
        (source / "d.txt").symlink_to("nowhere")
    elif kind == 4:
        source = source / draw.choice([name, "nothing", "a\0b", "x" * 300])
    prepare_text(source, folder / "out")
    return "survived"


def hostile_pictures(folder: Path, draw: random.Random) -> str:
    """A folder of pictures with bombs, broken files, loops and odd names; and Fashion-MNIST's files, damaged."""
    if draw.random() < 0.4:
        place = folder / "fashion_mnist"
        place.mkdir()
        write_fashion_mnist(place)
        before = [load_images("fashion_mnist", split, folder, size=28).fingerprint for split in ("train", "test")]
        there = sorted(path for path in place.rglob("*") if path.is_file())
        path = draw.choice(there)
        content = path.read_bytes()
        # Only what the format can know: a changed pixel of a raw file is another picture.
        path.write_bytes(
            draw.choice(
                [
                    content[: draw.randrange(len(content))],
                    b"",
                    content[:3] + b"\xff" * 13 + content[16:],
                    content + b"1",
                ]
            )
        )
        after = [load_images("fashion_mnist", split, folder, size=28).fingerprint for split in ("train", "test")]
        return "survived" if after == before else "silent"
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            where = folder / "mine" / split / label
            where.mkdir(parents=True)
            Image.new("RGB", (9, 9), (20, 30, 40)).save(where / "a.png")
    where = folder / "mine" / draw.choice(["train", "test"]) / draw.choice(["cat", "dog"])
    kind = draw.randrange(7)
    if kind == 0:
        content = io.BytesIO()
        Image.new("1", (30_000, 30_000)).save(content, "PNG")
        (where / "bomb.png").write_bytes(content.getvalue())
    elif kind == 1:
        whole = (where / "a.png").read_bytes()
        at = draw.randrange(len(whole))
        (where / "a.png").write_bytes(
            whole[:at] + draw.randbytes(4) + whole[at + 4 :] if draw.random() < 0.5 else whole[:at]
        )
    elif kind == 2:
        (where / "loop").symlink_to(where)
    elif kind == 3:
        (where / "zero.png").symlink_to("/dev/zero")
    elif kind == 4:
        os.mkfifo(where / "pipe.png")
    elif kind == 5:
        shutil.rmtree(where)
    else:
        (where / draw.choice(["text.png", "ü\n.png", "-rf.jpg"])).write_bytes(
            draw.choice([b"", b"<svg/>", b"GIF89a", b"\0" * 50])
        )
    for split in ("train", "test"):
        load_images("image_folder", split, folder, "mine", 8)
    return "survived"


WAYS: tuple[Callable[[Path, random.Random], str], ...] = (
    hostile_npz, damaged_npz, damaged_parts, half_written, damaged_folder, hostile_text, hostile_pictures,
)  # fmt: skip


def sources(laboratory: Laboratory, ledger: Ledger, cases: int, seed: int) -> None:
    """Every way in turn, each case in a folder of its own and in a child with bounded memory."""
    place = laboratory.root / "preparation"

    def told(way: Callable[[Path, random.Random], str], number: int) -> str:
        folder = place / str(number)
        folder.mkdir(parents=True)
        try:
            return way(folder, random.Random(f"{way.__name__} {seed} {number}"))
        finally:
            clear(folder)

    found = [
        (f"{WAYS[number % len(WAYS)].__name__} {number}", functools.partial(told, WAYS[number % len(WAYS)], number))
        for number in range(cases)
    ]
    in_a_child(found, ledger, AREA, 30)
    if Path("/tmp/hunt-ran-code").exists():
        ledger.add(AREA, "silent", "a header of an array was executed")


AREAS: tuple[Callable[[Laboratory, Ledger, int, int], None], ...] = (sources,)
