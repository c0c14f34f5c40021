"""What a stretch of training is told: where it goes, when it measures what, and where its numbers come from."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weight_decay.tasks.regime import Probe
from weight_decay.training.checkpoint import Owner


@dataclass(frozen=True)
class Origin:
    """Where the numbers of a stretch come from.

    Whose they are, the fingerprints of the data trained and evaluated on, what is computing now (see
    `provenance.stretch_provenance`), and the SHA-256 of what a matched schedule follows.
    """

    owner: Owner
    data: str
    evaluated: str
    now: Mapping[str, Any]
    reference: str | None = None


@dataclass(frozen=True)
class Course:
    """From which step to which a stretch goes, the folder in which it is kept, and where its numbers come from.

    Step numbers are the run's own throughout, also in a branch, so that data and record line up.
    """

    folder: Path
    first: int
    last: int
    origin: Origin
    branched: bool = False


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
