"""The folder of a run: who works on it, how it stands, what its runs are called."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weight_decay.config.identity import folder_name, run_id
from weight_decay.config.run import RunConfig
from weight_decay.runs.fingerprint import code_fingerprint
from weight_decay.runs.lock import claimed


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
