"""`-m`: Hydra expands, launches and composes; here is what each of its jobs does, and which jobs there are.

Our sweeper (`hydra_plugins/weight_decay_cells.py`) makes one job of `cells_per_job` unfinished cells of an experiment,
and of each combination of swept values, and hands them to whichever launcher was chosen. Any other sweeper gets the
loss of the run that it asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn

from weight_decay.errors import UserError, first_line
from weight_decay.experiments import slurm
from weight_decay.experiments.catalog import groups
from weight_decay.experiments.launch.compose import (
    composed,
    has,
    hydra_at_our_configs,
    is_about_words,
    one_sentence,
    search_path,
)
from weight_decay.experiments.launch.plans import WHICH, experiment_of, make_plan, plans_of, unions
from weight_decay.experiments.launch.stops import stop_children, stopping_by_exception
from weight_decay.experiments.launch.words import choices_and_values, is_hydras, parse, settings_of
from weight_decay.experiments.plan import Plan
from weight_decay.extras import told
from weight_decay.training.stopping import stop_requests

OURS, HERE = "cells", "basic"
"""Our sweeper, and the launcher that runs its jobs in this process."""


def multirun(words: Sequence[str]) -> int:
    """Let Hydra expand and launch; returns the exit code, as for a single command."""
    hydras = [word for word in words if is_hydras(word)]
    parse(hydras)
    typed = [word for word in words if not is_hydras(word)]
    launcher = chosen(hydras, "launcher", HERE)
    if chosen(hydras, "sweeper", OURS) == OURS:
        plans = plans_of(typed)
        first = plans[0][0]
        if "slurm" in launcher:
            for plan in unions([plan for _, plan, _ in plans], typed):
                slurm.check_available(plan, hydras)
    else:
        first = [setting.word for setting in settings_of(typed) if not setting.override.is_sweep_override()]
    overrides = [*search_path(), *hydras, "hydra.mode=MULTIRUN", *for_hydra(typed, first)]
    stops = stop_requests() if launcher == HERE else stopping_by_exception()
    with stops, hydra_at_our_configs() as hydra:
        try:
            code = hydra.multirun(config_name="config", task_function=job, overrides=overrides)
        except KeyboardInterrupt:
            stop_children()
            raise
        except Exception as error:
            if not is_about_words(error):
                raise
            raise one_sentence(error, hydras) from None
    return code if isinstance(code, int) else 0


def chosen(hydras: Sequence[str], what: str, usual: str) -> str:
    """The launcher or sweeper that was chosen."""
    options = [word.partition("=")[2] for word in hydras if word.startswith(f"hydra/{what}=")]
    return options[-1] if options else usual


def for_hydra(words: Sequence[str], first: Sequence[str]) -> list[str]:
    """The words, and what Hydra must know to compose them: it does so before our experiment layer does.

    words: what it is told, sweeps included; first: the same for one of its jobs, without sweeps.
    """
    choices, _ = choices_and_values(first)
    what, base = experiment_of(choices)
    typed = {key: value for key, value in choices.items() if key not in WHICH}
    config = composed({**base, **typed})
    known = []
    for setting in settings_of(words):
        swept = setting.override.is_sweep_override()
        if what is not None and setting.key == "experiment" and not swept:
            known.append(f"experiment={base['experiment']}")
        # A setting that only some cells have, such as one of another schedule, is unknown to what Hydra composes.
        elif setting.key in groups() or has(config, setting.key) or swept:
            known.append(setting.plain)
        else:
            known.append(f"++{setting.plain}")
    brought = [f"regime={base['regime']}"] if "regime" in base and "regime" not in choices else []
    return [*brought, *known]


def sweep(arguments: Sequence[str], launch: Callable[..., Sequence[JobReturn]], logs: Path) -> int:
    """What our sweeper does: the jobs of all unfinished cells, launched; returns the exit code.

    launch: the chosen launcher's; logs: where it keeps what its jobs print.
    """
    from weight_decay.experiments.sweep import prepare, report_from_folders, unfinished, worst

    plans = plans_of(arguments)
    everything = unions([plan for _, plan, _ in plans], arguments)
    for plan in everything:
        prepare(plan, plans[0][2].stale)
    jobs = []
    for words, plan, steering in plans:
        missing = [str(cell.index) for cell in unfinished(plan)]
        each = steering.cells_per_job
        chunks = [missing[start : start + each] for start in range(0, len(missing), each)]
        own = [word for word in words if word.partition("=")[0] != "cell"]
        jobs += [
            for_hydra([*own, f"cell=[{','.join(chunk)}]"] if plan.experiment != "single" else own, own)
            for chunk in chunks
        ]
    codes = _codes(launch(jobs, initial_job_idx=0)) if jobs else []
    # What a job could not obey, the folders cannot tell.
    return worst([*(report_from_folders(plan, logs) for plan in everything), *(code for code in codes if code == 2)])


def _codes(results: Sequence[JobReturn]) -> list[int]:
    codes = []
    for result in results:
        try:
            codes.append(int(result.return_value or 0))
        except Exception as error:
            print(f"weight-decay: {first_line(error)}", file=sys.stderr)
            codes.append(1)
    return codes


def job(_: Any) -> int | float:
    """One Hydra job, in this process, in another, or on a node of a cluster."""
    from weight_decay.experiments.sweep import INTERRUPTED, run_cells

    hydra = HydraConfig.get()
    words = list(hydra.overrides.task)
    choices = hydra.runtime.choices
    plans: list[Plan] = []

    def run() -> int:
        plan, steering = make_plan(words)
        plans.append(plan)
        return run_cells(plan, steering.jobs, steering.stale, record=False)

    code = told(run)
    if code == INTERRUPTED:
        slurm.requeue_if_preempted()
        if choices["hydra/launcher"] == HERE:
            raise KeyboardInterrupt  # or the launcher would start the next job
    if choices["hydra/sweeper"] == OURS:
        return code
    if code:
        raise UserError(f"{' '.join(words)}: ended with exit code {code}, so there is no loss to return.")
    return _loss(plans[0])


def _loss(plan: Plan) -> float:
    """What a searching sweeper minimises: the mean final test error, or validation loss; infinite if one diverged."""
    from weight_decay.experiments.sweep import run_folder
    from weight_decay.runs.read import readable_summary

    losses = []
    for cell in plan.cells:
        summary = readable_summary(run_folder(cell))
        name = "test/error" if cell.config.data.regime == "over_training" else "val/loss"
        value = summary.get("final", {}).get(name)
        losses.append(float("inf") if summary.get("status") == "diverged" or value is None else float(value))
    return sum(losses) / len(losses)
