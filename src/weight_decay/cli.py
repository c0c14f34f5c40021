"""The command line: the one module that imports hydra. Config in, run(s) out.

Hydra composes the groups and launches multiruns; values are then laid over the composed groups in this order: the
groups' own values, the experiment's, its scale's, the grid point's, and last what the user typed, which always wins.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra import main as hydra_main
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from weight_decay.config.identity import run_id
from weight_decay.config.run import build
from weight_decay.errors import UserError
from weight_decay.experiments import slurm
from weight_decay.experiments.help import (
    CONFIGS,
    HELP,
    OWN_CONFIGS,
    check_own_option,
    groups,
    information,
    option_file,
    own_configs,
    take_config_dir,
)
from weight_decay.experiments.plan import SEED, Cell, ExperimentFile, Plan, expand, is_coordinate
from weight_decay.experiments.seeds import read_seeds, with_seeds
from weight_decay.experiments.steering import Steering

COMMAND_KEYS = {"cell", "seeds", "jobs", "cells_per_job", "stale", "scale", "experiment"}
"""Keys of config.yaml that steer the command and are no part of a run."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console command `weight-decay`; exit codes: 0 done, 1 a cell failed, 2 bad input."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        sys.exit(_dispatch(words))
    except UserError as error:
        print(f"weight-decay: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("weight-decay: stopped; the same command goes on from the last checkpoint.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # `weight-decay claims | head`: the reader has seen enough. What Python would still flush goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def _dispatch(words: list[str]) -> int:
    words = take_config_dir(words)
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if words[0] in ("-i", "--info", "info"):
        print(information(words[1:]))
        return 0
    if "=" not in words[0] and not words[0].startswith("-"):
        from weight_decay.report.commands import COMMANDS

        if words[0] not in COMMANDS:
            close = difflib.get_close_matches(words[0], COMMANDS, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; there are {', '.join(COMMANDS)}, and settings."
            raise UserError(f"{words[0]}: no such command{hint}")
        return COMMANDS[words[0]](words[1:])
    flags = [word for word in words if word.startswith("-")]
    settings = [word for word in words if not word.startswith("-")]
    unknown = set(flags) - {"-m", "--multirun", "--dry-run"}
    if unknown:
        raise UserError(f"{sorted(unknown)[0]}: no such flag; there are -m, --dry-run, --info and --help.")
    if "--dry-run" in flags:
        from weight_decay.experiments.dry_run import describe, take_assumptions

        settings, assumed = take_assumptions(settings)
        for plan in _expand_multirun(_own(settings)) if len(flags) > 1 else [make_plan(settings)[0]]:
            print(describe(plan, assumed))
        return 0
    return _multirun(settings) if flags else _run(settings)


def _run(settings: Sequence[str], record: bool = True) -> int:
    from weight_decay.experiments.sweep import run_cells

    plan, steering = make_plan(settings)
    return run_cells(plan, steering.jobs, steering.stale, record)


def make_plan(settings: Sequence[str]) -> tuple[Plan, Steering]:
    """Turn `key=value` settings into a validated plan and what steers the command.

    Raises UserError, with one sentence, on anything that no run could be made of.
    """
    chosen, values = _parse(settings)
    head = _compose({key: chosen[key] for key in ("scale", "experiment") if key in chosen})
    scale = head["scale"]["name"]
    steers = ("cell", "seeds", "jobs", "cells_per_job", "stale")
    command = {key: values.pop(key) if key in values else head[key] for key in steers}
    seeds = read_seeds(command["seeds"])
    file = _experiment(chosen, head, scale)
    user_choices = {k: v for k, v in chosen.items() if k not in ("scale", "experiment")}
    overrides = tuple(
        word
        for word in settings
        if (key := word.partition("=")[0]) not in COMMAND_KEYS
        and not (key in chosen and file.choose.get(key) == chosen[key])
    )
    points = expand(with_seeds(file.grid, seeds), {**user_choices, **values})
    # Other seeds than the experiment's own add to it: its record, and so its tables, keep all of them.
    others = [] if seeds is None else expand(file.grid, {**user_choices, **values})
    cells = []
    for index, point in enumerate([*points, *(point for point in others if point not in points)]):
        point_choices = {k: str(v) for k, v in point.items() if k in groups()}
        config = _compose({**head_choices(chosen), **file.choose, **point_choices, **user_choices})
        laid = {**file.set, **{k: v for k, v in point.items() if k not in point_choices}, **values}
        for key, value in laid.items():
            _assign(config, key, laid.get("seed", config["seed"]) if value == SEED else value)
        run = build({key: value for key, value in config.items() if key not in COMMAND_KEYS})
        cells.append(Cell(index, run, {key: value for key, value in point.items() if is_coordinate(key, value)}))
    own = os.environ.get(OWN_CONFIGS)
    plan = Plan(file.name, scale, file.title, file.figure, overrides, tuple(cells[: len(points)]), tuple(cells), own)
    return _select(plan, command["cell"]), Steering.read(command)


def _experiment(chosen: dict[str, str], head: dict[str, Any], scale: str) -> ExperimentFile:
    """The chosen experiment at a scale, from the composed groups `head`; one cell without an experiment."""
    name = chosen.get("experiment", "none")
    if name == "none":
        return ExperimentFile("single", "A single run", None, {}, {}, [{}])
    return ExperimentFile.read(head.get("experiment"), scale, option_file("experiment", name))


def head_choices(chosen: dict[str, str]) -> dict[str, str]:
    """The choices that select scale and experiment."""
    return {key: value for key, value in chosen.items() if key in ("scale", "experiment")}


def _select(plan: Plan, cell: Any) -> Plan:
    if cell is None:
        return plan
    indices = cell if isinstance(cell, list) else [cell]
    if not indices or any(isinstance(index, bool) or not isinstance(index, int) for index in indices):
        raise UserError(f"cell: must be a number or a list of numbers such as [0,2], got {cell!r}.")
    return plan.only(indices)


def _parse(settings: Sequence[str]) -> tuple[dict[str, str], dict[str, Any]]:
    """Split `key=value` words into group choices and values."""
    chosen: dict[str, str] = {}
    values: dict[str, Any] = {}
    for word, override in zip(settings, _overrides(settings), strict=True):
        if override.is_add() or override.is_delete() or override.is_force_add() or override.package is not None:
            raise UserError(f"{word}: settings can be changed but not added or removed; write key=value.")
        if override.is_sweep_override():
            raise UserError(f"{word}: several values for one setting need the flag -m (one run for each).")
        key = override.key_or_group
        if _is_hydras(key):
            raise UserError(f"{word}: settings of Hydra itself need the flag -m.")
        if key in groups():
            options = groups()[key]
            value = "none" if override.value() is None else str(override.value())
            if value not in options:
                close = difflib.get_close_matches(value, options, n=1)
                hint = f"; did you mean {close[0]}?" if close else f"; there are {', '.join(options)}."
                raise UserError(f"{key}: there is no {value}{hint}")
            chosen[key] = value
        else:
            values[key] = OmegaConf.to_container(OmegaConf.create({"value": override.value()}))["value"]  # type: ignore[index,call-overload]
    return chosen, values


def _overrides(settings: Sequence[str]) -> list[Override]:
    parsed = []
    for word in settings:
        try:
            parsed += OverridesParser.create().parse_overrides([word])
        except HydraException as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{word}: cannot be read as key=value ({reason}).") from None
    return parsed


def _compose(choices: dict[str, str]) -> dict[str, Any]:
    """The composed groups as a nested dict of the caller's own."""
    return copy.deepcopy(_composed(tuple(sorted(choices.items())), own_configs()))


@functools.cache
def _composed(choices: tuple[tuple[str, str], ...], own: Path | None) -> dict[str, Any]:
    for group, option in choices:
        check_own_option(group, option)
    words = [f"{group}={option}" for group, option in choices]
    search = [] if own is None else [f"hydra.searchpath=['file://{own.resolve()}']"]
    try:
        if GlobalHydra.instance().is_initialized():
            return OmegaConf.to_container(compose("config", overrides=[*search, *words]), resolve=True)  # type: ignore[return-value]
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return OmegaConf.to_container(compose("config", overrides=[*search, *words]), resolve=True)  # type: ignore[return-value]
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"configs: cannot be composed with {' '.join(words)}: {str(error).splitlines()[0]}") from None


def _assign(config: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key that must exist already."""
    *parents, name = key.split(".")
    node: Any = config
    for depth, part in enumerate([*parents, name]):
        if not isinstance(node, dict) or part not in node:
            known = list(node) if isinstance(node, dict) else []
            close = difflib.get_close_matches(part, known, n=1)
            rest = [*parents, name][depth + 1 :]
            suggestion = ".".join([*parents[:depth], *close, *rest])
            hint = f"; did you mean {suggestion}?" if close else "; `weight-decay --info` lists the settings."
            raise UserError(f"{key}: there is no such setting{hint}")
        if depth < len(parents):
            node = node[part]
    node[name] = value


def _is_hydras(key: str) -> bool:
    return key.lstrip("+").startswith(("hydra/", "hydra."))


def _own(settings: Sequence[str]) -> list[str]:
    """The settings without those for Hydra itself."""
    return [word for word in settings if not _is_hydras(word)]


def _expand_multirun(settings: Sequence[str]) -> list[Plan]:
    """One plan for each Hydra job; validates them all before anything runs."""
    return [make_plan(job)[0] for job in _split(settings)]


def _split(settings: Sequence[str]) -> list[list[str]]:
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    return [job for batch in BasicSweeper.split_arguments(_overrides(settings), None) for job in batch]


def _multirun(settings: Sequence[str]) -> int:
    """`-m`: let Hydra expand and launch, one job for `cells_per_job` cells of an experiment and for each combination.

    Cells that are finished are not launched again. Exit codes as for a single command.
    """
    from weight_decay.experiments.sweep import prepare, report_from_folders, unfinished

    words = _own(settings)
    keys = {word.partition("=")[0] for word in words}
    plans, steering = _expand_multirun(words), make_plan(_split(words)[0])[1]
    # One record for all jobs, whatever they vary, and one look at the state of things before any of them starts.
    everything = plans[0] if len(plans) == 1 else _union(plans, words)
    launcher = [word for word in settings if _is_hydras(word)]
    on_slurm = any(word.startswith("hydra/launcher=") and "slurm" in word for word in launcher)
    if on_slurm:
        slurm.check_available(everything, launcher)
    prepare(everything, steering.stale)
    logs = Path(plans[0].cells[0].config.execution.results) / "hydra"
    missing = unfinished(everything)
    if plans[0].experiment != "single" and "cell" not in keys:
        # Indices of the grid, which is the same one for each combination of values.
        grid = missing if len(plans) == 1 else plans[0].cells
        indices = [str(cell.index) for cell in grid]
        each = steering.cells_per_job
        chunks = [f"[{','.join(indices[i : i + each])}]" for i in range(0, len(indices), each)]
        words.append("cell=" + ",".join(chunks))
    if not missing:
        return report_from_folders(everything, logs)
    # Hydra composes before our experiment layer does, so it must be told the experiment's choice of groups.
    chosen = head_choices(_parse([w for w in words if w.partition("=")[0] in ("scale", "experiment")])[0])
    file = _experiment(chosen, _compose(chosen), plans[0].scale)
    words += [f"{group}={option}" for group, option in file.choose.items() if group not in keys]
    own = own_configs()
    search = [] if own is None else ["--config-dir", str(own.resolve())]
    sys.argv = [sys.argv[0], "--multirun", *search, *launcher, *words]
    launch = hydra_main(version_base="1.3", config_path=str(CONFIGS), config_name="config")(_job)
    if not on_slurm:
        launch()
        # A job of Hydra's basic launcher has run in this process; the folders do not tell what was refused.
        return max(report_from_folders(everything, logs), *_CODES, 0)
    sys.argv.append(f"hydra.launcher.name={everything.experiment}-{everything.scale}")
    with slurm.submitted_only(JobReturn(status=JobStatus.COMPLETED)) as ids:
        launch()
    slurm.wait(ids, logs / "slurm")
    return report_from_folders(everything, logs / "slurm")


def _union(plans: Sequence[Plan], words: Sequence[str]) -> Plan:
    distinct = {run_id(cell.config): cell for plan in plans for cell in plan.cells}.values()
    cells = tuple(dataclasses.replace(cell, index=index) for index, cell in enumerate(distinct))
    told = tuple(word for word in words if word.partition("=")[0] not in COMMAND_KEYS)
    return dataclasses.replace(plans[0], cells=cells, all_cells=cells, overrides=told)


_CODES: list[int] = []


def _job(_: Any) -> int:
    """One Hydra job, here or on a node of the cluster."""
    from weight_decay.experiments.sweep import INTERRUPTED

    try:
        _CODES.append(_run(list(HydraConfig.get().overrides.task), record=False))
    except UserError as error:
        print(f"weight-decay: {error}", file=sys.stderr)
        _CODES.append(2)
    if _CODES[-1] == INTERRUPTED:
        slurm.requeue_if_preempted()
    return _CODES[-1]
