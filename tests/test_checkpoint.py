"""Checkpoints: whole or not there, and damage is said."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from hunt.folders import damage
from weight_decay.training import checkpoint

CPU = torch.device("cpu")
OWNER = checkpoint.Owner("0" * 12, "main")


def state(step: int) -> dict[str, object]:
    return {"step": step, "model": {"w": torch.arange(5.0) + step}, "none": None}


def test_round_trip_and_keep(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        checkpoint.save(tmp_path, step, state(step), 2, OWNER)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"step-{step:09d}.{kind}" for step in (3, 10) for kind in ("json", "pt")
    ]
    loaded = checkpoint.load_latest(tmp_path, CPU, pytest.fail, OWNER)
    assert loaded is not None
    assert loaded["step"] == 10
    assert torch.equal(loaded["model"]["w"], torch.arange(5.0) + 10)


@pytest.mark.parametrize("kind", ["flip", "truncate", "empty", "json", "format"])
def test_a_damaged_latest_is_said_and_the_one_before_is_used(tmp_path: Path, kind: str) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, step, state(step), 2, OWNER)
    latest, said = tmp_path / "step-000000002.pt", []
    if kind in ("flip", "truncate"):
        damage(latest, random.Random(0), [latest], (kind,))
    elif kind == "empty":
        latest.write_bytes(b"")
    elif kind == "json":
        latest.with_suffix(".json").write_text("{")
    else:
        text = latest.with_suffix(".json").read_text()
        latest.with_suffix(".json").write_text(text.replace('"format": 2', '"format": 1'))
    loaded = checkpoint.load_latest(tmp_path, CPU, said.append, OWNER)
    assert loaded is not None
    assert loaded["step"] == 1
    assert len(said) == 1
    assert "step-000000002.pt is damaged" in said[0]


def test_a_file_without_its_json_was_cut_off_by_a_kill_and_is_passed_over(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, state(1), 2, OWNER)
    (tmp_path / "step-000000002.pt").write_bytes(b"half")
    loaded = checkpoint.load_latest(tmp_path, CPU, pytest.fail, OWNER)
    assert loaded is not None
    assert loaded["step"] == 1


def test_nothing_is_half_written_when_writing_fails(tmp_path: Path) -> None:
    target = tmp_path / "file.json"
    checkpoint.write_json(target, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        checkpoint.write_json(target, {"a": float("nan")})

    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoint.write_atomically(target, fail)
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]
    assert target.read_text() == '{\n  "a": 1\n}\n'


def test_a_checkpoint_cannot_smuggle_code_in(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (print, ("executed",))

    checkpoint.save(tmp_path, 1, state(1), 2, OWNER)
    checkpoint.save(tmp_path, 2, {"evil": Evil()}, 2, OWNER)
    said: list[str] = []
    loaded = checkpoint.load_latest(tmp_path, CPU, said.append, OWNER)
    assert loaded is not None
    assert loaded["step"] == 1
    assert len(said) == 1


@pytest.mark.parametrize("other", [checkpoint.Owner("f" * 12, "main"), checkpoint.Owner("0" * 12, "tail-000000002")])
def test_a_whole_checkpoint_of_another_run_is_no_older_one_and_stops_everything(
    tmp_path: Path, other: checkpoint.Owner
) -> None:
    checkpoint.save(tmp_path, 1, state(1), 2, OWNER)
    checkpoint.save(tmp_path, 2, state(2), 2, other)
    with pytest.raises(checkpoint.ForeignCheckpointError, match=f"belongs to {other.branch} of run {other.run_id}"):
        checkpoint.load_latest(tmp_path, CPU, pytest.fail, OWNER)


def test_a_checkpoint_under_another_steps_name_is_damaged(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, state(1), 2, OWNER)
    for kind in ("pt", "json"):
        (tmp_path / f"step-000000001.{kind}").rename(tmp_path / f"step-000000009.{kind}")
    said: list[str] = []
    assert checkpoint.load_latest(tmp_path, CPU, said.append, OWNER) is None
    assert "it holds step 1" in said[0]
