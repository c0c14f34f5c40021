"""What the keys of configs/config.yaml are for that are no settings of a run."""

from __future__ import annotations

COMMAND_KEYS = {"cell", "seeds", "jobs", "cells_per_job", "stale", "scale", "experiment"}
"""They steer the command."""
DECLARED_KEYS = {"about", "grid", "shared"}
"""Only an experiment's files fill them: what it is, and which cells it has."""
MOST_CELLS = 10_000
"""The most that one command makes; our largest experiment has 180."""
