"""When a stretch of training measures what."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from weight_decay.tasks.regime import Probe


@dataclass(frozen=True)
class Every:
    """The steps start, start + every, ... up to stop; and the last one, if `also_last`."""

    start: int
    every: int
    stop: int = sys.maxsize
    also_last: bool = True


@dataclass(frozen=True)
class Cadence:
    """Steps between two logs, and when the rest is measured (None: never). `ensemble`: when snapshots join it."""

    log: int
    evaluate: Every
    ensemble: Every | None
    probes: tuple[tuple[Probe, Every], ...]
