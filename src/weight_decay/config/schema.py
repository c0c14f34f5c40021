"""What a setting is marked with, and what its value is checked for, by the group that it stands in.

A check that fails raises a ValueError which starts with the setting's name; `plain.py` adds where it is.
"""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Any

EXECUTION = {"execution": True}
"""Field metadata: this value says where or how to compute, and cannot change a run's numbers."""
SMALLEST, LARGEST = 1e-20, 1e6
"""Of learning rates, decay strengths and the like: far beyond what float32 weights can be moved by or survive."""


def off(value: Any) -> dict[str, Any]:
    """Field metadata: at `value` the feature is off, and a run's identity is as if the field did not exist.

    A field added after runs were published carries it, so that those runs keep their identity and their recorded
    configs, which lack the field, can still be read.
    """
    return {"off": value}


def require(condition: bool, message: str) -> None:
    """Raise ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def check_size(name: str, value: float | None, zero: bool = False) -> None:
    """ValueError unless a rate, strength or bound has a size that something can come of; null is left to the type."""
    require(
        value is None or SMALLEST <= value <= LARGEST or (zero and value == 0),
        f"{name}: must be {'0, or ' if zero else ''}from {SMALLEST:g} to {LARGEST:g}, got {value}",
    )


def check_seed(name: str, value: int) -> None:
    """ValueError unless `value` can seed something, and is the number that was written: 1e30 would be another one."""
    require(0 <= value < 2**53, f"{name}: must be from 0 to 2^53 - 1, got {value}")


def check_name(name: str | None, kind: str, named: bool) -> None:
    """ValueError unless `name` is null, or a folder below `root` for a data set whose kind may have another one."""
    require(name is None or named, f"name: {kind} data have a folder of their own; set it to null")
    parts = () if name is None else PurePath(name).parts
    require(
        name is None or (bool(parts) and not PurePath(name).is_absolute() and ".." not in parts),
        f"name: must be a folder below data.root, such as mine, got {name!r}",
    )


def check_pattern(pattern: str, name: str) -> None:
    """ValueError unless `pattern` is a regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{name}: {pattern!r} is not a regular expression ({error})") from None
