"""The folder of a run: who works on it, how it stands, what its runs are called."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from weight_decay.config import RunConfig, folder_name, run_id
from weight_decay.distributed import current
from weight_decay.errors import UserError
from weight_decay.fingerprint import code_fingerprint


@dataclass(frozen=True)
class Labels:
    """What a run is called; none of it can change its numbers."""

    experiment: str
    scale: str
    title: str
    position: int = 0  # line of its progress bar when several run at once


def identity(config: RunConfig, labels: Labels) -> dict[str, Any]:
    """What summary.json says in every state of a run."""
    return {
        "run_id": run_id(config),
        "folder": folder_name(config),
        "experiment": labels.experiment,
        "scale": labels.scale,
        "regime": config.data.regime,
        "seed": config.seed,
        "code_fingerprint": code_fingerprint(),
        "error": None,
        "divergence_step": None,
        "final": {},
    }


def read_summary(folder: Path) -> dict[str, Any]:
    """The content of summary.json; empty if there is no readable one."""
    try:
        found = json.loads((folder / "summary.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_status(folder: Path) -> str | None:
    """The status in summary.json; None if there is no readable one."""
    return read_summary(folder).get("status")


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Hold the folder's lock; the operating system drops it when the process dies, however it dies.

    False if another process holds it. On NFS, Linux passes the lock on to the server, so that it also holds between
    machines. UserError if the folder cannot be written or its file system has no locks.
    """
    path = folder / "run.lock"
    with _locked(path) as file:
        # `status` looks at the lock for an instant, so one refusal is not yet an owner.
        for wait in (0.0, 0.02, 0.05):
            time.sleep(wait)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                continue
            except OSError as error:
                raise UserError(
                    f"execution.results: the file system of {folder} has no locks ({error.strerror}), so two sweeps "
                    "could run a cell twice; mount it with locks (Lustre: -o flock), or choose another folder."
                ) from None
        else:
            yield False
            return
        # Somebody may have put the folder aside between our opening the file and our locking it.
        try:
            same = os.fstat(file.fileno()).st_ino == path.stat().st_ino
        except FileNotFoundError:
            same = False
        if not same:
            yield False
            return
        for leftover in [*folder.glob(".*.tmp"), *(folder / "checkpoints").glob(".*.tmp")]:
            leftover.unlink(missing_ok=True)
        yield True


def _locked(path: Path) -> IO[str]:
    try:
        return path.open("a")
    except OSError as error:
        raise UserError(
            f"execution.results: cannot write in {path.parent} ({error.strerror}); "
            "make it writable, or choose another folder."
        ) from None


def stale_fingerprint(folder: Path) -> str | None:
    """The fingerprint of the code that computed what is in `folder`, if it is not the present code's."""
    summary = read_summary(folder)
    found = summary.get("code_fingerprint")
    # A run that failed before it saved anything holds no numbers of the other code.
    held = summary.get("status") in ("completed", "diverged") or any((folder / "checkpoints").glob("step-*.json"))
    return found if held and found not in (None, code_fingerprint()) else None


def put_aside(folder: Path) -> Path | None:
    """Move a run of other code to results/stale, whole; None if somebody is working on it."""
    fingerprint = stale_fingerprint(folder)
    kept = folder.parent.parent / "stale"
    with claimed(folder) as mine:
        if not mine or fingerprint is None:
            return None
        kept.mkdir(exist_ok=True)
        target = kept / f"{folder.name}-{fingerprint}"
        number = 1
        while target.exists():
            number += 1
            target = kept / f"{folder.name}-{fingerprint}-{number}"
        return folder.rename(target)


def speaker(title: str) -> Callable[[str], None]:
    """Print one line about a run without breaking the progress bars."""
    writes = current().writes
    return lambda text: tqdm.write(f"{title}: {text}", file=sys.stderr) if writes else None
