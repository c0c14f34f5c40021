"""Gradient replay: what each arithmetic of bfloat16 weights keeps of weight decay."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tiny_runs import read_summary
from weight_decay.cli import make_plan
from weight_decay.config.run import RunConfig, folder_name
from weight_decay.device.choose import choose_device
from weight_decay.errors import UserError
from weight_decay.runs.folder import Labels
from weight_decay.tasks.choose import Regime, build_regime
from weight_decay.training.replay import ARITHMETICS, replayed
from weight_decay.training.run import run


def metrics(tmp_path: Path, *settings: str) -> dict[str, float]:
    small = ["duration=40 steps", "data.evaluation_windows=16", "data.train_tokens=40000", f"data.root={tmp_path}"]
    config = make_plan(["experiment=bfloat16_replay", "scale=micro", "cell=0", *small, *settings])[0].cells[0].config
    device = choose_device(config.execution, config.precision)
    found = replayed(config, build_regime(config, device), device, lambda: False)
    assert found is not None
    return found


def test_foreach_loses_what_the_others_keep(tmp_path: Path) -> None:
    found = metrics(tmp_path, "probes.replay=[0.05]")
    assert found.keys() == {f"replay/{name}/kept_0.05" for name in ARITHMETICS}
    assert found["replay/foreach/kept_0.05"] == 0  # below half a unit in the last place: not one weight moves
    for name in ("stochastic", "kahan"):
        assert found[f"replay/{name}/kept_0.05"] == pytest.approx(1, abs=0.05)
    assert found == metrics(tmp_path, "probes.replay=[0.05]")


def test_strong_decay_is_kept_by_every_arithmetic(tmp_path: Path) -> None:
    """η λ = .02 is ten times half a unit in the last place, so every weight moves at every step."""
    found = metrics(tmp_path, "probes.replay=[2.0]", "schedule.warmup=0 steps", "schedule.final_fraction=1.0")
    assert all(0.9 < value < 1.1 for value in found.values())


def test_what_cannot_be_replayed_is_refused() -> None:
    for setting, words in (("precision=bfloat16", "float32"), ("probes.replay=[0.1,0.1]", "different strengths")):
        with pytest.raises(UserError, match=words):
            make_plan(["experiment=bfloat16_replay", "scale=micro", setting])


def test_a_run_stopped_in_its_replay_is_interrupted_and_goes_on_to_the_same_numbers(
    tmp_path: Path, tiny: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SIGTERM after the last step once made a run completed that had no replay."""
    whole, broken = (
        tiny("text", f"probes.replay=[0.05] execution.results={tmp_path / name}") for name in ("whole", "broken")
    )
    labels = Labels("own", "micro", "own")
    assert run(whole, labels) == "completed"

    def stopped(config: RunConfig, regime: Regime, device: torch.device, stop: Callable[[], bool]) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        return replayed(config, regime, device, stop)

    monkeypatch.setattr("weight_decay.training.replay.replayed", stopped)
    assert run(broken, labels) == "interrupted"
    monkeypatch.undo()
    assert run(broken, labels) == "completed"
    one, other = (read_summary(tmp_path / name / "runs" / folder_name(whole))["final"] for name in ("whole", "broken"))
    replays = {key: value for key, value in one.items() if key.startswith("replay/")}
    assert replays and replays == {key: other[key] for key in replays}
