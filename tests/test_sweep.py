"""Sweeps: stale runs, locks, stops, killed workers, disks that are full or closed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from conftest import exit_code, folder_of, read_metrics, read_summary, tiny_words
from forked import Forked
from tiny_runs import until
from weight_decay.cli import make_plan
from weight_decay.config.run import RunConfig
from weight_decay.errors import UserError
from weight_decay.experiments.launch import stops
from weight_decay.runs.folder import Labels, put_aside
from weight_decay.runs.lock import claimed
from weight_decay.runs.seal import sealed
from weight_decay.runs.summary import code_of
from weight_decay.training.loop import Training
from weight_decay.training.run import run

Tiny = Callable[..., RunConfig]
Words = Callable[..., list[str]]
LABELS = Labels("test", "micro", "test")
ROOT = os.geteuid() == 0


def demo(words: Words, more: str = "") -> list[str]:
    """Two tiny cells of the under-training demo."""
    decided = ("decay.strength", "data")
    base = [w for w in words("text", f"schedule.warmup='1 step' {more}") if w.partition("=")[0] not in decided]
    return ["experiment=demo_under_training", "scale=micro", *base]


def start(words: list[str]) -> Forked:
    return Forked(["-m", "weight_decay", *words])


def mark_as_other_code(folder: Path) -> None:
    summary = sealed({**read_summary(folder), "code_fingerprint": "0" * 12})
    (folder / "summary.json").write_text(json.dumps(summary))


# -- stale runs --------------------------------------------------------------------------------------------------


def test_runs_of_other_code_are_refused_kept_or_rerun_but_never_taken_silently(
    words: Words, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny("text")
    assert run(config, LABELS) == "completed"
    before = read_summary(folder_of(config))
    mark_as_other_code(folder_of(config))
    capsys.readouterr()
    assert exit_code(words("text")) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "1 of 1 run(s) hold numbers of other code (000000000000, now " in told
    assert exit_code([*words("text"), "stale=keep"]) == 0
    assert "1 already done" in capsys.readouterr().err
    assert exit_code([*words("text"), "stale=rerun"]) == 0
    kept = tmp_path / "results" / "stale" / f"{folder_of(config).name}-000000000000"
    assert read_summary(kept)["code_fingerprint"] == "0" * 12
    assert read_metrics(kept) == read_metrics(folder_of(config))
    again = read_summary(folder_of(config))
    assert again["weights_sha256"] == before["weights_sha256"]
    assert again["code_fingerprint"] == code_of(config)
    assert exit_code([*words("text"), "stale=perhaps"]) == 2


def test_a_stale_run_is_not_put_aside_while_somebody_works_on_it(tiny: Tiny) -> None:
    config = tiny("text")
    run(config, LABELS)
    mark_as_other_code(folder_of(config))
    with claimed(folder_of(config)) as mine:
        assert mine
        assert put_aside(folder_of(config)) is None
    first = put_aside(folder_of(config))
    assert first is not None and first.is_dir()
    run(config, LABELS)
    mark_as_other_code(folder_of(config))
    second = put_aside(folder_of(config))
    assert second is not None and second != first and first.is_dir()


# -- locks -------------------------------------------------------------------------------------------------------


def test_a_file_system_without_locks_is_refused_in_one_sentence(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UserError, match=r"has no locks \(No locks available\).*choose another folder"):
        run(tiny("text"), LABELS)


def test_a_claim_leaves_no_temporary_files_of_killed_processes(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    leftovers = [tmp_path / ".summary.json.node.7.tmp", tmp_path / "checkpoints" / ".step-000000002.pt.node.7.tmp"]
    for leftover in leftovers:
        leftover.write_bytes(b"half")
    with claimed(tmp_path) as mine:
        assert mine
        assert not any(leftover.exists() for leftover in leftovers)


def test_status_looking_at_a_lock_does_not_turn_an_owner_away(tmp_path: Path) -> None:
    (tmp_path / "run.lock").touch()
    looking = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, sys, time; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_SH); "
         "print(flush=True); time.sleep(0.03)", str(tmp_path / "run.lock")], stdout=subprocess.PIPE,
    )  # fmt: skip
    assert looking.stdout is not None
    looking.stdout.readline()
    with claimed(tmp_path) as mine:
        assert mine
    looking.wait()


# -- stops and kills ---------------------------------------------------------------------------------------------


def processes_of(words: list[str]) -> dict[Path, int]:
    """The runs that are at work and have saved something, with the process of each."""
    found = {}
    for cell in make_plan(words)[0].cells:
        folder = folder_of(cell.config)
        if (folder / "summary.json").exists() and list(folder.glob("checkpoints/*.json")):
            summary = read_summary(folder)
            if summary["status"] == "running":
                found[folder] = summary["pid"]
    return found


def all_at_work(words: list[str], cells: int) -> dict[Path, int]:
    """Wait until so many cells are at work at once: each is held where it is first seen, until the last is there."""
    held: dict[Path, int] = {}

    def hold_new() -> bool:
        for folder, process in processes_of(words).items():
            if folder not in held:
                os.kill(process, signal.SIGSTOP)
                held[folder] = process
        return len(held) == cells

    try:
        until(f"{cells} cell(s) to work", hold_new)
    finally:
        for process in held.values():
            os.kill(process, signal.SIGCONT)
    return held


LONG = "duration='200 steps' checkpoint.every_seconds=0.2"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    """The results of the same cells one after the other, in this process, with nobody stopping them."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert exit_code(demo(tiny_words(folder, data_root), LONG)) == 0
    return folder / "results"


# Workers, which hear of any request by SIGTERM, and none: SLURM's warning reaches the sweep's own process alone.
@pytest.mark.parametrize(("jobs", "number"), [(2, signal.SIGTERM), (1, signal.SIGUSR1)])
def test_a_sweep_told_to_stop_saves_all_its_cells_and_goes_on_bitwise(
    words: Words, undisturbed: Path, jobs: int, number: signal.Signals
) -> None:
    base = [*demo(words, LONG), f"jobs={jobs}"]
    sweep = start(base)
    at_work = all_at_work(base, jobs)
    sweep.send_signal(number)
    told = sweep.communicate()[1]
    assert sweep.returncode == 130, told
    assert "interrupted" in told and "the same command goes on" in told
    assert {read_summary(folder)["status"] for folder in at_work} <= {"interrupted", "completed"}
    assert "interrupted" in {read_summary(folder)["status"] for folder in at_work}
    again = start(base)
    assert "goes on from step" in again.communicate()[1]
    assert again.returncode == 0
    if jobs == 2:
        compare(at_work, undisturbed)


def test_a_stop_waits_for_nobody_who_ignores_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"
    tracker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert tracker.stdout is not None
    tracker.stdout.readline()
    monkeypatch.setattr(stops, "_children", lambda: [tracker.pid])
    stops.stop_children()
    assert capsys.readouterr().err == "" and tracker.poll() is None
    tracker.kill()
    tracker.wait()


def test_one_ctrl_c_ends_a_multirun_with_everything_saved(
    words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ["-m", *words("text", "decay.strength=0,0.1 schedule.warmup='1 step'")]
    advance = Training.advance

    def advance_then_interrupt(self: Training, observe: bool) -> None:
        advance(self, observe)
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "advance", advance_then_interrupt)
        assert exit_code(sweep) == 130
    (first,) = (tmp_path / "results" / "runs").iterdir()  # the next job was not started
    assert read_summary(first)["status"] == "interrupted" and read_summary(first)["step"] == 3
    assert "the same command goes on from the last checkpoint" in capsys.readouterr().err
    assert exit_code(sweep) == 0
    assert "goes on from step 3 of 6" in capsys.readouterr().err
    states = [read_summary(folder)["status"] for folder in (tmp_path / "results" / "runs").iterdir()]
    assert states == ["completed", "completed"]


def test_a_killed_worker_loses_nothing(words: Words, undisturbed: Path) -> None:
    base = demo(words, LONG)
    sweep = start([*base, "jobs=2"])
    at_work = all_at_work(base, 2)
    os.kill(next(iter(at_work.values())), signal.SIGKILL)
    told = sweep.communicate()[1]
    assert sweep.returncode == 0, told
    assert "2 completed of 2 cell(s)" in told
    compare(at_work, undisturbed)


def compare(folders: Iterable[Path], undisturbed: Path) -> None:
    for folder in folders:
        whole = undisturbed / "runs" / folder.name
        assert read_metrics(folder) == read_metrics(whole)
        assert read_summary(folder)["weights_sha256"] == read_summary(whole)["weights_sha256"]


def test_two_sweeps_at_once_share_the_cells(words: Words) -> None:
    base = demo(words, LONG)
    both = [start(base), start(base)]
    told = [sweep.communicate()[1] for sweep in both]
    # Whoever ends last has seen everything finished; the other one says that it has not.
    codes = sorted(sweep.returncode for sweep in both)
    assert codes in ([0, 0], [0, 3]), told
    assert sum("not complete (exit code 3)" in text for text in told) == codes.count(3)
    assert sum(text.count("goes on from step") for text in told) == 0
    made = sum(
        int(line.split(" completed")[0].split()[-1]) for t in told for line in t.splitlines() if " completed" in line
    )
    assert made == 2, told


# -- multirun ----------------------------------------------------------------------------------------------------


def test_cells_are_packed_into_jobs_and_finished_ones_are_not_launched(
    words: Words, capfd: pytest.CaptureFixture[str]
) -> None:
    base = demo(words, "duration='2 steps'")
    done = start(["-m", *base, "cells_per_job=2"])
    told = done.communicate()[1]
    assert done.returncode == 0, told
    assert told.count("2 completed of 2 cell(s)") == 2  # one job of both cells, then the sweep's own last line
    again = start(["-m", *base, "cells_per_job=2"])
    told = again.communicate()[1]
    assert again.returncode == 0
    assert told.strip().endswith("2 completed of 2 cell(s).")
    assert "Launching" not in told


def test_a_cluster_that_is_not_there_and_misplaced_settings_are_one_sentence(
    words: Words, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert exit_code(["-m", "hydra/launcher=slurm", *demo(words)]) == 2
    assert "this machine has no SLURM" in capsys.readouterr().err
    assert exit_code(["hydra/launcher=slurm", *demo(words)]) == 2
    assert "need the flag -m" in capsys.readouterr().err


# -- disks -------------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A disk of its own; call it with mount options, again to change them."""
    if not ROOT:
        pytest.skip("only root can mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = []

    def mount(options: str) -> Path:
        line = ["mount", "-t", "tmpfs", "-o", options if not mounted else f"remount,{options}", "tmpfs", str(folder)]
        if subprocess.run(line, check=False, capture_output=True).returncode:
            pytest.skip("this machine does not let us mount a small disk")
        mounted.append(options)
        return folder

    yield mount
    if mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def test_a_full_disk_is_one_sentence_and_no_half_file_and_the_run_goes_on_later(
    tiny: Tiny, tmp_path: Path, disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    more = "duration='40 steps' probes.log_every='1 step' checkpoint.every_seconds=0"
    whole = tiny("text", f"{more} execution.results={tmp_path / 'whole'}")
    run(whole, LABELS)
    size = sum(f.stat().st_size for f in folder_of(whole).rglob("*") if f.is_file())
    # Enough for the folder and some of the record, never for two checkpoints.
    config = tiny("text", f"{more} execution.results={disk(f'size={size // 4096 * 4 + 24}k')}")
    capsys.readouterr()
    assert run(config, LABELS) == "failed"
    told = capsys.readouterr().err
    assert "No space left on device; see to the disk" in told
    assert "Traceback" not in told
    for file in folder_of(config).rglob("*.json"):
        json.loads(file.read_text())
    assert not list(folder_of(config).rglob("*.tmp"))
    disk("size=64m")
    assert run(config, LABELS) == "completed"
    assert read_metrics(folder_of(config)) == read_metrics(folder_of(whole))
    assert read_summary(folder_of(config))["weights_sha256"] == read_summary(folder_of(whole))["weights_sha256"]


def test_a_closed_disk_is_one_sentence(
    words: Words, disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    results = disk("size=64m")
    assert exit_code(words("text", f"execution.results={results} duration='2 steps' schedule.warmup='1 step'")) == 0
    disk("ro")
    capsys.readouterr()
    again = words("text", f"execution.results={results} duration='3 steps' schedule.warmup='1 step'")
    assert exit_code(again) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "Read-only file system" in told


def test_a_disk_that_is_slow_to_rename_changes_nothing(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = "checkpoint.every_seconds=0"
    whole = tiny("text", f"{more} execution.results={tmp_path / 'whole'}")
    run(whole, LABELS)
    replace = Path.replace

    def slowly(self: Path, target: Path) -> Path:
        time.sleep(0.05)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", slowly)
    config = tiny("text", f"{more} execution.results={tmp_path / 'slow'}")
    assert run(config, LABELS) == "completed"
    assert read_metrics(folder_of(config)) == read_metrics(folder_of(whole))


def test_a_clock_that_jumps_changes_no_duration(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time
    calls = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: now() - 3600 * next(calls))
    config = tiny("text")
    assert run(config, LABELS) == "completed"
    lines = [json.loads(line) for line in (folder_of(config) / "metrics.jsonl").read_text().splitlines()]
    seconds = [line["time/seconds"] for line in lines]
    assert seconds == sorted(seconds) and 0 <= seconds[0] <= seconds[-1] < 120
    assert all(line["time/step"] > 0 for line in lines if "time/step" in line)
