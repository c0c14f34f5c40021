"""A cell over several GPUs of a SLURM job: what is refused before submitting, and how its tasks find each other."""

from __future__ import annotations

import os

import pytest

from weight_decay.cli import make_plan
from weight_decay.device.distributed import launched_together, local_rank
from weight_decay.errors import UserError
from weight_decay.experiments.slurm import check_ranks, meet_tasks_of_job

TEXT = ["experiment=demo_under_training", "scale=micro", "batch_size=6"]


def test_a_batch_that_does_not_divide_is_refused() -> None:
    plan = make_plan(TEXT)[0]
    check_ranks(plan, ["hydra/launcher=slurm"])
    check_ranks(plan, ["hydra.launcher.tasks_per_node=3", "hydra.launcher.nodes=2"])
    with pytest.raises(UserError, match=r"^GPUS_PER_CELL: the batch of 6 sequences of .* does not divide among 4 "):
        check_ranks(plan, ["hydra.launcher.tasks_per_node=4"])
    with pytest.raises(UserError, match="does not divide among 4 processes"):
        check_ranks(plan, ["hydra.launcher.tasks_per_node=2", "hydra.launcher.nodes=2"])


@pytest.mark.parametrize("wrong", ["0", "-1", "two", ""])
def test_a_number_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(UserError, match=r"^hydra\.launcher\.tasks_per_node: must be a whole number of at least 1"):
        check_ranks(make_plan(TEXT)[0], [f"hydra.launcher.tasks_per_node={wrong}"])


def test_images_are_refused() -> None:
    plan = make_plan(["experiment=demo_over_training", "scale=micro"])[0]
    check_ranks(plan, [])
    with pytest.raises(UserError, match=r"^GPUS_PER_CELL: image runs train in one process each"):
        check_ranks(plan, ["hydra.launcher.tasks_per_node=2"])


def test_the_tasks_of_a_job_are_the_ranks_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # so that what is exported is taken back
        monkeypatch.delenv(name)
    meet_tasks_of_job()  # no job at all
    assert not launched_together()
    job = {
        "SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "17", "SLURM_NTASKS": "4", "SLURM_PROCID": "3",
        "SLURM_JOB_NUM_NODES": "2", "SLURM_NODEID": "1", "SLURM_LOCALID": "1", "SLURM_JOB_NODELIST": "left,right",
    }  # fmt: skip
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    meet_tasks_of_job()
    assert launched_together() and local_rank() == 1
    told = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")}
    assert told == {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "left"}
    port = os.environ["MASTER_PORT"]
    monkeypatch.setenv("SLURM_PROCID", "0")
    meet_tasks_of_job()
    assert os.environ["MASTER_PORT"] == port, "all tasks of a job must meet at one port"


def test_one_task_is_a_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for name, value in {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "17", "SLURM_NTASKS": "1"}.items():
        monkeypatch.setenv(name, value)
    meet_tasks_of_job()
    assert not launched_together()
