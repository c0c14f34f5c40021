"""What a SLURM job needs beside Hydra's launcher: to be requeued after a stop, and to be waited for.

Nothing here schedules: submitit submits and requeues, SLURM runs.
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

from weight_decay.errors import UserError
from weight_decay.experiments.plan import Plan
from weight_decay.experiments.ranks import check_ranks

POLL_SECONDS = 5.0


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
