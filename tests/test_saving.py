"""Checkpoints are written beside the training: of the state as it was, one after the other, and nothing is lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from weight_decay.training import checkpoint
from weight_decay.training.checkpoint import Saver

CPU, OWNER = torch.device("cpu"), checkpoint.Owner("0" * 12, "main")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A disk that writes nothing until it is allowed to."""
    allowed, save = threading.Event(), checkpoint.save

    def slowly(*arguments: Any) -> Path:
        assert allowed.wait(30)
        return save(*arguments)

    monkeypatch.setattr(checkpoint, "save", slowly)
    yield allowed
    allowed.set()


def weights_at(folder: Path) -> torch.Tensor:
    state = checkpoint.load_latest(folder, CPU, pytest.fail, OWNER)
    assert state is not None
    return state["model"]["w"]


def test_training_goes_on_while_the_disk_is_slow_and_the_state_is_that_of_the_step(
    tmp_path: Path, disk: threading.Event
) -> None:
    weights = torch.zeros(3)
    with Saver(tmp_path, 2, OWNER) as saver:
        saver.save(1, {"model": {"w": weights}, "list": [weights]})
        weights += 7  # the next step, before a byte is written
        saver.check()
        assert not list(tmp_path.iterdir())
        disk.set()
    assert torch.equal(weights_at(tmp_path), torch.zeros(3))


def test_the_next_checkpoint_waits_for_the_one_before(tmp_path: Path, disk: threading.Event) -> None:
    with Saver(tmp_path, 2, OWNER) as saver:
        saver.save(1, {"model": {"w": torch.tensor([1.0])}})
        threading.Timer(0.05, disk.set).start()
        saver.save(2, {"model": {"w": torch.tensor([2.0])}})
        assert (tmp_path / "step-000000001.json").exists()
    assert weights_at(tmp_path).item() == 2


@pytest.mark.parametrize("noticed", ["check", "save", "leaving"])
def test_what_goes_wrong_with_a_file_is_raised_in_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noticed: str
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(OSError, match="No space left"), Saver(tmp_path, 2, OWNER) as saver:
        saver.save(1, {"w": torch.zeros(1)})
        assert saver._pending is not None
        saver._pending.exception()  # it has ended
        if noticed == "check":
            saver.check()
            pytest.fail("check passed over it")
        if noticed == "save":
            saver.save(2, {"w": torch.zeros(1)})
            pytest.fail("the next save passed over it")


def test_after_an_error_nothing_is_written_any_more(tmp_path: Path, disk: threading.Event) -> None:
    threading.Timer(0.05, disk.set).start()
    with pytest.raises(RuntimeError, match="of the loop"), Saver(tmp_path, 2, OWNER) as saver:
        saver.save(1, {"model": {"w": torch.tensor([1.0])}})
        raise RuntimeError("of the loop")
    # The folder's lock may be somebody else's from here on, and the file was finished before.
    assert weights_at(tmp_path).item() == 1
