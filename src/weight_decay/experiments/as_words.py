"""A run's config as words of a command line, which make the same run again."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weight_decay.config.plain import to_dict
from weight_decay.config.run import RunConfig
from weight_decay.config.span import Span
from weight_decay.errors import UserError
from weight_decay.experiments.catalog import groups, own_configs, read_option

CHOSEN = ("data", "model", "optimizer", "decay", "schedule")
"""Groups whose options of different kinds have different settings, so that an option must be chosen first."""
_PLAIN = re.compile(r"[A-Za-z_/][\w./-]*|\d+(\.\d+)?( (steps?|epochs?|samples?|tokens?)|%)")
_OTHERWISE = {"null", "true", "false", "nan", "inf"}


def settings(config: RunConfig) -> dict[str, str]:
    """Every setting of a run as `key: value`, both in Hydra's grammar; the option of a group before its settings.

    What an option's file does not mention, as one of the user's own may not, is at its default and left out.
    """
    found: dict[str, str] = {}
    chosen = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not dataclasses.is_dataclass(value) or isinstance(value, Span):
            found[field.name] = in_hydras_grammar(to_dict(value, identity_only=True))
            continue
        inside = [inner.name for inner in dataclasses.fields(value)]
        if field.name in CHOSEN and (nearest := _nearest_option(field.name, to_dict(value))) is not None:
            chosen[field.name], known = nearest
            inside = [name for name in inside if name in known and name != "kind"]
        # Of what lies deeper, what is off is left out: a rule or a branch is one word, and long enough.
        plain = {name: to_dict(getattr(value, name), identity_only=True) for name in inside}
        found |= {f"{field.name}.{name}": in_hydras_grammar(inner) for name, inner in plain.items()}
    return {**chosen, **found}


def _nearest_option(group: str, value: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """Of the options of a kind, the one that says most of its settings already, with what it says; None without any."""
    options = _options(group, own_configs())
    alike = [(name, option) for name, option in options.items() if option.get("kind") == value["kind"]]
    return max(alike, key=lambda pair: sum(pair[1].get(key) == value[key] for key in value), default=None)


@functools.cache
def _options(group: str, own: Path | None) -> dict[str, Mapping[str, Any]]:
    """What the options of a group say; one that cannot be read is none, and whoever chooses it is told why."""
    readable: dict[str, Mapping[str, Any]] = {}
    for name in groups()[group]:
        with contextlib.suppress(UserError):
            option = read_option(group, name)
            readable |= {name: option} if isinstance(option, Mapping) else {}
    return readable


def quoted(key: str, value: str) -> str:
    """A setting as one word of a shell."""
    return shlex.quote(f"{key}={value}")


def in_hydras_grammar(value: Any) -> str:
    """A plain value as it would be typed after `key=`."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{in_hydras_grammar(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(in_hydras_grammar, value)) + "]"
    if not isinstance(value, str):
        return repr(value)
    if _PLAIN.fullmatch(value) and value.lower() not in _OTHERWISE:
        return value
    # Inside quotes a backslash is itself, except before a quote.
    return '"' + re.sub(r'(\\*)("|$)', lambda found: 2 * found[1] + ("\\" + found[2] if found[2] else ""), value) + '"'
