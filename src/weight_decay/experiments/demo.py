"""`weight-decay demo`: both regimes on embedded data and what bfloat16 does to decay, then what they show."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from weight_decay.errors import UserError

OWN = ("demo_over_training", "demo_under_training")
"""Experiments that only the demo has."""
EXPERIMENTS = (*OWN, "bfloat16_replay")
AHEAD = """\
The demo, about 4 minutes on two idle cores; nothing is downloaded:
  1. over-training: four small ResNets, many passes over drawn images, with and without weight decay
  2. under-training: two small GPTs, one pass over made-up text, with and without weight decay
  3. the gradients of a GPT again, with and without weight decay, on weights in bfloat16
  4. what came out, and a page of figures: {results}/report.html
Ctrl-C stops it; the same command goes on where it stopped."""
"""What is said before anything that takes time is loaded."""
NEXT = """
What next?
  your own network    two lines in your training loop: docs/index.md, or notebooks/own_network.ipynb
  your own text       make data-text FROM=PATH NAME=mine ENCODING=bytes, then
                      weight-decay data=text_bytes data.name=mine decay.strength=0.1
  another λ           weight-decay -m model.width=4 "duration=200 steps" decay.strength=0,0.02,0.05
  the paper           weight-decay --info lists its experiments; weight-decay report results=results
                      shows claims and figures (in a checkout: make report)"""


def settings_of(words: Sequence[str]) -> dict[str, str]:
    """`results` and `jobs` from the words of the demo; UserError for other words."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = {"results": "results/demo", "jobs": str(cores)}
    for word in words:
        key, _, value = word.partition("=")
        if key not in given or not value:
            raise UserError(f"demo: {word} is not known here; give results=FOLDER and jobs=N.")
        given[key] = value
    return given


def train_demo(words: Sequence[str], run: Callable[[Sequence[str]], int]) -> int:
    """Train the first seed of the demo's experiments; `run` takes the settings of a sweep. The exit code.

    words: `results=FOLDER` (results/demo if not given) and `jobs=N`, cells at a time (all cores if not given). Finished
    cells are skipped, so the same command goes on after an interruption. UserError for other words.
    """
    given = settings_of(words)
    for experiment in EXPERIMENTS:
        settings = (f"experiment={experiment}", "scale=micro", "seeds=0..0", f"execution.results={given['results']}")
        if code := run([*settings, f"jobs={given['jobs']}"]):
            return code
    return 0
