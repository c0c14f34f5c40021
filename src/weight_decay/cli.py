"""The command `weight-decay`: our own words, and everything else to Hydra. Loads nothing that a word does not need."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import weight_decay
from weight_decay.errors import UserError
from weight_decay.experiments.catalog import take_config_dir
from weight_decay.experiments.demo import AHEAD, NEXT, settings_of, train_demo
from weight_decay.experiments.help import described, information, list_experiments, usage
from weight_decay.extras import told

if TYPE_CHECKING:
    from weight_decay.experiments.plan import Plan
    from weight_decay.experiments.steering import Steering

HYDRAS_INFO = {"all", "config", "defaults", "defaults-tree", "plugins", "searchpath"}
"""What Hydra's own --info can be asked for; ours tells about experiments."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console command `weight-decay`.

    Exit codes: 0 done, 1 a cell failed, 2 bad input, 3 another command is still at work on some cells, 130 stopped.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        sys.exit(told(lambda: _dispatch(words)))
    except KeyboardInterrupt:
        print("weight-decay: stopped; the same command goes on from the last checkpoint.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # `weight-decay claims | head`: the reader has seen enough. What Python would still flush goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def make_plan(words: Sequence[str]) -> tuple[Plan, Steering]:
    """The cells that the settings ask for, and what steers the command; see experiments/launch/plans.py."""
    from weight_decay.experiments.launch.plans import make_plan

    return make_plan(words)


def _dispatch(words: Sequence[str]) -> int:
    words = take_config_dir(words)
    first = words[0] if words else "--help"
    if first in ("-h", "--help", "help"):
        print(usage(_commands()))
        return 0
    if first in ("--version", "version"):
        print(f"weight-decay {weight_decay.__version__}")
        return 0
    if first in ("-i", "--info", "info") and not HYDRAS_INFO & set(words[1:]):
        print(information(words[1:]))
        return 0
    if "=" in first or first.startswith(("-", "+", "~")):
        from weight_decay.experiments.launch.start import start

        return start(words)
    commands = _commands()
    if first not in commands:
        close = difflib.get_close_matches(first, commands, n=1)
        hint = f"; did you mean {close[0]}?" if close else f"; there are {', '.join(commands)}, and key=value settings."
        raise UserError(f"{first}: no such command{hint}")
    # Only --help is argparse's: a command's other words are key=value and names, and its own to judge.
    called, summary = described(commands[first])
    argparse.ArgumentParser(usage=called, description=summary).parse_known_args(words[1:])
    return commands[first](words[1:])


def demo(words: Sequence[str]) -> int:
    """`weight-decay demo [results=FOLDER] [jobs=N]`: train both regimes in minutes, show the effects, make a page."""
    print(AHEAD.format(results=settings_of(words)["results"]), flush=True)
    # What comes after the training, now: its packages may be missing, and then nothing need be trained.
    import weight_decay.report.claims.demo
    import weight_decay.report.figures.gallery  # noqa: F401
    from weight_decay.experiments.launch.start import run
    from weight_decay.report.commands import demo_report

    if code := train_demo(words, run) or demo_report([word for word in words if word.startswith("results=")]):
        return code
    print(NEXT)
    return 0


def wandb_sweep(words: Sequence[str]) -> int:
    """`weight-decay wandb-sweep experiment=NAME [key=value ...]`: its cells as a sweep of W&B agents, in YAML."""
    from weight_decay.experiments.launch.wandb_sweep import sweep_yaml

    print(sweep_yaml(words), end="")
    return 0


def _commands() -> dict[str, Callable[[Sequence[str]], int]]:
    from weight_decay.report.commands import COMMANDS

    return {"experiments": list_experiments, "demo": demo, "wandb-sweep": wandb_sweep, **COMMANDS}
