"""The folder of a run: who works on it, how it stands, what its runs are called."""

from __future__ import annotations

import fcntl
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from weight_decay.config import RunConfig, folder_name, run_id
from weight_decay.distributed import current


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
        "error": None,
        "divergence_step": None,
        "final": {},
    }


def read_status(folder: Path) -> str | None:
    """The status in summary.json; None if there is no readable one."""
    try:
        return json.loads((folder / "summary.json").read_text())["status"]
    except (OSError, ValueError, KeyError):
        return None


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Hold the folder's lock; the operating system drops it when the process dies, however it dies."""
    with (folder / "run.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def speaker(title: str) -> Callable[[str], None]:
    """Print one line about a run without breaking the progress bars."""
    writes = current().writes
    return lambda text: tqdm.write(f"{title}: {text}", file=sys.stderr) if writes else None
