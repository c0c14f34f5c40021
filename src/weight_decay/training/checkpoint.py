"""Checkpoints that are either whole or not there: atomic, checksummed, read with `weights_only=True`.

A checkpoint is `step-<n>.pt` and, written after it, `step-<n>.json` with its size and SHA-256. A file without its
JSON was cut off by a kill and is ignored; one that does not match its JSON is damaged, which is said, and the one
before it is used. They are made beside the training: copied in the loop, written and hashed in a thread.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from weight_decay.device.memory import copy_on_host
from weight_decay.errors import first_line
from weight_decay.runs.files import read_bounded, write_atomically, write_json
from weight_decay.runs.lock import confirm

FORMAT = 2
"""The format that names the owner; a checkpoint of format 1 could be any run's and is not taken."""


@dataclass(frozen=True)
class Owner:
    """Whose state a checkpoint holds: the run's id, and "main" or the name of the branch's folder."""

    run_id: str
    branch: str


class ForeignCheckpointError(Exception):
    """A whole checkpoint of another run: nothing that could be passed over."""


def save(folder: Path, step: int, state: dict[str, Any], keep: int, owner: Owner) -> Path:
    """Save `state` (tensors and plain values) as the checkpoint of `step`; keep the newest `keep` ones."""
    path = folder / f"step-{step:09d}.pt"
    write(path, step, state, owner)
    for old in _steps(folder)[keep:]:
        # The JSON goes first: without it the other file no longer counts as a checkpoint.
        (folder / f"step-{old:09d}.json").unlink(missing_ok=True)
        (folder / f"step-{old:09d}.pt").unlink(missing_ok=True)
    return path


def write(path: Path, step: int, state: dict[str, Any], owner: Owner) -> None:
    """Write `state`, with its owner, to `path` and then its checksum beside it.

    Raises LostFolderError if the run's folder has another owner by now.
    """
    confirm(path.parent)
    state = {**state, "owner": asdict(owner)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: _write(temporary, state))
    write_json(path.with_suffix(".json"), {"format": FORMAT, "step": step, "owner": asdict(owner), **_digest(path)})


def read(path: Path, device: torch.device) -> dict[str, Any]:
    """The state written to `path`; ValueError if it does not match its checksum."""
    expected = json.loads(read_bounded(path.with_suffix(".json")))
    if expected["format"] != FORMAT:
        raise ValueError(f"format {expected['format']} is not {FORMAT}")
    if path.stem.startswith("step-") and path.stem != f"step-{expected['step']:09d}":
        raise ValueError(f"it holds step {expected['step']}")
    # Its length first: a link to a device has no end to be read to.
    if path.stat().st_size != expected["bytes"] or {key: expected[key] for key in ("bytes", "sha256")} != _digest(path):
        raise ValueError("its content does not match its checksum")
    return torch.load(path, map_location=device, weights_only=True)


def _write(path: Path, state: dict[str, Any]) -> None:
    try:
        with path.open("wb") as file:
            torch.save(state, file)
    except RuntimeError as error:
        # torch hides a full disk behind an error of its own.
        if isinstance(error.__context__, OSError):
            raise OSError(error.__context__.errno, error.__context__.strerror, str(path)) from None
        raise


def load_latest(folder: Path, device: torch.device, say: Callable[[str], None], owner: Owner) -> dict[str, Any] | None:
    """The newest whole checkpoint, or None. Damaged ones are named through `say` and passed over.

    Raises ForeignCheckpointError if it is another owner's.
    """
    for step in _steps(folder):
        path = folder / f"step-{step:09d}.pt"
        try:
            state = read(path, device)
        except Exception as error:  # torch raises many kinds on a file that is not what it should be
            reason = first_line(error)
            say(f"checkpoint {path.name} is damaged ({reason}); using the one before it")
            continue
        found = Owner(**state["owner"])
        if found != owner:
            raise ForeignCheckpointError(
                f"checkpoint {path.name} belongs to {found.branch} of run {found.run_id}, "
                f"not to {owner.branch} of {owner.run_id}"
            )
        return state
    return None


def _steps(folder: Path) -> list[int]:
    """Steps that have both files, newest first."""
    found = [
        int(path.stem.removeprefix("step-"))
        for path in folder.glob("step-*.json")
        if re.fullmatch(r"step-[0-9]+", path.stem)
    ]
    return sorted(found, reverse=True)


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


class Saver:
    """Saves the checkpoints of a stretch in the order they are given, one at a time; leaving the context waits.

    The loop stops only while the state is copied to the host's memory, and, where the disk is slower than the interval,
    until the checkpoint before is written. What goes wrong with a file is raised by the next call.
    """

    def __init__(self, folder: Path, keep: int, owner: Owner) -> None:
        self._folder, self._keep, self._owner = folder, keep, owner
        self._writer: ThreadPoolExecutor | None = None
        self._pending: Future[Path] | None = None

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Copy `state` and begin to write it as the checkpoint of `step`."""
        self._finish()
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        copied = copy_on_host(state)
        self._pending = self._writer.submit(save, self._folder, step, copied, self._keep, self._owner)

    def check(self) -> None:
        """Raise what went wrong with the last checkpoint, if that is known by now."""
        if self._pending is not None and self._pending.done():
            self._finish()

    def _finish(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            # Also after an error: nobody may write into the folder once its lock is gone.
            writer.shutdown(wait=True)
        if kind is None:
            self._finish()
