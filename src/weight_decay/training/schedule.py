"""The learning rate of every step, and the reference run that `schedule=matched_effective_lr` reads it from (Fig 7)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
import yaml

from weight_decay.config.run import RunConfig, build, folder_name, run_id
from weight_decay.config.schedules import ConstantSchedule, MatchedSchedule, TwoPhaseSchedule, WarmupCosineSchedule
from weight_decay.config.span import Clock
from weight_decay.errors import UserError
from weight_decay.optim.low_precision import Optimizer
from weight_decay.optim.schedules import MatchedEffectiveLR, Schedule, constant, two_phase, warmup_cosine
from weight_decay.runs.files import read_bounded
from weight_decay.runs.folder import standing
from weight_decay.runs.judge import NORM, read_run, reference_digest
from weight_decay.runs.read import Cell, DamagedRunError, Row, read_status, readable_summary


def build_schedule(config: RunConfig, clock: Clock, optimizer: Optimizer) -> Schedule:
    """The learning rate of every step."""
    schedule, lr = config.schedule, config.optimizer.lr
    if isinstance(schedule, MatchedSchedule):
        return matched_schedule(config, schedule, optimizer, clock.total_steps)
    if isinstance(schedule, ConstantSchedule):
        return constant(lr)
    if isinstance(schedule, TwoPhaseSchedule):
        drop = schedule.drop_at.steps(clock)
        if drop > clock.total_steps:
            raise UserError(
                f"schedule.drop_at: {schedule.drop_at} is step {drop}, beyond the run's {clock.total_steps}; "
                "make it shorter, or choose schedule=constant."
            )
        return two_phase(lr, drop, schedule.final_lr)
    warmup, until = schedule.warmup.steps(clock), schedule.decay_until.steps(clock)
    return warmup_cosine(lr, warmup, until, lr * schedule.final_fraction)


class ReferenceMissingError(UserError):
    """The reference run is not finished; `config` is what it would be, None if it was named by id or folder."""


def reference_config(config: RunConfig, schedule: MatchedSchedule) -> RunConfig:
    """The run whose effective learning rate is to be matched: this one with a decay and a schedule of its own."""
    assert schedule.reference_strength is not None
    cosine = WarmupCosineSchedule("warmup_cosine", schedule.warmup, schedule.decay_until, schedule.final_fraction)
    decay = dataclasses.replace(config.decay, strength=schedule.reference_strength)
    precision = schedule.reference_precision or config.precision
    return dataclasses.replace(config, schedule=cosine, decay=decay, precision=precision)


def find_reference(config: RunConfig, schedule: MatchedSchedule) -> tuple[Path, RunConfig]:
    """Folder and config of the finished reference run in the results of `config`.

    A run with other probes, averages or branches has the same weights, so it serves as well.

    Raises ReferenceMissingError if it is not there or not completed.
    """
    runs = Path(config.execution.results) / "runs"
    if schedule.reference is not None:
        named = Path(schedule.reference)
        folders = [named] if named.is_dir() else sorted(runs.glob(f"*-{schedule.reference}"))
        wanted = None
        said = f"the run {schedule.reference}"
    else:
        wanted = reference_config(config, schedule)
        stem = folder_name(wanted).removesuffix(run_id(wanted))
        folders = sorted(runs.glob(f"{stem}*"))
        said = f"a run like this one with decay.strength={schedule.reference_strength:g} and its own schedule"
    damaged: list[str] = []
    for folder in folders:
        found = _read_config(folder)
        if found is None or read_status(folder) != "completed":
            continue
        if wanted is None or _weights_id(found, wanted) == _weights_id(wanted, wanted):
            stands = standing(folder, run_id(found))
            if stands.status == "finished":
                return folder, found
            damaged.append(f"; {folder} is {stands.status} ({stands.reason})")
    raise ReferenceMissingError(
        f"schedule.reference: {said} has not been completed in {runs}{''.join(damaged)}; "
        "run it first (its experiment does so)."
    )


def matched_schedule(config: RunConfig, schedule: MatchedSchedule, optimizer: Optimizer, total_steps: int) -> Schedule:
    """The schedule of `config`, from what the reference run recorded: its learning rates and weight norms."""
    folder, found = find_reference(config, schedule)
    names = [NORM]
    if schedule.norm == "per_matrix":
        names = [f"weights/norm/{name}" for name in optimizer.names]
    steps: list[int] = []
    lrs: list[float] = []
    norms: list[Any] = []
    for line in _rows(folder, run_id(found)):
        if "lr" in line:
            if missing := [name for name in names if name not in line]:
                raise UserError(
                    f"schedule.norm: the reference run in {folder} has not recorded {missing[0]}; "
                    "run it again with probes.parameter_norms=true, or match with schedule.norm=whole."
                )
            steps.append(int(line["step"]))
            lrs.append(line["lr"])
            norms.append([line[name] for name in names])
    if not steps or steps[-1] < total_steps:
        raise UserError(
            f"schedule.reference: the run in {folder} has recorded {steps[-1] if steps else 0} of {total_steps} steps; "
            "choose a reference at least as long as this run."
        )
    return _matched(schedule, optimizer, steps, lrs, norms)


def reference_of(config: RunConfig, data: str) -> dict[str, Any] | None:
    """What a run must remember of its reference: `run_id`, `code_fingerprint`, `sha256` of what it read.

    None for other schedules. UserError if the reference was computed on other data than those with fingerprint `data`.
    """
    if not isinstance(config.schedule, MatchedSchedule):
        return None
    folder, found = find_reference(config, config.schedule)
    summary = readable_summary(folder)
    made_on = (summary.get("data") or {}).get("fingerprint")
    if made_on != data:
        raise UserError(
            f"schedule.reference: the run in {folder} was computed on other data ({str(made_on)[:12]}) than this one "
            f"would be ({data[:12]}); run the reference again on these data."
        )
    sha256 = reference_digest(_rows(folder, run_id(found)))
    code = summary.get("code_fingerprint")
    return {"run_id": run_id(found), "code_fingerprint": code, "sha256": sha256}


def _rows(folder: Path, identity: str) -> list[Row]:
    """The record of the finished run in `folder`, checked as `collect` checks it."""
    try:
        return read_run(Cell(identity, folder, {}))[1][0].rows
    except DamagedRunError as error:
        raise UserError(f"schedule.reference: {folder} is damaged ({error}); run the reference again.") from error


def _matched(
    schedule: MatchedSchedule, optimizer: Optimizer, steps: list[int], lrs: list[float], norms: list[Any]
) -> Schedule:
    """η_t = η_ref,t · (‖w_t‖ / ‖w_ref,t‖)^power, with the norms of `optimizer` at the time of asking."""
    # A line recorded after step S holds the learning rate of step S - 1 and the weights that step S starts from.
    # Both are wanted at the same steps: the learning rates are interpolated to S, and 0 is added in front, where
    # the warm-up starts and the weights are those of the first line to a fraction of a percent.
    at = torch.tensor([0, *steps], dtype=torch.float64)
    taken = torch.tensor([-1, *(step - 1 for step in steps)], dtype=torch.float64)
    interpolated = _interpolate(at, taken, torch.tensor([0.0, *lrs], dtype=torch.float64))
    whole = schedule.norm == "whole"
    columns = [row[0] if whole else row for row in [norms[0], *norms]]
    table = MatchedEffectiveLR([0, *steps], interpolated.tolist(), columns, schedule.norm, schedule.power)
    return lambda step: table.lr(step, optimizer.parameter_norms())


def _interpolate(at: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    right = torch.searchsorted(x, at).clamp(1, len(x) - 1)
    share = ((at - x[right - 1]) / (x[right] - x[right - 1])).clamp(0, 1)
    return y[right - 1] + share * (y[right] - y[right - 1])


def _read_config(folder: Path) -> RunConfig | None:
    try:
        return build(yaml.safe_load(read_bounded(folder / "config.yaml", 1 << 20)))
    except (OSError, yaml.YAMLError, UserError):
        return None


def _weights_id(config: RunConfig, observed_as: RunConfig) -> str:
    """Identity of what a run's weights depend on: all but what is measured, averaged and branched off."""
    averaging, probes = observed_as.averaging, observed_as.probes
    return run_id(dataclasses.replace(config, branches=(), averaging=averaging, probes=probes))
