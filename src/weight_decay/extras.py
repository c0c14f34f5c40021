"""What a command says instead of a traceback: a user's error, or which extra brings a package that is missing."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires

from weight_decay.errors import UserError

IMPORTED_AS = {"pyyaml": "yaml", "pillow": "PIL", "hydra-core": "hydra"}
"""Distributions that are imported under another name than their own."""
ASIDE = ("dev", "docs", "all")
"""Extras that bring no part of the program."""


@functools.cache
def extras() -> dict[str, str]:
    """From the name under which a package is imported to the extra that brings it, read from our own metadata."""
    try:
        lines = requires("weight-decay") or []
    except PackageNotFoundError:
        return {}
    found: dict[str, str] = {}
    for line in lines:
        if match := re.match(r"([\w.-]+).*;.*extra == ['\"](\w+)['\"]", line):
            name, extra = match.groups()
            if extra not in ASIDE:
                found.setdefault(IMPORTED_AS.get(name.lower(), name.lower().replace("-", "_")), extra)
    return found


def sentence(error: ModuleNotFoundError) -> str | None:
    """What to tell a user who lacks this module; None if it belongs to no extra, so that something else is wrong."""
    module = (error.name or "").partition(".")[0]
    if not (extra := extras().get(module)):
        return None
    return f"{module} is not installed; run: pip install 'weight-decay[{extra}]'."


def told(work: Callable[[], int]) -> int:
    """The exit code of `work`; a UserError or a missing extra becomes its sentence on standard error, and 2."""
    try:
        return work()
    except UserError as error:
        message = str(error)
    except ModuleNotFoundError as error:
        if (lacking := sentence(error)) is None:
            raise
        message = lacking
    print(f"weight-decay: {message}", file=sys.stderr)
    return 2
