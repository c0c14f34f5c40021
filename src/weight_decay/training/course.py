"""What a stretch of training is told from outside: where it goes, and who hears of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from weight_decay.runs.progress import Progress
    from weight_decay.training.provenance import Origin
    from weight_decay.training.record import Recorder


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
class Telling:
    """Who hears how a stretch goes: the record, the progress bar, and whoever reads the lines that are said."""

    recorder: Recorder
    progress: Progress
    say: Callable[[str], None]
