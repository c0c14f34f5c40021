"""Where the files lie that come with the program: in a wheel inside the package, in a checkout at its top."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
CHECKOUT = PACKAGE.parents[1] if (PACKAGE.parents[1] / "pyproject.toml").is_file() else None
"""The checkout that this package lies in; None in an installed wheel, also in one inside somebody's repository."""


def _place(inside: str, in_checkout: str) -> Path:
    return PACKAGE / inside if CHECKOUT is None else CHECKOUT / in_checkout


CONFIGS = Path(os.environ.get("WEIGHT_DECAY_CONFIGS", _place("configs", "configs")))
"""The config groups; WEIGHT_DECAY_CONFIGS names another folder."""

REFERENCE = _place("reference", "results/reference")
"""The paper's digitised curves."""
