"""Whether the files of a prepared data folder are still what was prepared: cheaply at every start, whole when needed.

Beside the manifest lies `blocks.json`, the second level of a tree of hashes: one hash for each MiB of each file. At
every start `SAMPLED` blocks, drawn anew each time, are read and compared. A file that was written to or moved since it
was last read whole (size, dates or inode differ) is read whole again, once; `.verified.json` remembers that.

So a change that leaves a trace in the file system is always found. One that leaves none (a disk that gives back other
bits) is found at one start with probability 1 - (1 - f)^n, n = `SAMPLED`, where it touches a share f of the blocks: for
sure in data of up to n MiB, and 1 in 550 where it is one byte of CIFAR-5m's 18.4 GB.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

from weight_decay.runs.files import read_bounded, write_text

BLOCKS_NAME, VERIFIED_NAME = "blocks.json", ".verified.json"
BLOCK_BYTES = 1 << 20
SAMPLED = 32
_HEX = 32
"""Hexadecimal digits of a block's hash: 128 bits are enough for what happens by accident."""
_SAID_FROM = 1 << 30
"""Bytes from which it is said that a file is read whole, because it takes a while."""


class ChangedFileError(Exception):
    """A file is not what was prepared; the message says where."""


def hashed(path: Path) -> tuple[str, list[str]]:
    """SHA-256 of a file and the hashes of its blocks, in one reading, a block in memory at a time."""
    whole, blocks = hashlib.sha256(), []
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            whole.update(block)
            blocks.append(_hash(block))
    return whole.hexdigest(), blocks


def remember(folder: Path, fingerprint: str, blocks: dict[str, list[str]]) -> None:
    """Write the block hashes of all files, and that they were all read whole just now.

    Where nothing can be written it is left: the next start then reads the files again.
    """
    with contextlib.suppress(OSError):
        body = {"fingerprint": fingerprint, "block_bytes": BLOCK_BYTES, "files": blocks}
        _write(folder / BLOCKS_NAME, {**body, "seal": _seal(body)})
        traces = {name: _trace(folder / name) for name in blocks}
        for place in _places(folder, fingerprint):
            with contextlib.suppress(OSError):
                _write(place, {"fingerprint": fingerprint, "files": traces})
                return


def check(folder: Path, manifest: dict[str, Any], whole: bool = False) -> None:
    """Raise ChangedFileError if a file differs from what the manifest says; see the module for how much is read."""
    fingerprint = manifest["fingerprint"]
    names = {entry["name"]: entry for entry in manifest["files"]}
    blocks, seen = _blocks(folder, fingerprint), _traces(folder, fingerprint)
    moved = [name for name in names if whole or name not in seen or seen[name] != _trace(folder / name)]
    again = dict(blocks)
    for name in moved if blocks.keys() >= names.keys() else names:
        path, entry = folder / name, names[name]
        if entry["bytes"] >= _SAID_FROM:
            print(f"{path}: reads all {entry['bytes'] / 1e9:.1f} GB once, to be sure of them", file=sys.stderr)
        found, again[name] = hashed(path)
        if found != entry["sha256"]:
            raise ChangedFileError(f"{path} is damaged (its SHA-256 differs from the manifest)")
    if moved or again != blocks:
        remember(folder, fingerprint, {name: again[name] for name in names})
        return
    _sample(folder, {name: blocks[name] for name in names})


def _sample(folder: Path, blocks: dict[str, list[str]]) -> None:
    every = [(name, number) for name, hashes in blocks.items() for number in range(len(hashes))]
    # Drawn anew at every start, so that many starts look at everything; it has no part in any number.
    for name, number in sorted(random.SystemRandom().sample(every, min(SAMPLED, len(every)))):
        with (folder / name).open("rb") as file:
            file.seek(number * BLOCK_BYTES)
            found = _hash(file.read(BLOCK_BYTES))
        if found != blocks[name][number]:
            first = number * BLOCK_BYTES
            raise ChangedFileError(f"{folder / name} is damaged (bytes {first} to {first + BLOCK_BYTES} have changed)")


def _hash(block: bytes) -> str:
    return hashlib.sha256(block).hexdigest()[:_HEX]


def _trace(path: Path) -> list[int]:
    """What the file system changes when a file is written to or replaced."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _places(folder: Path, fingerprint: str) -> list[Path]:
    """Where it is remembered that the files were read: with them, or with the user where they cannot be written to."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha256(f"{folder.resolve()}\0{fingerprint}".encode()).hexdigest()[:24]
    return [folder / VERIFIED_NAME, cache / "weight-decay" / "verified" / f"{name}.json"]


def kept_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file keeps; an empty one if it is absent, damaged or something else."""
    try:
        content = json.loads(read_bounded(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _traces(folder: Path, fingerprint: str) -> dict[str, Any]:
    for content in map(kept_object, _places(folder, fingerprint)):
        if content.get("fingerprint") == fingerprint and isinstance(content.get("files"), dict):
            return content["files"]
    return {}


def _blocks(folder: Path, fingerprint: str) -> dict[str, list[str]]:
    """The block hashes; none if they were never made, are damaged, or belong to other content."""
    content = kept_object(folder / BLOCKS_NAME)
    body = {name: content.get(name) for name in ("fingerprint", "block_bytes", "files")}
    sound = content.get("seal") == _seal(body) and body["fingerprint"] == fingerprint
    return content["files"] if sound and body["block_bytes"] == BLOCK_BYTES else {}


def _seal(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content))
