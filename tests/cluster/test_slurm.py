"""A sweep on a real SLURM of one node, disturbed in every way that clusters know; run it with `make test-cluster`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from cluster.conftest import REPOSITORY, command, declare, numbers, same_numbers, summary
from tiny_runs import until

SLURM = REPOSITORY / "scripts" / "one_node_slurm.sh"
MISSING = [name for name in ("slurmctld", "slurmd", "munged", "srun") if shutil.which(name) is None]

pytestmark = [
    pytest.mark.skipif("WEIGHT_DECAY_CLUSTER" not in os.environ, reason="takes minutes: make test-cluster"),
    pytest.mark.skipif(bool(MISSING), reason=f"no SLURM here ({', '.join(MISSING)} missing): make test-cluster"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can start slurmd"),
]


@pytest.fixture
def workplace() -> Iterator[Path]:
    """A folder that also slurmd's paths fit into (sockets may be 107 characters long)."""
    folder = Path(tempfile.mkdtemp(prefix="wd-cluster-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def slurm(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The one-node SLURM, stopped again whatever happens."""
    subprocess.run([str(SLURM), "start", str(workplace / "slurm")], check=True)
    monkeypatch.setenv("SLURM_CONF", str(workplace / "slurm" / "slurm.conf"))
    try:
        yield
    finally:
        subprocess.run([str(SLURM), "stop", str(workplace / "slurm")], check=False)


def at_work(results: Path) -> list[Path]:
    """Run folders of runs that are running and have a checkpoint to lose."""
    folders = (results / "runs").glob("*")
    return [f for f in folders if summary(f).get("status") == "running" and list(f.glob("checkpoints/*.json"))]


def job_of(folder: Path) -> str:
    """The SLURM job that the process of a run belongs to."""
    values = environment_of(summary(folder)["pid"])
    return f"{values['SLURM_ARRAY_JOB_ID']}_{values['SLURM_ARRAY_TASK_ID']}"


def test_a_disturbed_sweep_ends_with_the_numbers_of_an_undisturbed_one(slurm: None, workplace: Path) -> None:
    environment = declare(workplace, cells=12, steps=2500)
    local, results = workplace / "local", workplace / "results"
    done = subprocess.run(command(local, "jobs=2"), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "12 completed of 12 cell(s)" in done.stderr
    names = sorted(folder.name for folder in (local / "runs").iterdir())

    # One run gets a disk of its own that is too small for its checkpoints.
    small = results / "runs" / names[-1]
    small.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(small)], check=True)
    try:
        launch = command(results, "-m", "hydra/launcher=slurm", "hydra.launcher.timeout_min=30", "cells_per_job=3")
        with (workplace / "first.log").open("w") as log:
            first = subprocess.Popen(launch, env=environment, stderr=log, stdout=log)
            try:
                disturb(results)
                first.wait(timeout=240)
            finally:
                first.kill()
        told = (workplace / "first.log").read_text()
        print(told)
        assert first.returncode == 1
        last = told.strip().splitlines()[-4:]
        assert any("completed" in line and "of 12 cell(s)" in line for line in last), told
        assert last[-1].startswith("  logs: "), told
        states = {name: summary(results / "runs" / name).get("status") for name in names}
        print(states)
        assert list(states.values()).count("completed") < 12
        # The full disk is said in one sentence, and what stands there is whole.
        logs = "".join(file.read_text() for file in (results / "hydra" / "slurm").glob("*/*.err"))
        assert "No space left on device; see to the disk" in logs
        subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)

        again = subprocess.run(launch, env=environment, capture_output=True, text=True, check=False, timeout=240)
        print(again.stderr)
        assert again.returncode == 0, again.stderr
        assert "12 completed of 12 cell(s)" in again.stderr
        assert same_numbers(results, local) == 12
        third = subprocess.run(launch, env=environment, capture_output=True, text=True, check=False, timeout=60)
        assert third.returncode == 0
        assert "submitted" not in third.stderr
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=False)


def strike(results: Path, act: Callable[[Path], object], spared: Sequence[Path] = ()) -> Path:
    """Do `act` to some run at work, another one if that run ends in the very moment; returns the run."""

    def attempt() -> Path | None:
        for folder in at_work(results):
            if folder not in spared:
                try:
                    act(folder)
                except (OSError, KeyError, subprocess.CalledProcessError):
                    continue
                return folder
        return None

    return until("a run to strike", attempt)


def disturb(results: Path) -> None:
    """Cancel one job, warn one of its time limit, preempt what runs, kill one process outright."""
    until("two runs at work", lambda: len(at_work(results)) > 1)
    cancelled = strike(results, lambda folder: subprocess.run(["scancel", job_of(folder)], check=True))
    until("the cancelled run to stop", lambda: summary(cancelled)["status"] != "running", 60)

    warned = strike(
        results, lambda folder: subprocess.run(["scancel", "--signal=USR2", job_of(folder)], check=True), [cancelled]
    )
    until("the warned run to save", lambda: summary(warned)["status"] != "running", 60)

    until("runs to preempt", lambda: at_work(results))
    high = ["sbatch", "--partition=high", "--cpus-per-task=2", "--output=/dev/null", "--wrap=sleep 4"]
    subprocess.run(high, check=True)
    until("everything to give way", lambda: squeue("R", "%P").split() == ["high"], 60)

    strike(results, lambda folder: os.kill(summary(folder)["pid"], signal.SIGKILL), [cancelled])


def squeue(state: str, field: str) -> str:
    line = ["squeue", "--noheader", "-r", "-t", state, "-o", field]
    return subprocess.run(line, check=True, capture_output=True, text=True).stdout


def test_a_cell_over_two_ranks_is_requeued_and_killed_and_ends_as_one_process_does(
    slurm: None, workplace: Path
) -> None:
    environment = declare(workplace, cells=2, steps=1500)
    local, results = workplace / "local", workplace / "results"
    done = subprocess.run(command(local, "jobs=2"), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    launch = command(results, "-m", "hydra/launcher=slurm", "hydra.launcher.timeout_min=30", "cells_per_job=1")
    refused = subprocess.run(
        [*launch, "hydra.launcher.tasks_per_node=3"], env=environment, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert "does not divide among 3 processes" in refused.stderr
    assert not results.exists()

    launch.append("hydra.launcher.tasks_per_node=2")
    with (workplace / "ranks.log").open("w") as log:
        process = subprocess.Popen(launch, env=environment, stderr=log, stdout=log)
        try:
            warned = strike(
                results, lambda folder: subprocess.run(["scancel", "--signal=USR2", job_of(folder)], check=True)
            )
            until("the warned ranks to save", lambda: summary(warned)["status"] != "running", 60)
            strike(results, lambda folder: os.kill(other_rank(summary(folder)["pid"]), signal.SIGKILL))
            process.wait(timeout=300)
        finally:
            process.kill()
    if process.returncode:
        again = subprocess.run(launch, env=environment, capture_output=True, text=True, check=False, timeout=240)
        assert again.returncode == 0, (workplace / "ranks.log").read_text() + again.stderr
    logs = "".join(file.read_text() for file in (results / "hydra" / "slurm").glob("*/*.err"))
    assert "goes on from step" in logs
    for one in sorted((local / "runs").iterdir()):
        two = results / "runs" / one.name
        assert summary(two)["status"] == "completed" and summary(two)["processes"] == 2
        alone, together = numbers(one)[-1], numbers(two)[-1]
        assert [line["step"] for line in alone] == [line["step"] for line in together]
        for a, b in zip(alone, together, strict=True):
            for name in ("batch/loss", "val/loss", "ema/val/loss", "weights/norm"):
                if name in a:
                    assert b[name] == pytest.approx(a[name], rel=0.02), (a["step"], name)


def other_rank(pid: int) -> int:
    """The process that trains together with `pid`: of the same job, with another rank."""
    mine = environment_of(pid)
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = environment_of(int(folder.name))
            line = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        same = all(words.get(name) == mine[name] for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
        if same and words.get("SLURM_PROCID") not in (None, mine["SLURM_PROCID"]) and b"submitit" in line:
            return int(folder.name)
    raise OSError("it has ended")


def environment_of(pid: int) -> dict[str, str]:
    """The environment that a process was started with."""
    words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(word.decode(errors="replace").split("=", 1) for word in words if b"=" in word)
