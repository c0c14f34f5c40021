"""Several processes training one model: the same numbers, one writer, and a clear end when one is killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import read_metrics, read_summary
from forked import Forked
from weight_decay.cli import make_plan
from weight_decay.config.run import folder_name
from weight_decay.runs.folder import Labels
from weight_decay.training.assemble import micro_batches
from weight_decay.training.run import run

SOURCES = Path(__file__).resolve().parents[1] / "src"
Words = Callable[..., list[str]]
NUMBERS = [
    "weights/norm",
    "train/loss",
    "val/loss",
    "ema/val/loss",
    "batch/loss",
    "grad/norm",
    "effective_lr/adamw",
    "grad/clipped",
]


def together(words: list[str], processes: int = 2) -> subprocess.Popen[str]:
    """Start torchrun with the given settings; its own session, so that a test can end all of it."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.Popen(
        [*command, "-m", "weight_decay", *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def side_by_side(words: list[str]) -> list[Forked]:
    """Two processes as torchrun would start them, without torchrun, which takes longer than they do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    return [Forked(["-m", "weight_decay", *words], env={**os.environ, **meeting, **rank}) for rank in ranks]


def ended_well(processes: list[Forked]) -> str:
    """What they said, after both have ended as they should."""
    said = "".join(process.communicate(timeout=120)[1] for process in processes)
    assert [process.returncode for process in processes] == [0, 0], said
    return said


def folder_of(words: list[str]) -> Path:
    config = make_plan(words)[0].cells[0].config
    return Path(config.execution.results) / "runs" / folder_name(config)


def assert_same_curve(one: Path, two: Path, relative: float) -> None:
    lines = list(zip(read_metrics(one), read_metrics(two), strict=True))
    assert sum("batch/loss" in a for a, _ in lines) >= 3
    for a, b in lines:
        assert a["step"] == b["step"] and a["samples"] == b["samples"] and a.keys() == b.keys()
        for name in NUMBERS:
            if name in a:
                assert b[name] == pytest.approx(a[name], rel=relative), (a["step"], name)


BRANCH = (
    'branches="[{name: tiny_lr, start: 50%, every: 50%, duration: 2 steps, lr: 1e-3, strength: 0, '
    'keep_optimizer_state: true}]"'
)


def test_two_processes_give_the_loss_curve_of_one(words: Words, tmp_path: Path) -> None:
    more = f"{BRANCH} data.held_out=0.1 averaging.tail_start=50% tracking=offline probes.stability_every='3 steps'"
    alone = words("text", f"{more} execution.results={tmp_path / 'alone'} tracking=disabled")
    run(make_plan(alone)[0].cells[0].config, Labels("test", "micro", "test"))
    both = words("text", f"{more} execution.results={tmp_path / 'both'} micro_batch_size=1")
    said = ended_well(side_by_side(both))
    assert said.count("1 completed of 1 cell(s)") == 1  # rank 0 alone talks
    assert_same_curve(folder_of(alone), folder_of(both), 1e-4)
    branches = [sorted((folder_of(words) / "branches").iterdir()) for words in (alone, both)]
    assert [len(found) for found in branches] == [2, 2]
    for one, two in zip(*branches, strict=True):
        assert_last_line_agrees(one, two)
    summary = read_summary(folder_of(both))
    assert summary["status"] == "completed"
    # Four sequences over two processes, one at a time: two backward passes for each step.
    assert (summary["processes"], summary["micro_batches"]) == (2, 2)
    assert len(list((folder_of(both) / "wandb").glob("offline-run-*"))) == 1


def assert_last_line_agrees(one: Path, two: Path) -> None:
    a, b = ([line for line in read_metrics(folder) if "val/loss" in line][-1] for folder in (one, two))
    assert a["step"] == b["step"]
    assert b["val/loss"] == pytest.approx(a["val/loss"], rel=1e-4)


def test_a_killed_process_ends_the_job_with_one_sentence_and_it_resumes(words: Words, tmp_path: Path) -> None:
    more = (
        "duration='150 steps' schedule.warmup='2 steps' probes.log_every='50 steps' "
        "probes.evaluate_every='50 steps' checkpoint.every_seconds=0.05"
    )
    whole = words("text", f"{more} execution.results={tmp_path / 'whole'}")
    ended_well(side_by_side(whole))
    killed = words("text", f"{more} execution.results={tmp_path / 'killed'}")
    process = together(killed)
    folder = folder_of(killed)
    deadline = time.monotonic() + 60
    while not list((folder / "checkpoints").glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    victim = json.loads((folder / "summary.json").read_text())["pid"]
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    other = next(int(child) for child in children if int(child) != victim and _is_worker(int(child)))
    os.kill(other, signal.SIGKILL)
    said = process.communicate(timeout=120)[0]
    assert process.returncode != 0
    assert "another process of this run is gone, so it stopped; the same command goes on" in said
    assert read_summary(folder)["status"] == "interrupted"
    said = ended_well(side_by_side(killed))
    assert "goes on from step" in said
    assert read_metrics(folder) == read_metrics(folder_of(whole))
    assert read_summary(folder)["weights_sha256"] == read_summary(folder_of(whole))["weights_sha256"]


def _is_worker(pid: int) -> bool:
    return b"weight_decay" in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_images_are_refused_and_so_is_a_batch_that_does_not_divide(words: Words) -> None:
    for more, sentence in (
        (words("vision"), "torchrun: image runs train in one process each"),
        (words("text", "batch_size=3"), "batch_size: 3 sequences do not divide among 2 processes"),
    ):
        for process in side_by_side(more):
            said = process.communicate(timeout=120)[1]
            assert process.returncode != 0
            assert sentence in said


@pytest.mark.parametrize(
    ("samples", "largest", "parts"), [(8, None, 1), (8, 8, 1), (8, 4, 2), (8, 3, 4), (12, 5, 3), (7, 2, 7), (1, 1, 1)]
)
def test_gradient_accumulation_follows_from_the_global_batch(samples: int, largest: int | None, parts: int) -> None:
    assert micro_batches(samples, largest) == parts
