"""Which experiments, config groups and options there are: read from the folders of config files, without Hydra."""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weight_decay.config.own import OWN_CONFIGS
from weight_decay.errors import UserError
from weight_decay.experiments.declared import REGIMES, Declared
from weight_decay.experiments.demo import OWN as DEMO
from weight_decay.experiments.yaml_file import read_yaml
from weight_decay.places import CONFIGS

_NAME = re.compile(r"(?!(?:true|false|null|nan|inf)$)[^\W\d][\w.-]*", re.IGNORECASE)


def own_configs() -> Path | None:
    """The folder of the user's own options, `--config-dir`; UserError if it cannot be one."""
    if not (given := os.environ.get(OWN_CONFIGS)):
        return None
    folder = Path(given)
    if not folder.is_dir():
        raise UserError(f"--config-dir: there is no folder {folder}.")
    return folder


def take_config_dir(words: Sequence[str]) -> list[str]:
    """The words without `--config-dir FOLDER`, which the environment then holds."""
    for index, word in enumerate(words):
        flag, equals, folder = word.partition("=")
        if flag in ("--config-dir", "-cd"):
            given = folder if equals else "".join(words[index + 1 : index + 2])
            if not given:
                raise UserError(
                    "--config-dir: say which folder: --config-dir FOLDER, with FOLDER/experiment/NAME.yaml."
                )
            os.environ[OWN_CONFIGS] = given
            own_configs()
            return [*words[:index], *words[index + (1 if equals else 2) :]]
    return list(words)


def groups() -> dict[str, list[str]]:
    """Config groups and their options, the user's own among them."""
    return _groups(own_configs())


@functools.cache
def _groups(own: Path | None) -> dict[str, list[str]]:
    if not (CONFIGS / "config.yaml").is_file():
        raise UserError(
            f"configs: there is no config.yaml in {CONFIGS}; correct WEIGHT_DECAY_CONFIGS, or install again."
        )
    found = {
        folder.name: _options(folder)
        for folder in sorted(CONFIGS.iterdir())
        if folder.is_dir() and folder.name not in ("hydra", "claims")  # Hydra's own groups; how claims are decided
    }
    if own is None:
        return found
    files = [(name, own / name / option) for name in found for option in _options(own / name)]
    if not files:
        raise UserError(f"--config-dir: nothing is in {own} that could be used; put NAME.yaml in {own}/experiment.")
    for name, file in files:
        if not _NAME.fullmatch(file.name):
            raise UserError(
                f"--config-dir: {file}.yaml has a name that would be read as a number or a list when it is typed; "
                "rename it, with a letter first, then letters, digits, _, . and -."
            )
        if file.name in found[name]:
            raise UserError(f"--config-dir: there is a {name} {file.name} already; give {file}.yaml another name.")
    return {
        name: sorted([*options, *(file.name for at, file in files if at == name)]) for name, options in found.items()
    }


def _options(folder: Path) -> list[str]:
    """The options of a group: its files, and for experiments the folders with a file for each scale."""
    folders = folder.iterdir() if folder.name == "experiment" and folder.is_dir() else ()
    return sorted({file.stem for file in folder.glob("*.yaml")} | {inner.name for inner in folders if inner.is_dir()})


def option_file(group: str, option: str) -> Path:
    """The file of an option, in the user's own folder or in ours."""
    own = own_configs()
    file = Path(group) / f"{option}.yaml"
    # os.path, since a name too long for a file is no error there.
    return own / file if own is not None and os.path.isfile(own / file) else CONFIGS / file  # noqa: PTH113


def check_own_option(group: str, option: str) -> None:
    """UserError if a file that a user has written, in a folder of their own, cannot be read."""
    if option_file(group, option).parent.parent != CONFIGS and option in groups().get(group, ()):
        read_option(group, option)


def read_option(group: str, option: str) -> dict[str, Any]:
    """What the file of an option says; UserError if it cannot be read."""
    return read_yaml(option_file(group, option))


def declared(name: str) -> Declared:
    """The experiment of this name, in the user's own folder or in ours; UserError if its files are wrong."""
    own = own_configs()
    mine = own is not None and any(os.path.exists(own / "experiment" / file) for file in (name, f"{name}.yaml"))  # noqa: PTH110
    place = own if own is not None and mine else CONFIGS
    return Declared.read(place / "experiment", name)


def experiments(regime: str | None = None) -> dict[str, Declared]:
    """Every declared experiment, or those of one regime, by name."""
    if regime is not None and regime not in REGIMES:
        raise UserError(f"experiments: the regimes are {' and '.join(REGIMES)}, got {regime}.")
    everything = {name: declared(name) for name in groups()["experiment"] if name != "none"}
    return {name: what for name, what in everything.items() if regime in (None, what.regime)}


def reproduction(regime: str) -> list[str]:
    """The experiments of a regime that belong to the paper's figures or to its study, in the order of the figures.

    Without the demos, which show two figures in minutes: their scales are no steps towards the paper's.
    """
    figures = {name: str(what.figure) for name, what in experiments(regime).items() if what.figure is not None}

    def order(name: str) -> tuple[float, str]:
        number = re.match(r"\d+", figures[name])
        return (float(number[0]) if number else math.inf), figures[name]

    return sorted(figures.keys() - set(DEMO), key=lambda name: (*order(name), name))
