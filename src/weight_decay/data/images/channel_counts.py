"""How often each level occurs in each channel of an image set, kept beside the data: counted once, not at every start.

Counting the five million images of CIFAR-5m takes about 98 s. The counts are whole numbers, so what follows from
them is the same whether they were counted or read.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from weight_decay.runs.files import write_json

NAME = "channel_counts.json"


def kept_counts(folder: Path | None, fingerprint: str, pixels: int) -> np.ndarray | None:
    """Counts (3, 256) of the set with this fingerprint and so many pixels; None if they are not kept or are damaged."""
    if folder is None:
        return None
    try:
        counts = np.asarray(_read(folder)[fingerprint], dtype=np.int64)
    except (KeyError, ValueError, TypeError):
        return None
    return counts if counts.shape == (3, 256) and (counts >= 0).all() and (counts.sum(1) == pixels).all() else None


def keep_counts(folder: Path | None, fingerprint: str, counts: np.ndarray) -> None:
    """Keep the counts in the folder of the data, if it can be written to."""
    if folder is None:
        return
    with contextlib.suppress(OSError):
        # Two runs that count at once keep the same numbers; what one of them overwrites is counted again one day.
        write_json(folder / NAME, {**_read(folder), fingerprint: counts.tolist()})


def _read(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / NAME).read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
