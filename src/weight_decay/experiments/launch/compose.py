"""Hydra composes the config groups; single values are then laid over what it composed."""

from __future__ import annotations

import copy
import difflib
import functools
import itertools
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from weight_decay.errors import UserError, first_line
from weight_decay.experiments.catalog import check_own_option, own_configs
from weight_decay.places import CONFIGS


@contextmanager
def hydra_at_our_configs() -> Iterator[Any]:
    """Hydra, looking at our config groups; inside one of its jobs, the Hydra that is at work."""
    if GlobalHydra.instance().is_initialized():
        yield GlobalHydra.instance().hydra
        return
    with initialize_config_dir(str(CONFIGS.resolve()), job_name="weight-decay", version_base="1.3"):
        yield GlobalHydra.instance().hydra


def search_path() -> list[str]:
    """The word that makes Hydra look into the user's own folder too."""
    own = own_configs()
    return [] if own is None else [f"hydra.searchpath=['file://{own.resolve()}']"]


def composed(choices: Mapping[str, str]) -> dict[str, Any]:
    """The composed groups as a nested dict of the caller's own, interpolations as they are written.

    choices: an option for each group; `experiment` as Hydra knows it, NAME or NAME/SCALE. Without what an experiment
    declares, which `grid_of` gives. UserError if they do not fit together.
    """
    values, _ = _composed(tuple(sorted(choices.items())), own_configs())
    return copy.deepcopy({key: value for key, value in values.items() if key != "grid"})


def grid_of(choices: Mapping[str, str]) -> list[dict[str, list[Any]]]:
    """The grid of the composed experiment, not to be changed; one cell without an experiment."""
    return _composed(tuple(sorted(choices.items())), own_configs())[0]["grid"]


def options_of(choices: Mapping[str, str]) -> Mapping[str, str]:
    """The option that each group is composed with, those that an experiment or a setting chooses among them."""
    return _composed(tuple(sorted(choices.items())), own_configs())[1]


@functools.cache
def _composed(choices: tuple[tuple[str, str], ...], own: Path | None) -> tuple[dict[str, Any], dict[str, str]]:
    for group, option in choices:
        check_own_option(group, option)
    words = [f"{group}={option}" for group, option in choices]
    try:
        with hydra_at_our_configs():
            config = compose("config", overrides=[*search_path(), *words], return_hydra_config=True)
            options = OmegaConf.to_container(config.hydra.runtime.choices)
            with open_dict(config):
                del config["hydra"]
            return OmegaConf.to_container(config), options  # type: ignore[return-value]
    except Exception as error:
        if not is_about_words(error):
            raise
        raise UserError(f"configs: cannot be composed with {' '.join(words)}: {first_line(error)}.") from None


def resolved(config: dict[str, Any]) -> dict[str, Any]:
    """The config with the values that its interpolations, such as ${seed}, refer to.

    OmegaConf sees only the groups that have some and those they name: it would take most of the time of a large plan.
    """
    with_some = {key: told for key, value in config.items() if (told := list(_interpolations(value)))}
    if not with_some:
        return config
    text = " ".join(itertools.chain.from_iterable(with_some.values()))
    named = config if "${." in text else {*with_some, *re.findall(r"\$\{(\w+)", text)}
    try:
        parts = OmegaConf.create({key: value for key, value in config.items() if key in named})
        return {**config, **OmegaConf.to_container(parts, resolve=True)}  # type: ignore[dict-item]
    except OmegaConfBaseException as error:
        raise UserError(f"configs: {first_line(error)}.") from None


def _interpolations(value: Any) -> Iterator[str]:
    """Every text in it that refers to something."""
    if isinstance(value, str):
        yield from [value] if "${" in value else []
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _interpolations(inner)


def assign(config: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key that must exist already."""
    parts = key.split(".")
    inside: Any = config
    for depth, part in enumerate(parts):
        holder = inside
        if not isinstance(holder, dict) or part not in holder:
            close = difflib.get_close_matches(part, holder if isinstance(holder, dict) else (), n=1)
            suggestion = ".".join([*parts[:depth], *close, *parts[depth + 1 :]])
            hint = f"; did you mean {suggestion}?" if close else "; `weight-decay --info` lists the settings."
            raise UserError(f"{key}: there is no such setting{hint}")
        inside = holder[part]
    holder[parts[-1]] = value


def has(config: Mapping[str, Any], key: str) -> bool:
    """Whether a dotted key is there."""
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return False
        node = node[part]
    return True


_HYDRAS_OWN = (HydraException, OmegaConfBaseException, RecursionError)


def is_about_words(error: Exception) -> bool:
    """Whether Hydra has stumbled over what was typed: it raises what Python does where a value is of another type."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    library = frame.f_globals["__name__"].partition(".")[0]
    return isinstance(error, _HYDRAS_OWN) or library in ("hydra", "omegaconf")


def one_sentence(error: Exception, words: Sequence[str]) -> UserError:
    """What Hydra says about its own settings, in one sentence."""
    # What else comes out of Hydra says in Python's words that a value is of another type.
    told = first_line(error) if isinstance(error, _HYDRAS_OWN) else f"Hydra cannot use this ({first_line(error)})"
    for word in words:
        group, _, option = word.partition("=")
        if group in ("hydra/sweeper", "hydra/launcher") and f"'{group}/{option}'" in told:
            kind = group.partition("/")[2]
            return UserError(
                f"{word}: there is no such {kind} here; install its plugin (pip install hydra-{option.split('_')[0]}-"
                f"{kind}), or choose another: `weight-decay --info plugins` lists them."
            )
    return UserError(f"{' '.join(words) or 'hydra'}: {told}.")
