"""The words of a command in Hydra's own grammar: choices of groups, values, sweeps, and what is meant for Hydra."""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, RangeSweep
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from weight_decay.config.execution import is_execution_setting
from weight_decay.errors import UserError, first_line
from weight_decay.experiments.catalog import groups
from weight_decay.experiments.steering import COMMAND_KEYS, MOST_CELLS
from weight_decay.experiments.yaml_file import deep

LONGEST = 20_000
DEEPEST = 12
"""Of one word; Hydra's parser takes twice as long for every further level."""


@dataclass(frozen=True)
class Setting:
    """One word, `key=value`."""

    word: str
    override: Override

    @property
    def key(self) -> str:
        """The dotted setting, or the group."""
        return self.override.key_or_group

    @property
    def plain(self) -> str:
        """The word as `key=value`: Hydra's `++` says "whether or not it is there", and here a setting always is."""
        return self.word.removeprefix("++")


def is_hydras(word: str) -> bool:
    """Whether a word is a setting of Hydra itself, such as `hydra/launcher=slurm`."""
    return word.lstrip("+~").startswith(("hydra/", "hydra."))


def settings_of(words: Sequence[str]) -> list[Setting]:
    """Parse the words; UserError on one that is no setting of a run."""
    settings = []
    for word in words:
        (override,) = parse([word])
        if override.is_delete():
            raise UserError(
                f"{word}: settings can be changed but not added or removed; decay.strength=0 switches weight decay "
                "off, and null or [] most other settings."
            )
        if override.is_add() or override.package is not None:
            raise UserError(f"{word}: settings can be changed but not added or removed; write key=value.")
        settings.append(Setting(word, override))
    return settings


def parse(words: Sequence[str]) -> list[Override]:
    """The words in Hydra's grammar, within bounds; UserError names the one that cannot be read."""
    parsed = []
    for word in words:
        if len(word) > LONGEST or deep(word) > DEEPEST:
            raise UserError(
                f"{word[:40]}...: cannot be read as key=value (it is longer than {LONGEST:,} characters, or its "
                f"brackets stand more than {DEEPEST} deep in each other)."
            )
        try:
            found = OverridesParser.create().parse_overrides([word])
        except (HydraException, OmegaConfBaseException, RecursionError, ValueError) as error:
            raise UserError(f"{word}: cannot be read as key=value ({first_line(error)}).") from None
        parsed += found
    return parsed


def choices_and_values(words: Sequence[str]) -> tuple[dict[str, str], dict[str, Any]]:
    """Split `key=value` words, without sweeps, into choices of groups and plain values."""
    chosen: dict[str, str] = {}
    values: dict[str, Any] = {}
    for setting in settings_of(words):
        if is_hydras(setting.word):
            raise UserError(f"{setting.word}: settings of Hydra itself need the flag -m.")
        if setting.override.is_sweep_override():
            raise UserError(f"{setting.word}: several values for one setting need the flag -m (one run for each).")
        value = setting.override.value()
        if setting.key in groups():
            option = "none" if value is None else str(value)
            if setting.key == "experiment" and "/" in option:  # as Hydra knows it: NAME/SCALE
                option, _, scale = option.partition("/")
                chosen.setdefault("scale", checked_option("scale", scale))
            chosen[setting.key] = checked_option(setting.key, option)
        else:
            values[setting.key] = OmegaConf.to_container(OmegaConf.create({"value": value}))["value"]  # type: ignore[index,call-overload]
    return chosen, values


def checked_option(group: str, option: str) -> str:
    """The option; UserError with the nearest right name if the group has none of that name."""
    options = groups()[group]
    if option not in options:
        close = difflib.get_close_matches(option, options, n=1)
        hint = f"; did you mean {close[0]}?" if close else f"; there are {', '.join(options)}."
        raise UserError(f"{group}: there is no {option}{hint}")
    return option


def combinations(words: Sequence[str]) -> list[tuple[list[str], dict[str, str]]]:
    """Every combination of the values that are swept: its words, and of these the swept ones as key and value."""
    axes: dict[str, tuple[bool, list[str]]] = {}
    for setting in settings_of(words):
        swept = setting.override.is_sweep_override()
        axes[setting.key] = (swept, _values(setting) if swept else [setting.plain.partition("=")[2]])
    count = math.prod(len(values) for _, values in axes.values())
    if count > MOST_CELLS:
        raise UserError(f"-m: these are {count:,} combinations; {MOST_CELLS:,} are the most at a time.")
    found = []
    for values in itertools.product(*(values for _, values in axes.values())):
        point = dict(zip(axes, values, strict=True))
        found.append(
            ([f"{key}={value}" for key, value in point.items()], {key: point[key] for key in axes if axes[key][0]})
        )
    return found


def _values(setting: Setting) -> list[str]:
    """The values of a swept setting, as they would be typed."""
    override, word = setting.override, setting.word
    top = setting.key.partition(".")[0]
    if top in COMMAND_KEYS - {"cell", "scale", "experiment"} or is_execution_setting(setting.key):
        raise UserError(
            f"{word}: {setting.key} says where or how to compute and makes no other run, so give it one value."
        )
    if override.is_interval_sweep():
        raise UserError(f"{word}: an interval is for a sweeper that searches, such as hydra/sweeper=optuna.")
    value = override.value()
    if isinstance(value, Glob):
        if setting.key not in groups():
            raise UserError(f"{word}: glob() is for config groups ({', '.join(groups())}); list the values instead.")
        names = [name for name in value.filter(groups()[setting.key]) if name != "none"]
    elif isinstance(value, RangeSweep):
        names = _range(value, word)
    else:
        names = list(override.sweep_string_iterator())
    if not names:
        raise UserError(f"{word}: there are no such values, so nothing to run.")
    return names


def _range(sweep: RangeSweep, word: str) -> list[str]:
    start, stop, step = sweep.start, sweep.stop, sweep.step
    assert start is not None and stop is not None
    try:
        count = (stop - start) / step
    except (ZeroDivisionError, OverflowError):
        count = math.inf
    if not count < MOST_CELLS:  # also NaN
        raise UserError(f"{word}: this range has no end or more than {MOST_CELLS:,} values; give another step.")
    return [str(value) for value in sweep.range()]
