"""Nested frozen dataclasses from plain mappings, strictly, and back.

Hydra composes and OmegaConf stores, but neither checks a union of dataclasses or explains itself in one sentence,
so the typed config is built here. Errors are `UserError`s that start with the dotted name of the setting.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any

from weight_decay.config.span import Span
from weight_decay.errors import UserError

_NUMBER = re.compile(r"[+-]?(?!0[0-9])([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
"""A number that is a text: YAML 1.1 reads 1e-3 (no dot) as one. Not 05, which is what -m makes of the decimal 0,05."""


def build_dataclass(cls: type, values: Any, path: str = "") -> Any:
    """An instance of the dataclass `cls` from `values`; UserError on unknown, missing or wrong settings."""
    if not isinstance(values, Mapping):
        raise UserError(f"{path or 'the configuration'}: must be a group of settings, got {values!r}.")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = _hints(cls)
    for key in values:
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, n=1)
            hint = (
                f"; did you mean {_join(path, close[0])}?" if close else f"; known here: {', '.join(sorted(fields))}."
            )
            raise UserError(f"{_join(path, key)}: there is no such setting{hint}")
    # A config recorded before a setting existed says nothing about it: the feature was off.
    values = {name: f.metadata["off"] for name, f in fields.items() if "off" in f.metadata} | dict(values)
    missing = [name for name in fields if name not in values]
    if missing:
        raise UserError(f"{_join(path, missing[0])}: this setting is missing; give it a value.")
    built = {name: _convert(hints[name], values[name], _join(path, name)) for name in fields}
    try:
        return cls(**built)
    except ValueError as error:
        raise UserError(f"{_join(path, str(error))}.") from None


# Hundreds of cells are built from the same few classes, and resolving their annotations is most of the work.
_hints = functools.cache(functools.partial(typing.get_type_hints, include_extras=True))


def _join(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:  # a kind out of a registry
        return build_dataclass(arguments[1][_kind(value, path, arguments[1].names())], value, path)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, path)
    if origin is typing.Literal:
        if not any(
            value == argument and isinstance(value, bool) == isinstance(argument, bool) for argument in arguments
        ):
            choices = [str(argument).lower() if isinstance(argument, bool) else str(argument) for argument in arguments]
            raise UserError(f"{path}: must be one of {', '.join(choices)}, got {value!r}.")
        return value
    if origin is tuple:
        return _convert_tuple(arguments, value, path)
    if hint is Span:
        try:
            return value if isinstance(value, Span) else Span.parse(str(value))
        except ValueError as error:
            raise UserError(f"{path}: {error}.") from None
    if dataclasses.is_dataclass(hint):
        return build_dataclass(typing.cast(type, hint), value, path)
    return _convert_scalar(hint, value, path)


def _convert_union(arguments: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    options = [option for option in arguments if option is not type(None)]
    if len(options) == 1:
        return _convert(options[0], value, path)
    # A choice between dataclasses: the field `kind` tells which.
    kinds = {kind: option for option in options for kind in typing.get_args(_hints(option)["kind"])}
    return build_dataclass(kinds[_kind(value, path, kinds)], value, path)


def _kind(value: Any, path: str, kinds: Collection[str]) -> str:
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise UserError(f"{path}.kind: must be one of {', '.join(kinds)}, got {kind!r}.")
    return kind


def _convert_tuple(arguments: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise UserError(f"{path}: must be a list, got {value!r}.")
    if arguments[-1] is Ellipsis:
        return tuple(_convert(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if len(value) != len(arguments):
        raise UserError(f"{path}: must have {len(arguments)} entries, got {len(value)}.")
    pairs = zip(arguments, value, strict=True)
    return tuple(_convert(hint, item, f"{path}[{i}]") for i, (hint, item) in enumerate(pairs))


def _convert_scalar(hint: Any, value: Any, path: str) -> Any:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value) if not isinstance(value, str) or _NUMBER.fullmatch(value) else float("nan")
        except OverflowError:
            number = float("nan")
        if number - number == 0:
            return number
    elif hint is int and isinstance(value, int | float) and not isinstance(value, bool) and value % 1 == 0:
        return int(value)
    elif hint in (bool, str) and isinstance(value, hint):
        return value
    raise UserError(f"{path}: must be {words[hint]}, got {value!r}.")


def to_dict(config: Any, identity_only: bool = False) -> Any:
    """The config as nested plain values (`build` reads them back); without execution fields if asked."""
    if isinstance(config, Span):
        return str(config)
    if dataclasses.is_dataclass(config):
        return {
            f.name: to_dict(getattr(config, f.name), identity_only)
            for f in dataclasses.fields(config)
            if not (identity_only and _outside_identity(f, getattr(config, f.name)))
        }
    if isinstance(config, tuple):
        return [to_dict(item, identity_only) for item in config]
    return config


def _outside_identity(described: dataclasses.Field[Any], value: Any) -> bool:
    return bool(described.metadata.get("execution")) or (
        "off" in described.metadata and described.metadata["off"] == value
    )
