"""One cell over several devices: the tasks of its SLURM job are the processes that train it together.

SLURM starts the tasks, submitit says who is who, torch.distributed does the rest; the global batch stays what the
config says. `make sweep ... LAUNCHER=slurm GPUS_PER_CELL=4` asks for it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from weight_decay.config.groups import ImageData
from weight_decay.errors import UserError
from weight_decay.experiments.plan import Plan

_TASKS, _NODES = "hydra.launcher.tasks_per_node", "hydra.launcher.nodes"


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


def meet_tasks_of_job() -> None:
    """In a SLURM job of several tasks: tell torch.distributed what torchrun would, from submitit's account of it."""
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return
    import submitit

    if submitit.JobEnvironment().num_tasks > 1:
        # Each process takes the device of its local rank itself.
        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
