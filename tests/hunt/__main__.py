"""`make hunt`: everything that disks, people and other programs do to runs and data, and what comes of it.

Usage: python tests/hunt [share=1.0] [seed=0] [only=AREA]. `share` scales the number of cases. Prints the table of
tried, refused, survived, silent, traceback and hang; the exit code is 1 unless the last three are 0.
"""

from __future__ import annotations

import contextlib
import io
import os
import platform
import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from hunt import disks, folders, preparation, processes, words
from hunt.laboratory import laboratory
from hunt.ledger import MEMORY, Ledger, Stopwatch

PLAN = (
    (folders.after, 900), (folders.before, 360), (folders.during, 240), (disks.full, 60), (disks.reading, 60),
    (processes.together, 60), (processes.without_locks, 30), (processes.users, 16), (processes.clocks, 14),
    (processes.mirrors, 30), (preparation.sources, 1400), (words.command_lines, 4000), (words.experiment_files, 1000),
)  # fmt: skip
"""Areas and the number of their cases: 3,170 faults, 5,000 command lines and experiment files."""


def hunt(share: float, seed: int, only: str = "", say: bool = True) -> Ledger:
    """Try a share of all cases."""
    # Children are forked, which threads of torch would not survive.
    torch.set_num_threads(1)
    ledger, told = Ledger(), Stopwatch()
    for area, cases in PLAN:
        if only in f"{area.__module__}.{area.__name__}" and round(share * cases):
            # What the runs say is no part of the table. A laboratory each: none inherits the ruins of another.
            with laboratory() as place, contextlib.redirect_stderr(io.StringIO()):
                with contextlib.redirect_stdout(io.StringIO()):
                    area(place, ledger, round(share * cases), seed)
                os.chdir(Path(__file__).parents[2])
            if say:
                told(f"{area.__module__}.{area.__name__}: {ledger.tried} tried, {ledger.failures} of them badly ended")
    return ledger


def main(arguments: list[str]) -> int:
    """Hunt, print the table, and say whether anything was found."""
    given = dict(word.partition("=")[::2] for word in arguments)
    seed = int(given.get("seed", 0))
    print(f"seed {seed}, Python {platform.python_version()}, torch {torch.__version__}, {platform.system()}")
    # What reads without end shall end as a traceback here, not as another program's death.
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    ledger = hunt(float(given.get("share", 1.0)), seed, given.get("only", ""))
    print(ledger.table())
    return 1 if ledger.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
