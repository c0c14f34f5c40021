"""What a SLURM job needs beside Hydra's launcher: to be requeued after a stop, to be waited for, to share a cell.

Nothing here schedules: submitit submits and requeues, SLURM runs. With `make sweep ... LAUNCHER=slurm GPUS_PER_CELL=4`
the tasks of a job are the processes that train one cell together: SLURM starts them, submitit says who is who,
torch.distributed does the rest; the global batch stays what the config says.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from weight_decay.config.groups import ImageData
from weight_decay.errors import UserError
from weight_decay.experiments.plan import Plan

POLL_SECONDS = 5.0
_TASKS, _NODES = "hydra.launcher.tasks_per_node", "hydra.launcher.nodes"


def meet_tasks_of_job() -> None:
    """In a SLURM job of several tasks: tell torch.distributed what torchrun would, from submitit's account of it."""
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return
    import submitit

    if submitit.JobEnvironment().num_tasks > 1:
        # Each process takes the device of its local rank itself.
        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)


def requeue_if_preempted() -> None:
    """After a stop inside a submitit job that SLURM has not ended: let submitit requeue it, and do not return.

    A job that was cancelled, or that SLURM is requeuing by itself, is no longer RUNNING and is left alone.
    """
    job = _job_id()
    number = signal.Signals["SIG" + os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2")]
    if job is not None and callable(signal.getsignal(number)) and _squeue("-j", job, "-o", "%T") in (None, "RUNNING"):
        signal.raise_signal(number)


def _job_id() -> str | None:
    """This job as squeue names it; the plain id of an array's first task would stand for the whole array."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def check_available(plan: Plan, launcher: Sequence[str]) -> None:
    """UserError where there is no SLURM to submit to, or where a cell cannot be shared as the launcher's words ask."""
    check_ranks(plan, launcher)
    if find_spec("submitit") is None:
        raise UserError("launcher: submitit is not installed; run: pip install 'weight-decay[cluster]'.")
    try:
        subprocess.run(["sinfo", "--noheader"], check=True, capture_output=True, timeout=60)
    except FileNotFoundError:
        raise UserError(
            "launcher: this machine has no SLURM (no sinfo); submit from a login node, or use LAUNCHER=local."
        ) from None
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        told = (error.stderr or b"").decode(errors="replace").strip().splitlines()
        raise UserError(f"launcher: SLURM does not answer ({told[-1] if told else 'no reason given'}).") from None


def check_ranks(plan: Plan, launcher: Sequence[str]) -> None:
    """UserError before anything is submitted, if the tasks that the words ask for cannot share a cell."""
    count = _asked(launcher, _TASKS) * _asked(launcher, _NODES)
    if count == 1:
        return
    for cell in plan.cells:
        config = cell.config
        if isinstance(config.data, ImageData):
            raise UserError(
                f"GPUS_PER_CELL: image runs train in one process each, so {plan.experiment} cannot take {count} GPUs a "
                "cell; leave it out, and let the cells share the GPUs of a job (GPUS, JOBS_PER_GPU)."
            )
        if config.batch_size % count:
            raise UserError(
                f"GPUS_PER_CELL: the batch of {config.batch_size} sequences of {cell.title or plan.experiment} does "
                f"not divide among {count} processes; choose a divisor of {config.batch_size}."
            )


def _asked(words: Sequence[str], key: str) -> int:
    values = [word.partition("=")[2] for word in words if word.partition("=")[0].lstrip("+") == key]
    if values and not (values[-1].isdigit() and int(values[-1]) > 0):
        raise UserError(f"{key}: must be a whole number of at least 1, got {values[-1]!r}.")
    return int(values[-1]) if values else 1


def wait(ids: Sequence[str], logs: Path) -> None:
    """Return when none of the jobs is waiting or running any more; requeued ones are waited for too.

    Ctrl-C ends the waiting only: the jobs go on.
    """
    arrays = ",".join(dict.fromkeys(job.partition("_")[0] for job in ids))
    print(f"submitted {len(ids)} job(s), {arrays}; logs in {logs}", file=sys.stderr)
    told = ""
    try:
        while (answer := _squeue("-r", "-j", arrays, "-o", "%T")) != "":
            states = (answer or "unknown").split()
            line = ", ".join(f"{states.count(state)} {state.lower()}" for state in sorted(set(states)))
            if line != told:
                told = line
                print(f"jobs: {line}", file=sys.stderr, flush=True)
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        print(
            f"weight-decay: the jobs go on without this command (to end them: scancel {arrays}); "
            "`weight-decay status` shows them, the same command waits for what is left.",
            file=sys.stderr,
        )
        sys.exit(130)


def _squeue(*words: str) -> str | None:
    """What squeue says, "" for jobs it has forgotten, None where it does not answer."""
    try:
        done = subprocess.run(["squeue", "--noheader", *words], check=False, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode == 0:
        return done.stdout.strip()
    return "" if "Invalid job id" in done.stderr else None
