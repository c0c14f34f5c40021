"""Whether the tables of an experiment have every cell that its file declares: else the best of them is not the best.

A claim speaks of the largest λ, the best η or the smallest set, and measures them in the cells that are there. A sweep
that was stopped, or runs that failed, would move them without a trace.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import yaml

from weight_decay.errors import UserError
from weight_decay.places import CONFIGS
from weight_decay.report.tables.read import Tables
from weight_decay.runs.read import is_coordinate


def cells_missing(tables: Tables, seeds: Iterable[int]) -> str:
    """What is missing of the declared cells at these seeds, in a clause; empty if nothing is or nothing is declared."""
    declared = _declared(tables.experiment, tables.scale)
    runs = tables.runs
    axes = list(runs.columns[list(runs.columns).index("seed") + 1 : list(runs.columns).index("branch")])
    there = {(int(row["seed"]), _cell({name: row[name] for name in axes})) for _, row in runs.iterrows()}
    wanted = list(seeds)
    lacking = sum(any((seed, cell) not in there for seed in wanted) for cell in declared)
    return f"{lacking} of its experiment's {len(declared)} cells were not run at every seed" if lacking else ""


@functools.cache
def _declared(experiment: str, scale: str) -> frozenset[frozenset[tuple[str, str]]]:
    """The cells of an experiment at a scale, seeds aside. UserError for a file that cannot be read."""
    path = CONFIGS / "experiment" / experiment / f"{scale}.yaml"
    try:
        grid = yaml.safe_load(path.read_text(encoding="utf-8")).get("grid", [])
        return frozenset(
            _cell(dict(zip(block, values, strict=True)))
            for block in grid
            for values in itertools.product(*block.values())
        )
    except FileNotFoundError:
        return frozenset()
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: its cells cannot be read ({type(error).__name__}); restore it, or `weight-decay --dry-run` says "
            "what is wrong."
        ) from error


def _cell(coordinates: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    """The coordinates that are set, as a table spells them."""
    return frozenset(
        (name, _spelt(value))
        for name, value in coordinates.items()
        if name != "seed" and is_coordinate(name, value) and not pd.isna(value)
    )


def _spelt(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return str(value)
    try:
        return format(float(value), ".6g")
    except (TypeError, ValueError):
        return str(value)
