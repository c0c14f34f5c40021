"""The record and its mirrors: W&B may fail at any moment, the run may not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import folder_of, read_metrics, read_summary
from weight_decay.config.run import RunConfig
from weight_decay.device.memory import to_host
from weight_decay.runs.folder import Labels
from weight_decay.training.record import Recorder
from weight_decay.training.run import run

LABELS = Labels("test", "micro", "test")
Tiny = Callable[..., RunConfig]


def test_metrics_come_to_the_host_in_order_and_exactly() -> None:
    metrics = {"b": torch.tensor(2.5), "a": 1, "d": torch.tensor(3, dtype=torch.int64), "c": torch.tensor([0.1])}
    host = to_host(metrics)
    assert list(host) == ["b", "a", "d", "c"]
    assert host == {"b": 2.5, "a": 1, "d": 3.0, "c": pytest.approx(0.1)}


def test_what_is_not_finite_is_written_as_null(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, None)
    recorder.write(3, {"x": torch.tensor(math.nan), "y": math.inf, "z": 1.5})
    recorder.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 3, "x": None, "y": None, "z": 1.5}


def test_lines_after_the_checkpoint_are_dropped_on_rewind(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, None)
    recorder.write(1, {"x": 1.0})
    position = recorder.position()
    recorder.write(2, {"x": 2.0})
    recorder.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "x"')  # a line cut off by a kill
    again = Recorder(tmp_path, None)
    again.rewind(position)
    again.write(2, {"x": 2.5})
    again.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "x": 1.0}, {"step": 2, "x": 2.5}]
    assert again.latest == {"step": 2, "x": 2.5}


def test_wandb_offline_needs_no_account_and_no_network(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    config = tiny("text", "tracking=offline")
    assert run(config, LABELS) == "completed"
    files = list(folder_of(config).glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 1
    assert files[0].stat().st_size > 0


class _FailingRun:
    """Stands in for a W&B run whose service has died."""

    def __init__(self, working_calls: int) -> None:
        self.left = working_calls

    def log(self, *_: Any, **__: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise ConnectionError("the tracking service is gone\nand more")


@pytest.mark.parametrize("when", ["at the start", "in the middle"])
def test_when_wandb_fails_the_run_goes_on_and_says_so(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, when: str
) -> None:
    import wandb

    plain = tiny("text", f"execution.results={tmp_path / 'plain'}")
    run(plain, LABELS)

    def init(**_: Any) -> _FailingRun:
        if when == "at the start":
            raise ConnectionError("the tracking service is gone\nand more")
        return _FailingRun(2)

    monkeypatch.setattr(wandb, "init", init)
    config = tiny("text", f"tracking=online execution.results={tmp_path / 'tracked'}")
    assert run(config, LABELS) == "completed"
    assert capsys.readouterr().err.count("W&B: the tracking service is gone; the run goes on without it") == 1
    assert read_metrics(folder_of(config)) == read_metrics(folder_of(plain))
    assert read_summary(folder_of(config))["weights_sha256"] == read_summary(folder_of(plain))["weights_sha256"]


def test_metrics_of_several_devices_go_to_the_host_together() -> None:
    assert to_host({"a": torch.tensor(2, dtype=torch.int64), "b": 1, "c": torch.tensor([0.5])}) == {
        "a": 2,
        "b": 1,
        "c": 0.5,
    }
