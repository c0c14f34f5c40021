"""A command that is none of our own words: settings of a run, flags, or what Hydra answers itself."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any, NoReturn

import yaml
from hydra import main as hydra_main

from weight_decay.config.plain import to_dict
from weight_decay.errors import UserError
from weight_decay.experiments.launch.compose import has, one_sentence
from weight_decay.experiments.launch.multirun import job, multirun
from weight_decay.experiments.launch.plans import make_plan, plans_of, unions
from weight_decay.experiments.launch.words import is_hydras
from weight_decay.places import CONFIGS

HYDRAS = ("--hydra-help", "--info", "-i", "--shell-completion", "-sc")
"""Flags that Hydra answers, beside those below."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `weight-decay --help` tells what can be said.")


def start(words: Sequence[str]) -> int:
    """Do what the words say; returns the exit code."""
    if any(word.partition("=")[0] in HYDRAS for word in words):
        return _hydras_own()
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("settings", nargs="*")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-r", "--run", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("-c", "--cfg", choices=("job", "hydra", "all"))
    parser.add_argument("-p", "--package")
    parser.add_argument("--resolve", action="store_true")
    told = parser.parse_intermixed_args(list(words))
    if told.multirun and (told.run or told.cfg):
        raise UserError("-m: goes with neither --run nor --cfg; leave one out.")
    if told.cfg == "job":
        return _show_job(told.settings, told.package)
    if told.cfg:
        return _hydras_own()
    if told.dry_run:
        return _dry_run(told.settings, told.multirun)
    return multirun(told.settings) if told.multirun else run(told.settings)


def run(words: Sequence[str]) -> int:
    """Run the cells that the settings ask for, in this process and those it starts."""
    plan, steering = make_plan(words)
    from weight_decay.experiments.sweep import run_cells

    return run_cells(plan, steering.jobs, steering.stale)


def _dry_run(words: Sequence[str], many: bool) -> int:
    from weight_decay.experiments.dry_run import describe
    from weight_decay.experiments.throughput import take_assumptions

    words, assumed = take_assumptions(words)
    typed = [word for word in words if not is_hydras(word)] if many else words
    plans = unions([plan for _, plan, _ in plans_of(typed)], typed) if many else [make_plan(words)[0]]
    print("\n\n".join(describe(plan, assumed) for plan in plans))
    return 0


def _show_job(words: Sequence[str], package: str | None) -> int:
    """`--cfg job`: the config of the run, after the experiment's own layer; of several cells, the first one's."""
    plan = make_plan(words)[0]
    shown: Any = to_dict(plan.cells[0].config)
    if len(plan.cells) > 1:
        print(f"# cell {plan.cells[0].index} of {len(plan.cells)}: {plan.cells[0].title}; cell=N shows another")
    if package and not has(shown, package):
        raise UserError(f"--package: there is no {package}; leave the flag out to see everything.")
    for part in package.split(".") if package else ():
        shown = shown[part]
    print(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True), end="")
    return 0


def _hydras_own() -> int:
    """What Hydra answers itself; it reads the words from `sys.argv`, as they were typed."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # an error comes out as it is, and not as a printed traceback
    try:
        hydra_main(version_base="1.3", config_path=str(CONFIGS.resolve()), config_name="config")(job)()
    except Exception as error:
        raise one_sentence(error, []) from None
    return 0
