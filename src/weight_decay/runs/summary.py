"""summary.json: what it says in every state of a run, and how it is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weight_decay.config.plain import to_dict
from weight_decay.config.run import RunConfig, folder_name, run_id
from weight_decay.runs.files import write_json
from weight_decay.runs.fingerprint import code_fingerprint
from weight_decay.runs.folder import Labels
from weight_decay.runs.lock import confirm
from weight_decay.runs.read import MAIN_BRANCH
from weight_decay.runs.seal import sealed


def code_of(config: RunConfig) -> str | None:
    """The fingerprint of the present code behind the run's numbers."""
    return code_fingerprint(to_dict(config, identity_only=True), config.data.regime)


def identity(config: RunConfig, labels: Labels) -> dict[str, Any]:
    """What summary.json says in every state of a run."""
    return {
        "run_id": run_id(config),
        "folder": folder_name(config),
        "branch": MAIN_BRANCH,
        "identity": to_dict(config, identity_only=True),
        "experiment": labels.experiment,
        "scale": labels.scale,
        "regime": config.data.regime,
        "seed": config.seed,
        "code_fingerprint": code_of(config),
        "error": None,
        "divergence_step": None,
        "final": {},
    }


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write summary.json, sealed, atomically. Raises LostFolderError if the folder has another owner by now."""
    confirm(folder)
    write_json(folder / "summary.json", sealed(summary))
