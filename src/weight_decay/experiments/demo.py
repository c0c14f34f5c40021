"""`weight-decay demo`: both regimes on embedded data, then what they show."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from weight_decay.errors import UserError

EXPERIMENTS = ("demo_over_training", "demo_under_training")


def train_demo(words: Sequence[str], run: Callable[[Sequence[str]], int]) -> int:
    """Train both experiments of the demo; `run` takes the settings of a sweep. The exit code.

    words: `results=FOLDER` (results/demo if not given) and `jobs=N`, cells at a time (all cores if not given). Finished
    cells are skipped, so the same command goes on after an interruption. UserError for other words.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = {"results": "results/demo", "jobs": str(cores)}
    for word in words:
        key, _, value = word.partition("=")
        if key not in given or not value:
            raise UserError(f"demo: {word} is not known here; give results=FOLDER and jobs=N.")
        given[key] = value
    for experiment in EXPERIMENTS:
        settings = (f"experiment={experiment}", "scale=micro", f"execution.results={given['results']}")
        if code := run([*settings, f"jobs={given['jobs']}"]):
            return code
    return 0
