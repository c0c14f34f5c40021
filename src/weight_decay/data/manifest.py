"""A data folder's manifest: what it holds, how large each file is, and a checksum of every byte.

`manifest.json` is written last, so a folder without one is a preparation that did not finish. Its
`fingerprint` names the content: two folders with equal fingerprints hold the same bytes and fields.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from weight_decay.data.content import ChangedFileError, check, hashed, remember
from weight_decay.errors import UserError
from weight_decay.runs.files import read_bounded, write_text
from weight_decay.runs.lock import take

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1
_KEYS = {"kind", "version", "fields", "files", "fingerprint"}
_AGAIN = "prepare the data again into an empty folder"


def _fingerprint(content: dict[str, Any]) -> str:
    body = {key: content[key] for key in ("kind", "version", "fields", "files")}
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def write_manifest(folder: Path, kind: str, fields: dict[str, Any], files: list[Path]) -> dict[str, Any]:
    """Checksum `files` (all inside `folder`) and write `folder/manifest.json` atomically.

    Args:
        folder: the data folder.
        kind: what the folder holds, for example "cifar5m"; `read_manifest` asks for it again.
        fields: plain JSON values the reader needs (shapes, counts). They are part of the
            fingerprint, so keep out paths and times, which do not change the content.
        files: the data files, below `folder`.

    Returns:
        The manifest: `kind`, `version`, `fields`, `files` (name, bytes, sha256) and `fingerprint`.

    Raises:
        UserError: a file is missing or lies outside the folder.
    """
    entries, blocks = [], {}
    for path in files:
        try:
            name = path.resolve().relative_to(folder.resolve()).as_posix()
            whole, blocks[name] = hashed(path)
            entries.append({"name": name, "bytes": path.stat().st_size, "sha256": whole})
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be listed in the manifest of {folder} ({error}).") from error
    entries.sort(key=lambda entry: str(entry["name"]))
    # A round trip through JSON first, so that what is returned equals what will be read back.
    plain = json.loads(json.dumps(fields, allow_nan=False))
    content: dict[str, Any] = {"kind": kind, "version": FORMAT_VERSION, "fields": plain, "files": entries}
    content["fingerprint"] = _fingerprint(content)
    write_text(folder / MANIFEST_NAME, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    remember(folder, content["fingerprint"], blocks)
    return content


def read_manifest(folder: Path, kind: str) -> dict[str, Any]:
    """Read and check `folder/manifest.json`.

    The length of every file is compared, blocks drawn at random, and all of a file that was written to or moved since
    it was last read whole (see content.py); every byte within `reading_whole`.

    Args:
        folder: the data folder.
        kind: the kind the caller can read; another one is refused.

    Returns:
        The manifest as `write_manifest` returned it.

    Raises:
        UserError: the manifest is missing, damaged, of another kind or version, or a file is
            missing or differs from what was written.
    """
    path = folder / MANIFEST_NAME
    try:
        content = json.loads(read_bounded(path))
    except FileNotFoundError:
        raise UserError(f"{folder} is not a prepared data folder (no {MANIFEST_NAME}); {_AGAIN}.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); {_AGAIN}.") from error
    if not isinstance(content, dict) or set(content) != _KEYS:
        raise UserError(f"{path} is not a data manifest (its keys must be {sorted(_KEYS)}); {_AGAIN}.")
    if content["kind"] != kind:
        raise UserError(f"{folder} holds {content['kind']!r} data but {kind!r} was asked for; name that folder.")
    if content["version"] != FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {content['version']!r} but {FORMAT_VERSION} is read here; {_AGAIN}."
        )
    if not _is_well_formed(content) or _fingerprint(content) != content["fingerprint"]:
        raise UserError(f"{path} was changed after it was written (fingerprint mismatch); {_AGAIN}.")
    for entry in content["files"]:
        _check_file(folder, entry)
    try:
        check(folder, content, whole=bool(_whole))
    except ChangedFileError as error:
        raise UserError(f"{error}; {_AGAIN}.") from error
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error}); see to the disk, or {_AGAIN}.") from error
    return content


def verify_folder(folder: Path) -> dict[str, Any]:
    """Read every byte of a prepared folder and compare it with its manifest, which is returned. UserError if not."""
    try:
        kind = json.loads(read_bounded(folder / MANIFEST_NAME))["kind"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{folder} is not a prepared data folder ({type(error).__name__}); name one with a {MANIFEST_NAME}."
        ) from error
    with reading_whole():
        return read_manifest(folder, kind)


_whole: list[bool] = []


@contextmanager
def reading_whole() -> Iterator[None]:
    """Within it every manifest that is read has every byte of its files compared."""
    _whole.append(True)
    try:
        yield
    finally:
        _whole.pop()


def _is_well_formed(content: dict[str, Any]) -> bool:
    wanted = {"name": str, "bytes": int, "sha256": str}
    return (
        isinstance(content["fields"], dict)
        and isinstance(content["files"], list)
        and all(
            isinstance(entry, dict) and all(isinstance(entry.get(key), kind) for key, kind in wanted.items())
            for entry in content["files"]
        )
    )


def _check_file(folder: Path, entry: dict[str, Any]) -> None:
    name = PurePosixPath(entry["name"])
    path = folder / name
    if name.is_absolute() or ".." in name.parts:
        raise UserError(f"{folder / MANIFEST_NAME} names {name}, outside its folder; {_AGAIN}.")
    if not path.is_file():
        raise UserError(f"{path} is missing although the manifest lists it; {_AGAIN}.")
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise UserError(f"{path} has {size} bytes but the manifest says {entry['bytes']}; {_AGAIN}.")


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold an advisory lock on the file `path` (created if absent), waiting for another process to let go."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("a")
    except OSError as error:
        raise UserError(
            f"data.root: cannot write in {path.parent} ({error.strerror}); choose another folder."
        ) from None
    with handle:
        take(handle, wait=True)
        yield


def made_once(folder: Path, kind: str, make: Callable[[], None]) -> Path:
    """The prepared folder, which `make` makes if it is absent or damaged; processes that start at once take turns."""
    with exclusive_lock(folder.with_name(f".{folder.name}.lock")):
        if folder.exists():
            try:
                read_manifest(folder, kind)
                return folder
            except UserError as error:
                warnings.warn(f"making {folder} again: {error}", stacklevel=3)
                shutil.rmtree(folder)
        make()
    return folder


def require_space(setting: str, root: Path, needed: int, fewer: str) -> None:
    """UserError unless so many bytes are free: refuse before a disk is filled."""
    free = shutil.disk_usage(root).free
    if needed > free:
        raise UserError(
            f"{setting}: {needed / 1e9:.1f} GB are needed in {root} and {free / 1e9:.1f} GB are free; "
            f"ask for {fewer}, or choose another folder."
        )
