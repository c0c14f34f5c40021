"""What weight decay does to a training run, and whether you need it: the laboratory, and its probes for your own loop.

The names below are the public API. They are loaded when they are first used, so that `import weight_decay` loads
neither torch nor pandas. What they follow is semantic versioning; everything else in the package may change.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weight_decay.errors import UserError
    from weight_decay.library.averages import EMA
    from weight_decay.library.decay import DecayKept, decay_groups, decay_kept
    from weight_decay.library.hugging_face import TrainerMeasure
    from weight_decay.library.jacobian import Jacobian, jacobian_norm
    from weight_decay.library.lightning import LightningMeasure
    from weight_decay.library.measure import Measure
    from weight_decay.library.tables import load_claims, load_tables
    from weight_decay.probes.divergence import DivergenceMonitor

__version__ = "0.2.0"
"""The one place that has the version; pyproject.toml reads it from here without importing anything."""

_PUBLIC = {
    "DecayKept": "library.decay",
    "DivergenceMonitor": "probes.divergence",
    "EMA": "library.averages",
    "Jacobian": "library.jacobian",
    "LightningMeasure": "library.lightning",
    "Measure": "library.measure",
    "TrainerMeasure": "library.hugging_face",
    "UserError": "errors",
    "decay_groups": "library.decay",
    "decay_kept": "library.decay",
    "jacobian_norm": "library.jacobian",
    "load_claims": "library.tables",
    "load_tables": "library.tables",
}

__all__ = [
    "EMA",
    "DecayKept",
    "DivergenceMonitor",
    "Jacobian",
    "LightningMeasure",
    "Measure",
    "TrainerMeasure",
    "UserError",
    "__version__",
    "decay_groups",
    "decay_kept",
    "jacobian_norm",
    "load_claims",
    "load_tables",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
