"""Tables from a W&B project: its runs become run folders again, and `collect` makes of them what it always makes.

`wandb` is imported here, in dashboard.py and in record.py only.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from weight_decay.errors import UserError, first_line
from weight_decay.report.tables.collect import collect
from weight_decay.report.tables.collected import Collected, Damaged
from weight_decay.report.wandb.dashboard import require_login
from weight_decay.runs.read import (
    FINISHED,
    UNREADABLE,
    Cell,
    DamagedRunError,
    Experiment,
    experiment_of,
    read_experiment,
    read_experiments,
)
from weight_decay.runs.seal import without_seal

PAGE = 10_000
"""Steps of a history that are asked for at once."""
_NAME = re.compile(r"\w[\w+.-]*")


def pull(project: str, results: Path, experiments: list[str] | None = None, *, drop: bool = False) -> Collected:
    """Write the tables of a W&B project ("entity/project") to `results`/tables, as `collect` does of run folders.

    All its experiments, or those named. Which cells an experiment has is taken from its runs on W&B, or from
    `results`/experiments where they do not tell. Of a branch W&B has only the end, so that the curves table has one
    row of it. What a run did not tell W&B is empty in the tables (`not recorded` for the commit). A run that holds what
    no run of ours would is named as damaged and left out; runs that are in the tables stay there unless `drop`; an
    experiment without a finished run leaves the tables as
    they are. Raises UserError if nobody is logged in, W&B is switched off or does not give the project, or an
    experiment is not in it.
    """
    runs = {run.id: run for run in _runs(project)}
    bad: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="weight-decay-pull-") as folder:
        copy = Path(folder)
        known = _write_experiments(copy, results, runs, bad)
        wanted = [experiment for experiment in known if experiments is None or experiment.name in experiments]
        if not known:
            damaged = "".join(f"; {Path(project, run)} is damaged ({reason})" for run, reason in bad.items())
            raise UserError(
                f"pull: none of the {len(runs)} run(s) of {project} is known to be a cell of an experiment{damaged}."
            )
        missing = sorted(set(experiments or []) - {experiment.name for experiment in wanted})
        if missing:
            there = ", ".join(sorted({experiment.name for experiment in known}))
            raise UserError(f"pull: {project} has no experiment {', '.join(missing)}; there is {there}.")
        told: dict[str, str] = {}
        for experiment in wanted:
            for cell in experiment.cells:
                if cell.run_id in runs and not cell.folder.is_dir() and _NAME.fullmatch(cell.folder.name):
                    try:
                        if cell.run_id in bad:
                            raise DamagedRunError(bad[cell.run_id])
                        _write_run(runs[cell.run_id], cell, experiment)
                    except DamagedRunError as error:
                        # An empty folder is what `collect` calls damaged.
                        cell.folder.mkdir(parents=True)
                        told[cell.folder.name] = str(error)
        collected = collect(
            copy, [experiment.name for experiment in wanted], results / "tables", empty=False, drop=drop
        )
    damaged_cells = [
        dataclasses.replace(
            item, folder=Path(project, item.folder.name), reason=told.get(item.folder.name, item.reason)
        )
        for item in collected.damaged
    ]
    cells = {cell.run_id for experiment in wanted for cell in experiment.cells}
    others = [Damaged("", Path(project, run), reason) for run, reason in bad.items() if run not in cells]
    return dataclasses.replace(collected, damaged=[*damaged_cells, *others])


def _runs(project: str) -> list[Any]:
    """All runs of the project, oldest first."""
    if len(project.split("/")) != 2 or not all(project.split("/")):
        raise UserError(f"pull: give the project as ENTITY/PROJECT, got {project}.")
    mode = os.environ.get("WANDB_MODE", "online")
    if mode in ("offline", "dryrun", "disabled"):
        raise UserError(f"pull: W&B is switched off here by WANDB_MODE={mode}; unset it.")
    require_login("pull")
    import wandb

    try:
        return list(wandb.Api().runs(project, order="+created_at", lazy=False))
    except Exception as error:
        raise UserError(f"pull: W&B did not give the runs of {project} ({first_line(error)}).") from error


def _write_experiments(copy: Path, results: Path, runs: dict[str, Any], bad: dict[str, str]) -> list[Experiment]:
    """The experiment files of the project, and those of `results` that one of its runs is a cell of.

    Runs that tell of experiments which cannot be are put in `bad`, with the reason.
    """
    told: dict[str, Any] = {}
    for run in runs.values():
        try:
            # Of several versions the newest run's stands.
            told |= _told_experiments(run.config.get("experiments"), copy)
        except DamagedRunError as error:
            bad[run.id] = str(error)
    for experiment in read_experiments(results):
        path = results / "experiments" / f"{experiment.name}-{experiment.scale}.json"
        if path.is_file() and any(cell.run_id in runs for cell in experiment.cells):
            told.setdefault(path.name, json.loads(path.read_text(encoding="utf-8")))
    (copy / "experiments").mkdir()
    for name, record in sorted(told.items()):
        (copy / "experiments" / name).write_text(json.dumps(record), encoding="utf-8")
    return [read_experiment(copy / "experiments" / name, copy) for name in sorted(told)]


def _told_experiments(records: Any, copy: Path) -> dict[str, Any]:
    """The experiments of a run's config by the names of their files; none where it says nothing of any."""
    told = {}
    if not isinstance(records, list | None):
        raise DamagedRunError("its config's experiments are not a list")
    for record in records or []:
        try:
            experiment = experiment_of(record, copy)
        except UNREADABLE as error:
            raise DamagedRunError(
                f"its config tells of an experiment that cannot be one ({type(error).__name__}: {error})"
            ) from error
        # Words that would lead out of the folder.
        if not _NAME.fullmatch(experiment.name) or not _NAME.fullmatch(experiment.scale):
            raise DamagedRunError(
                "its config tells of an experiment that cannot be one "
                f"({experiment.name!r} at scale {experiment.scale!r})"
            )
        told[f"{experiment.name}-{experiment.scale}.json"] = without_seal(record)
    return told


def _write_run(run: Any, cell: Cell, experiment: Experiment) -> None:
    """The run folder of a finished run; none for another. DamagedRunError, with nothing written, for odd content."""
    # The seal was of the run's own files; what W&B gives back is written another way.
    told = without_seal(dict(run.summary_metrics))
    if told.get("status") not in FINISHED:
        return
    whole = {
        "seed": run.config.get("seed"),
        "scale": experiment.scale,
        "regime": experiment.regime,
        "data": {"name": experiment.data},
        "git_commit": None,
        "seconds": None,
        "divergence_step": None,
        **told,
        "run_id": run.id,
    }
    if not isinstance(whole["data"], dict) or not isinstance(whole["data"].get("name"), str):
        raise DamagedRunError("its summary's data has no name")
    branches = whole.pop("branches", {})
    if not isinstance(branches, dict):
        raise DamagedRunError("its summary's branches are not an object")
    for name, summary in branches.items():
        if not isinstance(summary, dict) or not isinstance(summary.get("final", {}), dict):
            raise DamagedRunError(f"branch {name}: its summary or final metrics are not an object")
    whole["final"] = _write_metrics(cell.folder, _rows(run))
    _write_summary(cell.folder, whole)
    for name, summary in branches.items():
        if _NAME.fullmatch(name):
            step = summary.get("divergence_step") or summary.get("total_steps", summary.get("start_step"))
            folder = cell.folder / "branches" / name
            _write_metrics(folder, [{"step": step, **summary.get("final", {})}])
            _write_summary(folder, without_seal(summary))


def _rows(run: Any) -> Iterable[dict[str, Any]]:
    """The history as lines of metrics.jsonl: W&B's own columns and what it fills up with null left out."""
    try:
        # wandb keeps the files of a history by the run's name alone, and a run that was made again has the same.
        for row in run.scan_history(page_size=PAGE, use_cache=False):
            line = {name: value for name, value in row.items() if not name.startswith("_") and value is not None}
            yield {name: None if _not_finite(value) else value for name, value in line.items()}
    except Exception as error:
        raise UserError(f"pull: W&B did not give the history of run {run.id} ({first_line(error)}).") from error


def _not_finite(value: Any) -> bool:
    return value in ("NaN", "Infinity", "-Infinity") or (isinstance(value, float) and not math.isfinite(value))


def _write_metrics(folder: Path, rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Write metrics.jsonl; returns the last value of each metric."""
    folder.mkdir(parents=True)
    final: dict[str, Any] = {}
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for row in rows:
            final.update(row)
            file.write(json.dumps(row) + "\n")
    return {name: value for name, value in final.items() if name != "step"}


def _write_summary(folder: Path, summary: dict[str, Any]) -> None:
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
