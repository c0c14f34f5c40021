"""One run from its config to its summary: claim the folder, build, resume, train, branch, finish."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from tqdm import tqdm

from weight_decay.build import (
    Regime,
    apply_precision,
    autocast,
    build_model,
    build_optimizer,
    build_regime,
    build_schedule,
    choose_device,
    parameter_groups,
)
from weight_decay.checkpoint import write_atomically
from weight_decay.config import BranchConfig, RunConfig, folder_name, run_id, to_dict
from weight_decay.errors import UserError
from weight_decay.loop import Event, Schedule, Training
from weight_decay.optim import sphere
from weight_decay.optim.averaging import Averages
from weight_decay.optim.schedules import Constant
from weight_decay.probes.divergence import DivergenceMonitor
from weight_decay.provenance import code_fingerprint, provenance
from weight_decay.record import Mirror, Progress, Recorder, write_summary
from weight_decay.segment import Cadence, Segment
from weight_decay.span import Clock

Outcome = Literal["completed", "diverged", "failed", "interrupted", "skipped", "busy"]


@dataclass(frozen=True)
class Labels:
    """What a run is called; none of it can change its numbers."""

    experiment: str
    scale: str
    title: str
    position: int = 0  # line of its progress bar when several run at once


def run(config: RunConfig, labels: Labels) -> Outcome:
    """Bring one run to its end, from wherever it stands.

    Finished runs are skipped, and a run that another process is working on is left to it. A failure is written to
    summary.json with its traceback beside it and returned; bad input raises UserError after that.
    """
    folder = Path(config.execution.results) / "runs" / folder_name(config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"execution.results: cannot make {folder} ({error.strerror}); choose a folder you can write to.") from None
    with _claimed(folder) as mine:
        if not mine:
            return "busy"
        if _read_status(folder) in ("completed", "diverged"):
            return "skipped"
        try:
            return _run_claimed(config, labels, folder)
        except Exception as error:
            (folder / "error.txt").write_text(traceback.format_exc())
            reason = str(error) or type(error).__name__
            write_summary(folder, {**_identity(config, labels), "status": "failed", "error": reason})
            if isinstance(error, UserError):
                raise
            return "failed"


def _run_claimed(config: RunConfig, labels: Labels, folder: Path) -> Outcome:
    if config.execution.threads:
        torch.set_num_threads(config.execution.threads)
    device = choose_device(config)
    apply_precision(config.precision)
    regime = build_regime(config, device)
    last = regime.clock.total_steps
    # Written for people and for `collect`; the run itself never reads it back.
    text = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
    write_atomically(folder / "config.yaml", lambda temporary: temporary.write_text(text))
    training = _training(config, regime, device)
    mirror = Mirror(config.tracking, run_id(config), folder.name, labels.experiment, to_dict(config), folder)
    progress = Progress(last, labels.title, config.execution.progress, labels.position)
    say = _speaker(labels.title)
    segment = _segment(config, training, folder, 0, last, regime.clock, mirror, progress, say)
    summary = {
        **_identity(config, labels),
        "data": regime.data,
        "parameters": sum(parameter.numel() for parameter in training.parameters),
        "total_steps": last,
        **provenance(device),
    }
    write_summary(folder, {**summary, "status": "running", "pid": os.getpid()})
    segment.resume()
    with _stop_requests() as stop:
        segment.branches = [
            _branch_event(config, branch, segment, regime, labels, stop) for branch in config.branches
        ]
        status, divergence_step = segment.train(stop)
    progress.close()
    segment.recorder.close()
    final = {k: v for k, v in segment.recorder.latest.items() if k != "step"}
    summary |= {"status": status, "divergence_step": divergence_step, "step": training.step, "final": final}
    summary["seconds"] = round(segment.recorder.seconds, 3)
    if status == "diverged":
        say(f"diverged at step {divergence_step}")
    mirror.finish({"status": status, "divergence_step": divergence_step}, ok=status != "interrupted")
    write_summary(folder, summary)
    return status


def _identity(config: RunConfig, labels: Labels) -> dict[str, Any]:
    return {
        "run_id": run_id(config),
        "folder": folder_name(config),
        "experiment": labels.experiment,
        "scale": labels.scale,
        "regime": config.data.regime,
        "seed": config.seed,
        "error": None,
        "divergence_step": None,
        "final": {},
    }


def _training(config: RunConfig, regime: Regime, device: torch.device) -> Training:
    model = build_model(config).to(device)
    if config.data.regime == "over_training":
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.precision.kind == "bfloat16":
        model = model.to(torch.bfloat16)
    optimizer = build_optimizer(config, model, config.decay.strength, config.optimizer.clip_norm)
    if config.sphere_radius is not None:
        sphere.project_(optimizer.parameters, config.sphere_radius)
    forward = regime.task.forward(model)
    return Training(
        model=model,
        forward=torch.compile(forward) if config.execution.compile else forward,
        task=regime.task,
        stream=regime.stream,
        optimizer=optimizer,
        schedule=build_schedule(config, regime.clock),
        averages=Averages(model, config.averaging.ema),
        autocast=autocast(config.precision, device),
        scaler=torch.amp.GradScaler(device.type) if config.precision.kind == "float16_autocast" else None,
        micro_batches=config.batch_size // (config.micro_batch_size or config.batch_size),
        weight_decay=config.decay.strength,
        decayed=_decayed(config, model),
        eps=config.optimizer.eps,
        sphere_radius=config.sphere_radius,
        history=torch.zeros(config.probes.log_every.every(regime.clock), 2, device=device),
    )


def _decayed(config: RunConfig, model: torch.nn.Module) -> list[torch.Tensor]:
    """The parameters that the rules let decay, whatever the strength, so that λ = 0 has a comparable norm."""
    return [p for group in parameter_groups(config, model, 1.0) if group.weight_decay > 0 for p in group.parameters]


def _segment(
    config: RunConfig,
    training: Training,
    folder: Path,
    first: int,
    last: int,
    clock: Clock,
    mirror: Mirror | None,
    progress: Progress,
    say: Callable[[str], None],
) -> Segment:
    probes, divergence = config.probes, config.divergence
    cadence = Cadence(
        probes.log_every.every(clock),
        probes.evaluate_every.every(clock),
        None if probes.jacobian_every is None else probes.jacobian_every.every(clock),
    )
    monitor = DivergenceMonitor(
        divergence.threshold, divergence.patience.every(clock), first + divergence.grace.steps(clock)
    )
    return Segment(
        training,
        folder,
        first,
        last,
        cadence,
        monitor,
        config.checkpoint,
        Recorder(folder, mirror),
        progress,
        config.batch_size,
        say,
        code_fingerprint(),
    )


# -- branches --------------------------------------------------------------------------------------------------------


def _branch_event(
    config: RunConfig, branch: BranchConfig, trunk: Segment, regime: Regime, labels: Labels, stop: Callable[[], bool]
) -> Event:
    """The event that runs `branch` from the trunk's weights at every step it is due."""

    def run_branch() -> None:
        trunk.save()
        _run_branch(config, branch, trunk, regime, labels, stop)

    start = branch.start.steps(regime.clock)
    every = branch.every.every(regime.clock) if branch.every is not None else sys.maxsize
    return Event(trunk.timed(run_branch), every, start, also_last=False)


def _run_branch(
    config: RunConfig, branch: BranchConfig, trunk: Segment, regime: Regime, labels: Labels, stop: Callable[[], bool]
) -> None:
    parent = trunk.training
    first = parent.step
    folder = trunk.folder / "branches" / f"{branch.name}-{first:09d}"
    if _read_status(folder) in ("completed", "diverged") or stop():
        return
    folder.mkdir(parents=True, exist_ok=True)
    title = f"{labels.title} {branch.name}@{first}"
    last = first + branch.duration.steps(regime.clock)
    training = _branched_training(config, branch, parent, regime)
    progress = Progress(last - first, title, config.execution.progress, labels.position)
    segment = _segment(config, training, folder, first, last, regime.clock, None, progress, _speaker(title))
    segment.resume()
    status, divergence_step = segment.train(stop)
    progress.close()
    segment.recorder.close()
    summary = {
        **_identity(config, labels),
        "branch": branch.name,
        "status": status,
        "start_step": first,
        "total_steps": last,
        "divergence_step": divergence_step,
        "final": {k: v for k, v in segment.recorder.latest.items() if k != "step"},
        "seconds": round(segment.recorder.seconds, 3),
    }
    write_summary(folder, summary)
    if status != "interrupted":
        for file in (folder / "checkpoints").glob("*"):
            file.unlink()


def _branched_training(config: RunConfig, branch: BranchConfig, parent: Training, regime: Regime) -> Training:
    """A copy of the trunk at its present step, with the branch's learning rate and decay, and no averages."""
    device = parent.history.device
    model = build_model(config).to(device, next(parent.model.parameters()).dtype)
    if config.data.regime == "over_training":
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.load_state_dict(parent.model.state_dict())
    optimizer = build_optimizer(config, model, branch.strength, config.optimizer.clip_norm)
    if branch.keep_optimizer_state:
        # Through a copy: the branch must not write into the trunk's moments.
        optimizer.load_state_dict(_cloned(parent.optimizer.state_dict()))
    schedule: Schedule = Constant(branch.lr)
    return Training(
        model=model,
        forward=regime.task.forward(model),
        task=regime.task,
        stream=regime.stream,
        optimizer=optimizer,
        schedule=schedule,
        averages=Averages(model, ()),
        autocast=parent.autocast,
        scaler=torch.amp.GradScaler(device.type) if parent.scaler is not None else None,
        micro_batches=parent.micro_batches,
        weight_decay=branch.strength,
        decayed=_decayed(config, model),
        eps=config.optimizer.eps,
        sphere_radius=parent.sphere_radius,
        history=torch.zeros_like(parent.history),
        step=parent.step,
    )


def _cloned(state: Any) -> Any:
    if isinstance(state, torch.Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {key: _cloned(value) for key, value in state.items()}
    return [_cloned(value) for value in state] if isinstance(state, list) else state


# -- the folder and the process --------------------------------------------------------------------------------------


def _read_status(folder: Path) -> str | None:
    try:
        return json.loads((folder / "summary.json").read_text())["status"]
    except (OSError, ValueError, KeyError):
        return None


@contextmanager
def _claimed(folder: Path) -> Iterator[bool]:
    """Hold the folder's lock; the operating system drops it when the process dies, however it dies."""
    with (folder / "run.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM, SIGINT and SIGUSR1 (SLURM's warning) into a request to save and stop at the next step."""
    requested: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = {number: signal.signal(number, lambda received, _: requested.append(received)) for number in signals}
    try:
        yield lambda: bool(requested)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _speaker(title: str) -> Callable[[str], None]:
    return lambda text: tqdm.write(f"{title}: {text}", file=sys.stderr)


