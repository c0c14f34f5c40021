"""The settings of a command that are no part of a run; configs/config.yaml explains them.

A new one stands there, here, in `COMMAND_KEYS` too, and in the help (help.py); multirun.py and start.py obey it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weight_decay.errors import UserError

COMMAND_KEYS = {"cell", "seeds", "jobs", "cells_per_job", "stale", "scale", "experiment"}
DECLARED_KEYS = {"about", "grid", "shared"}
"""Only an experiment's files fill them: what it is, and which cells it has."""
MOST_CELLS = 10_000
"""The most that one command makes; our largest experiment has 180."""


@dataclass(frozen=True)
class Steering:
    """How many cells at a time, how many in each Hydra job, and what to do about runs of other code."""

    jobs: int
    cells_per_job: int
    stale: str

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Steering:
        """Check the plain values; UserError names the setting and what it must be."""
        if values["stale"] not in ("refuse", "rerun", "keep"):
            raise UserError(f"stale: must be one of refuse, rerun, keep, got {values['stale']!r}.")
        jobs = _positive(values["jobs"], "jobs")
        each = values["cells_per_job"]
        return cls(jobs, jobs if each is None else _positive(each, "cells_per_job"), values["stale"])


def _positive(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{name}: must be a whole number of at least 1, got {value!r}.")
    return value
