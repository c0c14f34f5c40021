"""The protocol: what every claim is, and how it is decided, as committed in configs/claims before the runs."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import yaml

from weight_decay.errors import UserError
from weight_decay.places import CONFIGS

FOLDER = CONFIGS / "claims"
FILES = ("over_training", "under_training", "ours")
TESTS = ("above", "equivalent", "different", "share")
_NEEDED = {"statement", "figure", "experiment", "endpoint", "reads", "test", "unit"}
_OPTIONAL = {"threshold", "smallest", "margin", "paper"}


@dataclass(frozen=True)
class Stage:
    """A look at the data that was fixed in advance: at how many seeds, at which level."""

    seeds: int
    level: float


@dataclass(frozen=True)
class Protocol:
    """All entries by key, the stages at which they are judged, and the commits whose runs are pilots."""

    entries: dict[str, dict[str, Any]]
    stages: tuple[Stage, ...]
    pilots: tuple[str, ...]

    def is_pilot(self, commit: str) -> bool:
        """Whether runs of this commit were known when the protocol was written."""
        return any(commit.startswith(pilot) for pilot in self.pilots)


@functools.cache
def protocol() -> Protocol:
    """Read and check configs/claims. Raises UserError, which names file and entry, where it cannot decide anything."""
    entries: dict[str, dict[str, Any]] = {}
    for name in FILES:
        for key, entry in _read(name).items():
            if key in entries:
                raise UserError(f"{FOLDER / name}.yaml: {key} stands in another file too; give it another name.")
            entries[key] = _checked(entry, f"{FOLDER / name}.yaml: {key}")
    head = _read("protocol")
    stages = tuple(Stage(int(stage["n"]), float(stage["level"])) for stage in head["stages"])
    return Protocol(entries, stages, tuple(str(commit) for commit in head["pilots"]))


def _read(name: str) -> dict[str, Any]:
    path = FOLDER / f"{name}.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: the protocol of the claims cannot be read ({error.strerror}).") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise UserError(f"{path}: this is not YAML; put it right there.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be `key: value` pairs.")
    return content


def _checked(entry: Any, where: str) -> dict[str, Any]:
    if missing := _NEEDED - set(entry if isinstance(entry, dict) else ()):
        raise UserError(f"{where}: needs {', '.join(sorted(missing))} too.")
    if unknown := set(entry) - _NEEDED - _OPTIONAL:
        raise UserError(f"{where}: there is no {', '.join(sorted(unknown))}; remove it.")
    if entry["test"] not in TESTS:
        raise UserError(f"{where}: test must be one of {', '.join(TESTS)}, got {entry['test']!r}.")
    wanted = {"above": "smallest", "different": "smallest", "equivalent": "margin"}.get(entry["test"])
    if wanted is not None and not float(entry.get(wanted, 0)) > 0:
        raise UserError(f"{where}: {entry['test']} needs a positive {wanted}.")
    return entry
