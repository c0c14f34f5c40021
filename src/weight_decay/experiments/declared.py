"""The files of an experiment, as they are written: found, checked and listed without Hydra, which composes them.

An experiment is a folder NAME of `configs/experiment/` with a file for each scale, or one file NAME.yaml, which is of
one scale. They are Hydra's own: `# @package _global_`, a defaults list that overrides groups, settings, and two keys of
ours. `about` is its title, figure and regime; `grid` a list of mappings from a setting to the values it takes, each
expanded to its Cartesian product (one cell without it).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weight_decay.config.execution import is_execution_setting
from weight_decay.errors import UserError
from weight_decay.experiments.steering import COMMAND_KEYS, DECLARED_KEYS, MOST_CELLS
from weight_decay.experiments.yaml_file import read_yaml

SCALES = ("micro", "small", "paper")
REGIMES = ("over_training", "under_training")
ABOUT = "about"
"""What a folder's scales share: the file, and in it the key that tells what the experiment is."""
_HEADER = re.compile(r"^#\s*@package\s+_global_\s*$", re.MULTILINE)
_NO_SETTINGS = {"defaults", *DECLARED_KEYS}
_SECTIONS = {"title", "figure", "regime"}


@dataclass(frozen=True)
class Declared:
    """What an experiment is, and where it is written."""

    name: str
    title: str
    figure: str | None
    regime: str
    files: Mapping[str, Path]
    """The file of each scale, in the order of SCALES."""
    shared: Path | None
    """What all scales of a folder include."""

    @classmethod
    def read(cls, place: Path, name: str) -> Declared:
        """Read the experiment in the folder `place`; UserError, which names the file, if it says no such thing."""
        if not re.fullmatch(r"\w[\w.-]*", name) or name == "single":
            raise UserError(
                f"{place / name}: an experiment cannot be called {name!r}; rename the file, with letters, digits, _, . "
                "and -."
            )
        folder, shared = place / name, None
        if folder.is_dir():
            files = {file.stem: file for file in sorted(folder.glob("*.yaml"))}
            shared = files.pop(ABOUT, None)
            if not files or files.keys() - set(SCALES):
                raise UserError(f"{folder}: its files must be called like scales: {', '.join(SCALES)} (and about).")
            files = {scale: files[scale] for scale in SCALES if scale in files}
        else:
            file = place / f"{name}.yaml"
            files = {_scale(read_yaml(file)): file}
        source = shared or next(iter(files.values()))
        about = _checked_about(_content(source).get(ABOUT), f"{source}: {ABOUT}")
        return cls(name, about["title"], about["figure"], about["regime"], files, shared)

    def option(self, scale: str) -> str:
        """What Hydra knows it as at a scale; UserError if it is not declared there."""
        if scale not in self.files:
            scales = ", ".join(self.files)
            raise UserError(f"scale: experiment {self.name} is declared at {scales}, not at {scale}.")
        file = self.files[scale]
        return self.name if file.stem == self.name else f"{self.name}/{scale}"

    def check(self, scale: str) -> None:
        """UserError, which names the file, if no runs could be made of it; whether its names exist Hydra says."""
        for file in (self.shared, self.files[scale]):
            if file is None:
                continue
            content = _content(file)
            settings = {key: value for key, value in content.items() if key not in _NO_SETTINGS}
            for key, value in settings.items():
                if "." in key:
                    first, _, rest = key.partition(".")
                    raise UserError(f"{file}: {key} must be written as {first}: {{{rest}: ...}}, as in every YAML.")
                if value is None and key not in ("sphere_radius", "micro_batch_size"):
                    raise UserError(f"{file}: {key} is empty; write `{key}: {{setting: value}}`, or leave it out.")
            _check_keys(_dotted(settings), str(file))
            if "grid" in content:
                _check_grid(content["grid"], f"{file}: grid")
            if not isinstance(content.get("defaults", []), list):
                raise UserError(f"{file}: defaults must be a list such as `- override /data: procedural`.")


def _content(file: Path) -> dict[str, Any]:
    """What a file says; UserError unless it is Hydra's own, at the root of the config, with text as keys."""
    content = read_yaml(file)
    _keys(content, str(file))
    if not _HEADER.search(file.read_text(encoding="utf-8")):
        raise UserError(f"{file}: the line `# @package _global_` must stand at its top, so that it sets what it names.")
    return content


def _scale(content: Mapping[str, Any]) -> str:
    """The scale of a single file: what its defaults list says, otherwise that of config.yaml."""
    defaults = content.get("defaults")
    for entry in defaults if isinstance(defaults, list) else []:
        if isinstance(entry, dict) and (scale := entry.get("override /scale")) in SCALES:
            return str(scale)
    return SCALES[0]


def _checked_about(about: Any, where: str) -> dict[str, Any]:
    _keys(about, where)
    if missing := sorted(_SECTIONS - set(about)):
        raise UserError(f"{where}: {', '.join(missing)} must be there too; it has {', '.join(sorted(_SECTIONS))}.")
    if unknown := sorted(set(about) - _SECTIONS):
        raise UserError(f"{where}: there is no {', '.join(unknown)}; it has {', '.join(sorted(_SECTIONS))}.")
    if not isinstance(about["title"], str):
        raise UserError(f"{where}: title must be text, got {about['title']!r}; put it in quotes.")
    if about["figure"] is not None and not isinstance(about["figure"], str | int):
        raise UserError(f"{where}: figure must be text or null, got {about['figure']!r}; put it in quotes.")
    if about["regime"] not in REGIMES:
        raise UserError(f"{where}: regime must be {' or '.join(REGIMES)}, got {about['regime']!r}.")
    return dict(about)


def _keys(content: Any, where: str) -> None:
    """A mapping whose keys are text, or UserError."""
    if content is None:
        raise UserError(f"{where} is empty; write `key: value` in it.")
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


def _check_keys(keys: Iterator[str] | Mapping[str, Any], where: str) -> None:
    """UserError on a key that makes no other run: its values would give one number to several rows."""
    for key in keys:
        first = key.partition(".")[0]
        if first in COMMAND_KEYS | DECLARED_KEYS | {"hydra"} or key.startswith("hydra/") or is_execution_setting(key):
            raise UserError(
                f"{where}: {key} says where or how to compute, not what; give it on the command line instead."
            )


def _dotted(settings: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """The names of all settings, dotted, groups before what is in them."""
    for key, value in settings.items():
        yield f"{before}{key}"
        if isinstance(value, Mapping):
            yield from _dotted({str(inner): one for inner, one in value.items()}, f"{before}{key}.")
