"""From a config's data to its regime."""

from __future__ import annotations

import functools

import torch

from weight_decay.config.groups import ImageData
from weight_decay.config.run import RunConfig
from weight_decay.config.text import TokenData
from weight_decay.data.manifest import reading_whole
from weight_decay.data.where import is_there
from weight_decay.device.distributed import current
from weight_decay.errors import UserError
from weight_decay.tasks.over_training import image_regime, load_image_sets
from weight_decay.tasks.regime import Regime
from weight_decay.tasks.under_training import token_regime


def build_regime(config: RunConfig, device: torch.device) -> Regime:
    """Load the data and make the task; UserError if the data cannot serve the run."""
    if isinstance(config.data, ImageData):
        if current().count > 1:
            raise UserError(
                "torchrun: image runs train in one process each; start them without torchrun, "
                "one cell for each GPU (cell=N)."
            )
        return image_regime(config, device)
    return token_regime(config, device)


def check_data(data: ImageData | TokenData) -> None:
    """Read every byte of the data, where they are here and have a manifest; UserError if one is not what it was."""
    if not is_there(data):
        return
    with reading_whole():
        if isinstance(data, ImageData):
            load_image_sets(data)
        else:
            data.load("train")


@functools.cache
def data_fingerprint(data: ImageData | TokenData) -> str | None:
    """What names the training data's content; None if the config determines it anyway, or the data are not here."""
    if data.drawn:
        return None
    try:
        if isinstance(data, ImageData):
            return load_image_sets(data)[0].fingerprint
        return data.load("train").fingerprint
    except UserError:
        return None
