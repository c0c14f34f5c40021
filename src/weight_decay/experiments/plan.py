"""An experiment is a list of cells; a cell is one run's config and its coordinates in the grid.

Experiment files (configs/experiment/*.yaml) declare for each scale which config groups to `choose`, which values to
`set`, and a `grid`: a list of mappings from a setting to the values it takes, each expanded to its Cartesian product.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weight_decay.config.run import RunConfig, folder_name, is_execution_setting, run_id
from weight_decay.errors import UserError
from weight_decay.runs.files import write_json
from weight_decay.runs.seal import sealed

COMMAND_KEYS = {"cell", "seeds", "jobs", "cells_per_job", "stale", "scale", "experiment"}
"""Keys of config.yaml that steer the command and are no part of a run."""
MOST_CELLS = 10_000
"""The most that one command makes; our largest experiment has 180."""
REGIMES = ("over_training", "under_training")
SEED = "seed"
"""In an experiment file the value of a setting that follows the run's seed, such as the draw of the data."""
_SECTIONS = {"name", "title", "figure", "regime", "choose", "set", "scales"}
_MAY_BE_LEFT_OUT = {"choose", "set"}
"""Sections of a file and of a scale in it: without them the scale, or config.yaml, says everything."""


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


@dataclass(frozen=True)
class ExperimentFile:
    """The part of an experiment file that holds at one scale."""

    name: str
    title: str
    figure: str | None
    regime: str | None
    choose: dict[str, str]
    set: dict[str, Any]
    grid: list[dict[str, list[Any]]]

    @classmethod
    def read(cls, content: Any, scale: str, file: Path) -> ExperimentFile:
        """Take the section of `scale`; UserError, which names `file`, if there is none or no runs could be made of it.

        Whether the names and values in it exist is left to those who look them up.
        """
        check_experiment(content, file)
        if scale not in content["scales"]:
            scales = ", ".join(content["scales"])
            raise UserError(f"scale: experiment {content['name']} is declared at {scales}, not at {scale}.")
        at_scale = content["scales"][scale]
        where = f"{file}: scales.{scale}"
        _keys(at_scale, where)
        _known(at_scale, {"choose", "set", "grid"}, where)
        chosen, laid = {}, {}
        for section, within in ((content, str(file)), (at_scale, where)):
            for name in sorted(_MAY_BE_LEFT_OUT & set(section)):
                _keys(section[name], f"{within}: {name}")
                _check_keys(section[name], f"{within}: {name}")
            chosen.update(section.get("choose", {}))
            laid.update(section.get("set", {}))
            for group, option in section.get("choose", {}).items():
                if not isinstance(option, str):
                    raise UserError(f"{within}: choose.{group} must be the name of an option, got {option!r}.")
        _check_grid(at_scale["grid"], f"{where}: grid")
        return cls(
            name=content["name"],
            title=content["title"],
            figure=content["figure"],
            regime=content["regime"],
            choose=chosen,
            set=laid,
            grid=at_scale["grid"],
        )


def check_experiment(content: Any, file: Path) -> None:
    """UserError, with one sentence that names `file`, unless its sections are there and its first lines make sense."""
    _keys(content, str(file))
    _known(content, _SECTIONS, str(file))
    name, figure = content["name"], content["figure"]
    if not re.fullmatch(r"\w[\w.-]*", file.stem) or file.stem == "single":
        raise UserError(
            f"{file}: an experiment cannot be called {file.stem!r}; rename the file, with letters, digits, _, . and -."
        )
    if name != file.stem:
        raise UserError(f"{file}: name is {name!r}; it must be {file.stem!r}, as the file is called.")
    if not isinstance(content["title"], str):
        raise UserError(f"{file}: title must be text, got {content['title']!r}; put it in quotes.")
    if figure is not None and not isinstance(figure, str | int):
        raise UserError(f"{file}: figure must be text or null, got {figure!r}; put it in quotes.")
    if content["regime"] not in REGIMES:
        raise UserError(f"{file}: regime must be {' or '.join(REGIMES)}, got {content['regime']!r}.")
    _keys(content["scales"], f"{file}: scales")


def _keys(content: Any, where: str) -> None:
    """A mapping whose keys are text, or UserError."""
    if content is None:
        raise UserError(
            f"{where} is empty; write `key: value` in it, or {{}} in a section where there is nothing to say."
        )
    if not isinstance(content, Mapping):
        raise UserError(f"{where} must be `key: value` pairs, got {content!r}.")
    for key in content:
        if not isinstance(key, str):
            raise UserError(f"{where}: the key {key!r} is not text; put it in quotes if it is meant.")


def _check_grid(grid: Any, where: str) -> None:
    if not isinstance(grid, Sequence) or isinstance(grid, str) or not grid:
        raise UserError(f"{where} must be a list such as [{{seed: [0, 1]}}], got {grid!r}.")
    for block in grid:
        _keys(block, f"{where}: an entry")
        _check_keys(block, where)
        for key, values in block.items():
            if not isinstance(values, Sequence) or isinstance(values, str) or not values:
                raise UserError(f"{where}: {key} must be a list of values such as [1, 2], got {values!r}.")
    count = sum(math.prod(len(values) for values in block.values()) for block in grid)
    if count > MOST_CELLS:
        raise UserError(f"{where}: these are {count:,} cells; {MOST_CELLS:,} are the most of one experiment.")


def _check_keys(keys: Iterable[str], where: str) -> None:
    """UserError on a key that makes no other run: its values would give one number to several rows."""
    for key in keys:
        if key.partition(".")[0] in COMMAND_KEYS or key.startswith(("hydra.", "hydra/")) or is_execution_setting(key):
            raise UserError(
                f"{where}: {key} says where or how to compute, not what; give it on the command line instead."
            )


def _known(mapping: Mapping[str, Any], allowed: set[str], where: str) -> None:
    if missing := sorted(allowed - _MAY_BE_LEFT_OUT - set(mapping)):
        raise UserError(
            f"{where}: {', '.join(missing)} must be there too; its sections are {', '.join(sorted(allowed))}."
        )
    if unknown := sorted(set(mapping) - allowed):
        raise UserError(f"{where}: there is no section {', '.join(unknown)}; it has {', '.join(sorted(allowed))}.")


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


def is_coordinate(key: str, value: Any) -> bool:
    """Whether a grid key is an axis of figures: what is only averaged or branched off is none, nor are lists.

    Nor is the data's own seed, which goes with the run's: cells that differ in it are draws of the same cell.
    """
    return (
        key != "data.seed"
        and key.partition(".")[0] not in ("averaging", "branches")
        and not isinstance(value, list | dict)
    )


def write_plan(results: Path, plan: Plan) -> Path:
    """Record which runs make up the whole experiment, for `collect` and `status`; returns the file."""
    folder = results / "experiments"
    folder.mkdir(parents=True, exist_ok=True)
    data = plan.cells[0].config.data
    path = folder / f"{plan.name}-{plan.scale}.json"
    cells = [
        {
            "run_id": run_id(cell.config),
            "folder": folder_name(cell.config),
            "coordinates": dict(cell.coordinates),
        }
        for cell in plan.all_cells
    ]
    write_json(
        path,
        sealed(
            {
                "experiment": plan.name,
                "scale": plan.scale,
                "title": plan.title,
                "figure": plan.figure,
                "regime": data.regime,
                "data": data.kind,
                "command": plan.command,
                "cells": cells,
            }
        ),
    )
    return path
