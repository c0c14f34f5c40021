"""One owner of a run folder at a time, also where the lock was deleted, copied or does not reach."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import read_summary
from test_run import folder_of
from weight_decay.config.run import RunConfig
from weight_decay.runs.folder import Labels
from weight_decay.runs.lock import LostFolderError, claimed, confirm
from weight_decay.training.loop import Training
from weight_decay.training.run import run

LABELS = Labels("test", "micro", "test")
Tiny = Callable[..., RunConfig]


def before_step(monkeypatch: pytest.MonkeyPatch, step: int, do: Callable[[], object]) -> None:
    """Do something once, when the run comes to `step`."""
    advance = Training.advance

    def doing(self: Training, observe: bool) -> None:
        if self.step == step:
            do()
        advance(self, observe)

    monkeypatch.setattr(Training, "advance", doing)


def test_a_lock_file_that_was_deleted_is_made_again(tmp_path: Path) -> None:
    with claimed(tmp_path) as mine:
        assert mine
        (tmp_path / "run.lock").unlink()
        confirm(tmp_path / "checkpoints")
        with claimed(tmp_path) as second:
            assert not second
        confirm(tmp_path)
    with claimed(tmp_path) as mine:
        assert mine


@pytest.mark.parametrize("how", ["deleted and taken", "taken where locks do not reach"])
def test_a_second_owner_is_found_out_before_the_next_save(tmp_path: Path, how: str) -> None:
    lock = tmp_path / "run.lock"
    with claimed(tmp_path):
        if how == "deleted and taken":
            lock.unlink()
        lock.write_text("elsewhere 4711 abc\n")
        with pytest.raises(LostFolderError, match="another owner by now"):
            confirm(tmp_path / "summary.json")
    confirm(tmp_path)  # who holds nothing has nothing to lose


@pytest.mark.parametrize("content", [b"", b"elsewhere 4711 abc\n", b"\0\xff" * 500])
def test_a_lock_file_of_a_dead_process_or_another_machine_blocks_nobody(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.lock").write_bytes(content)
    with claimed(tmp_path) as mine:
        assert mine
        confirm(tmp_path)


def overwrite(path: Path, content: bytes) -> None:
    with path.open("r+b", buffering=0) as file:
        file.write(content.ljust(path.stat().st_size))


def test_a_run_whose_folder_was_taken_stops_and_changes_nothing_in_it(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny("text", "checkpoint.every_seconds=0")
    lock = folder_of(config) / "run.lock"
    with monkeypatch.context() as patch:
        # In one write: a checkpoint's own thread may be reading.
        before_step(patch, 3, lambda: overwrite(lock, b"elsewhere 4711 abc\n"))
        with pytest.raises(LostFolderError, match="process 4711 on elsewhere"):
            run(config, LABELS)
    assert read_summary(folder_of(config))["status"] == "running"
    saved = sorted(path.name for path in (folder_of(config) / "checkpoints").glob("*.pt"))
    # Checkpoints are written beside the training, so the third may be on its way when the folder is lost.
    assert saved[-1] in ("step-000000002.pt", "step-000000003.pt")
    # The other one is dead, too: whoever comes next goes on.
    assert run(config, LABELS) == "completed"


def test_a_killed_process_leaves_no_owner(tmp_path: Path) -> None:
    code = (
        "import os, signal; from pathlib import Path; from weight_decay.runs.lock import claimed\n"
        f"with claimed(Path({str(tmp_path)!r})): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert b" " in (tmp_path / "run.lock").read_bytes()
    with claimed(tmp_path) as mine:
        assert mine
