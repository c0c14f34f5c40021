"""A sweep of W&B agents: wandb's own code makes the command of each run from it, and that command is the cell."""

from __future__ import annotations

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from weight_decay import cli
from weight_decay.cli import make_plan
from weight_decay.config.run import run_id
from weight_decay.experiments.launch.wandb_sweep import sweep_yaml

WORDS = ["experiment=demo_over_training", "scale=micro"]


def command_of(sweep: dict[str, object], cell: int) -> list[str]:
    """The command that an agent starts for one cell, as wandb puts it together."""
    command = create_sweep_command(sweep["command"])  # type: ignore[arg-type]
    words = create_sweep_command_args({"args": {"cell": {"value": cell}}})
    filled: list[str] = []
    for part in command:
        filled += words["args_no_hyphens"] if part == "${args_no_hyphens}" else [str(part)]
    return filled


def test_every_run_of_an_agent_is_a_cell_of_the_experiment() -> None:
    sweep = yaml.safe_load(sweep_yaml(WORDS))
    cells = make_plan(WORDS)[0].cells
    assert sweep["parameters"] == {"cell": {"values": list(range(len(cells)))}} and sweep["method"] == "grid"
    made = []
    for cell in sweep["parameters"]["cell"]["values"]:
        program, *words = command_of(sweep, cell)
        assert program == "${program}" and sweep["program"] == "weight-decay"
        plan, _ = make_plan(words)
        assert plan.name == "demo_over_training"
        (only,) = plan.cells
        made.append(run_id(only.config))
        assert only.config.tracking.mode == "online"
    assert made == [run_id(cell.config) for cell in cells]


def test_settings_and_seeds_are_kept_and_the_regime_says_what_is_minimised() -> None:
    sweep = yaml.safe_load(sweep_yaml(["experiment=demo_under_training", "scale=micro", "seeds=0..2", "batch_size=4"]))
    assert len(sweep["parameters"]["cell"]["values"]) == 6
    assert {"seeds=0..2", "batch_size=4"} <= set(sweep["command"])
    assert sweep["metric"] == {"name": "ema/val/loss", "goal": "minimize"}


def test_without_an_experiment_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["wandb-sweep", "model.width=4"])
    assert left.value.code == 2
    assert "say which experiment" in capsys.readouterr().err


def test_it_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["wandb-sweep", *WORDS])
    assert left.value.code == 0 and yaml.safe_load(capsys.readouterr().out)["program"] == "weight-decay"
