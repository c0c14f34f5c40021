"""An experiment is a list of cells; a cell is one run's config and its coordinates in the grid."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weight_decay.config.execution import is_execution_setting
from weight_decay.config.run import RunConfig, folder_name, run_id
from weight_decay.errors import UserError
from weight_decay.runs.files import write_json
from weight_decay.runs.seal import sealed

MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Cell:
    """One run of an experiment."""

    index: int
    config: RunConfig
    coordinates: Mapping[str, Any]

    @property
    def title(self) -> str:
        """Its coordinates in short: `lr=0.3 strength=0.015 seed=0`."""
        return " ".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in self.coordinates.items())


@dataclass(frozen=True)
class Plan:
    """What one command asks for: an experiment at a scale, or a single run (`experiment` is then "single")."""

    experiment: str
    scale: str
    title: str
    figure: str | None
    overrides: tuple[str, ...]
    cells: tuple[Cell, ...]
    all_cells: tuple[Cell, ...]
    config_dir: str | None = None

    @property
    def name(self) -> str:
        """The experiment's name, with a suffix if settings were changed: it must not pass for the declared one."""
        if all(is_execution_setting(word.partition("=")[0]) for word in self.overrides):
            return self.experiment
        digest = hashlib.sha256("\0".join(sorted(self.overrides)).encode()).hexdigest()
        return f"{self.experiment}+{digest[:6]}"

    @property
    def command(self) -> str:
        """The command that runs it again."""
        chosen = [f"--config-dir {self.config_dir}"] if self.config_dir else []
        chosen += [f"experiment={self.experiment}"] if self.experiment != "single" else []
        return " ".join(["weight-decay", *chosen, f"scale={self.scale}", *self.overrides])

    def only(self, indices: Sequence[int]) -> Plan:
        """The same plan with some of its cells."""
        for index in indices:
            if not 0 <= index < len(self.cells):
                raise UserError(
                    f"cell: {self.experiment} at scale {self.scale} has cells 0 to {len(self.cells) - 1}, got {index}."
                )
        return dataclasses.replace(self, cells=tuple(self.cells[index] for index in indices))


def expand(grid: Sequence[Mapping[str, Sequence[Any]]], overridden: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All points of the grid, in order and without repeats; an axis the user has set collapses to the user's value."""
    points: dict[Any, dict[str, Any]] = {}
    for block in grid:
        axes = {key: [overridden[key]] if key in overridden else list(values) for key, values in block.items()}
        for values in itertools.product(*axes.values()):
            point = dict(zip(axes, values, strict=True))
            points.setdefault(_hashable(point), point)
    return list(points.values())


def _hashable(value: Any) -> Any:
    """Equal for equal values."""
    if isinstance(value, Mapping):
        return frozenset((key, _hashable(inner)) for key, inner in value.items())
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value


def read_seeds(given: Any) -> list[int] | None:
    """`3`, `[0, 4]` or `0..9` (both ends included) as a list; None for the experiment's own. UserError otherwise."""
    if given is None:
        return None
    span = re.fullmatch(r"(\d+)\.\.(\d+)", given) if isinstance(given, str) else None
    if span is not None:
        first, last = int(span[1]), int(span[2])
        if first <= last < first + MOST_SEEDS:
            return list(range(first, last + 1))
    seeds = given if isinstance(given, list) else [given]
    whole = all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"seeds: must be like 0..9, [0,1,2] or 3, each seed once, got {given!r}.")
    return list(seeds)


def with_seeds(grid: Sequence[Mapping[str, Sequence[Any]]], seeds: list[int] | None) -> list[dict[str, Sequence[Any]]]:
    """The grid at these seeds: the seed axis of every block replaced, or added where a block has none.

    Blocks that differ only in their seeds become one, also where `data.seed` is written out beside the seed.
    """
    if seeds is None:
        return [dict(block) for block in grid]
    blocks: list[dict[str, Sequence[Any]]] = []
    for block in grid:
        new = {key: values for key, values in block.items() if key not in ("seed", "data.seed")}
        expanded = (
            [{"seed": [seed], "data.seed": [seed], **new} for seed in seeds]
            if "data.seed" in block
            else [{**new, "seed": seeds}]
        )
        blocks += [one for one in expanded if one not in blocks]
    return blocks


def write_plan(results: Path, plan: Plan) -> Path:
    """Record which runs make up the whole experiment, for `collect` and `status`; returns the file."""
    path = results / "experiments" / f"{plan.name}-{plan.scale}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    data = plan.cells[0].config.data
    record = {
        "experiment": plan.name,
        "scale": plan.scale,
        "title": plan.title,
        "figure": plan.figure,
        "regime": data.regime,
        "data": data.kind,
        "command": plan.command,
        "cells": [
            {"run_id": run_id(one.config), "folder": folder_name(one.config), "coordinates": dict(one.coordinates)}
            for one in plan.all_cells
        ],
    }
    write_json(path, sealed(record))
    return path
