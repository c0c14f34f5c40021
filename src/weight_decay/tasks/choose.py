"""From a config's data to its regime: `tasks/over_training.py` or `tasks/under_training.py`, by the name it bears.

Found by name and not imported here, so that each regime stands on its own, in memory as in the fingerprint of code.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import replace
from typing import Any

import torch

from weight_decay.config.groups import ImageData
from weight_decay.config.run import RunConfig
from weight_decay.config.text import TokenData
from weight_decay.data.manifest import reading_whole
from weight_decay.data.where import is_there
from weight_decay.errors import UserError
from weight_decay.tasks.regime import Probe, Regime


def _part(regime: str) -> Any:
    """The regime's module, with `build` and `load_sets`."""
    return importlib.import_module(f"weight_decay.tasks.{regime}")


def build_regime(config: RunConfig, device: torch.device) -> Regime:
    """Load the data, make the task and its probes; UserError if the data cannot serve the run."""
    regime = _part(config.data.regime).build(config, device)
    probes = [Probe(kind, kind.ready(regime.task, config.seed)) for kind in config.probes.wanted()]
    return replace(regime, probes=tuple(probes))


def check_data(data: ImageData | TokenData) -> None:
    """Read every byte of the data, where they are here and have a manifest; UserError if one is not what it was."""
    if is_there(data):
        with reading_whole():
            _part(data.regime).load_sets(data)


@functools.cache
def data_fingerprint(data: ImageData | TokenData) -> str | None:
    """What names the training data's content; None if the config determines it anyway, or the data are not here."""
    if data.drawn:
        return None
    try:
        training, _ = _part(data.regime).load_sets(data)
    except UserError:
        return None
    return training.fingerprint
