"""The command line: exit codes, help, multirun, parallel cells, and every declared experiment."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import forked
from conftest import exit_code, read_metrics
from vision_files import write_fashion_mnist
from weight_decay.cli import make_plan
from weight_decay.config.groups import ImageData
from weight_decay.config.plain import to_dict
from weight_decay.config.run import RunConfig, folder_name, run_id
from weight_decay.errors import UserError
from weight_decay.experiments.catalog import groups
from weight_decay.experiments.plan import expand
from weight_decay.training.build import check

Words = Callable[..., list[str]]
EXPERIMENTS = [name for name in groups()["experiment"] if name != "none"]
SCALES = ["micro", "small", "paper"]


def command(words: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `weight-decay` in a process of its own."""
    return forked.run(["-m", "weight_decay", *words], cwd)


def two_steps_of_the_demo(words: Words) -> list[str]:
    """Settings of a tiny run without those that the demo's experiment file decides."""
    tiny = words("text", "duration='2 steps' schedule.warmup='1 step'")
    return [word for word in tiny if word.partition("=")[0] not in ("decay.strength", "data")]


@pytest.mark.parametrize(
    "setting",
    [
        "optimizer.lr=-1",
        "optimizer.no_such_thing=1",
        "averaging.ema=[1.5]",
        "decay.rules=[{match: no_such_parameter, scale: 1}] decay.strength=0.1",
        "decay.rules=[{match: head, scale: 1}] decay.strength=0.1",
        "decay.rules=[{match: '.*', scale: 0}] decay.strength=0.1",
        "decay.rules=[{match: '(', scale: 1}]",
        "experiment=no_such_experiment",
        "scale=huge",
        "--no-such-flag",
        "no-such-command",
        "-m optimizer.lr=0.1,-1",
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2_before_any_work(
    words: Words, setting: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    special = setting.startswith("-") or "=" not in setting
    split = setting.split(" decay.strength") if "rules" in setting else [setting]
    settings = setting.split() if special else [split[0], *[f"decay.strength{rest}" for rest in split[1:]]]
    given = {word.partition("=")[0] for word in settings}
    base = [word for word in words("vision") if word.partition("=")[0] not in given]
    assert exit_code(settings[:1] if setting.startswith("no-such") else [*settings, *base]) == 2
    told = capsys.readouterr().err
    assert told.startswith("weight-decay: ")
    assert told.count("\n") == 1
    assert "Traceback" not in told
    assert not (tmp_path / "results").exists()


def test_decay_on_no_parameter_says_what_to_do(words: Words) -> None:
    with pytest.raises(UserError, match="exempt every parameter"):
        check(
            make_plan(words("vision", '"decay.rules=[{match: x, scale: 1}, {match: .*, scale: 0}]"'))[0].cells[0].config
        )


def test_help_and_info_name_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["--help"]) == 0
    assert "experiment=NAME" in capsys.readouterr().out
    assert exit_code(["--info"]) == 0
    text = capsys.readouterr().out
    for name in [*EXPERIMENTS, *SCALES, "optimizer.lr", "decay.strength", "averaging.ema", "cifar5m", "gpt2_small"]:
        assert name in text
    assert exit_code(["--info", "demo_over_training"]) == 0
    assert "optimizer.lr" in capsys.readouterr().out


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_at_every_scale(experiment: str, scale: str) -> None:
    plan = make_plan([f"experiment={experiment}", f"scale={scale}"])[0]
    assert plan.cells
    assert len({run_id(cell.config) for cell in plan.cells}) == len(plan.cells)
    for cell in plan.cells:
        check(cell.config)
    assert plan.experiment == experiment


def measuring_less(config: RunConfig) -> list[str]:
    """Settings that keep every kind of measurement and branch of an experiment, on as little data as possible."""
    less = ["probes.evaluation_train_samples=64"]
    if isinstance(config.data, ImageData):
        less += ["data.test_size=128", "averaging.reestimate_samples=64", "probes.jacobian_per_class=1"]
    else:
        less += ["data.evaluation_windows=64"]
    if (curvature := config.probes.curvature) is not None:
        names = ("per_class", "trace_draws", "top_steps", "similarity_draws", "spectrum_steps", "spectrum_draws")
        less += [f"probes.curvature.{name}={min(2, getattr(curvature, name))}" for name in names]
    if config.branches:
        brief = {"start": "1 step", "every": None, "duration": "1 step"}
        shorter = [to_dict(branch) | brief for branch in config.branches]
        less.append("branches=" + json.dumps(shorter).replace('"', "").replace("None", "null"))
    return less


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_runs_two_steps_at_micro(experiment: str, tmp_path: Path, data_root: Path) -> None:
    declared = [f"experiment={experiment}", "scale=micro"]
    less = measuring_less(make_plan([*declared, "cell=0"])[0].cells[0].config)
    # A value, for the group `tracking` would have it composed a second time.
    quiet = ["tracking.mode=disabled", "execution.progress=false", "execution.device=cpu"]
    words = [*declared, *quiet, "duration=2 steps", "cell=0", *less]
    if experiment == "fig02_real_images":  # the one whose data cannot be made on the spot
        data_root = tmp_path / "data"
        write_fashion_mnist(data_root / "fashion_mnist", counts={"train": 2048, "t10k": 1000})
    assert exit_code([*words, f"execution.results={tmp_path}", f"data.root={data_root}"]) == 0
    (plan_file,) = (tmp_path / "experiments").iterdir()
    plan = json.loads(plan_file.read_text())
    folder = tmp_path / "runs" / plan["cells"][0]["folder"]
    assert json.loads((folder / "summary.json").read_text())["status"] == "completed"
    assert read_metrics(folder)[-1]["step"] == 2


def test_a_dry_run_prints_the_cells_and_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["--dry-run", "experiment=demo_under_training", f"execution.results={tmp_path / 'none'}"]) == 0
    text = capsys.readouterr().out
    assert "decay.strength=0.05 " in text
    assert "  optimizer.lr=0.01\n" in text
    assert not (tmp_path / "none").exists()


def test_multirun_makes_one_run_for_each_value_and_reports_the_worst(words: Words, tmp_path: Path) -> None:
    done = command(["-m", *words("text", "decay.strength=0,0.1 duration='2 steps' schedule.warmup='1 step'")], tmp_path)
    assert done.returncode == 0, done.stderr
    runs = list((tmp_path / "results" / "runs").iterdir())
    assert len(runs) == 2
    assert all((run / "summary.json").is_file() for run in runs)
    assert not list(tmp_path.glob("multirun*"))


def test_multirun_of_an_experiment_makes_one_job_for_each_cell(words: Words, tmp_path: Path) -> None:
    base = two_steps_of_the_demo(words)
    done = command(["-m", "experiment=demo_under_training", "scale=micro", *base], tmp_path)
    assert done.returncode == 0, done.stderr
    plan = make_plan(["experiment=demo_under_training", "scale=micro", *base])[0]
    assert {folder.name for folder in (tmp_path / "results" / "runs").iterdir()} == {
        folder_name(cell.config) for cell in plan.cells
    }
    assert done.stderr.count("1 completed of 1 cell(s)") == 2
    # The experiment's file lists all of its cells, although each job ran only one.
    files = list((tmp_path / "results" / "experiments").iterdir())
    assert len(files) == 1
    recorded = json.loads(files[0].read_text())
    assert len(recorded["cells"]) == 2
    assert recorded["experiment"].startswith("demo_under_training+")


def test_a_failing_cell_does_not_stop_the_others(words: Words, tmp_path: Path) -> None:
    base = two_steps_of_the_demo(words)
    base += ["experiment=demo_under_training", "scale=micro"]
    plan = make_plan(base)[0]
    # A folder where the record should be makes the first cell fail for real.
    (tmp_path / "results" / "runs" / folder_name(plan.cells[0].config) / "metrics.jsonl").mkdir(parents=True)
    done = command(base, tmp_path)
    assert done.returncode == 1
    assert "1 failed, 1 completed of 2 cell(s)" in done.stderr
    assert "error.txt" in done.stderr


def test_a_grid_expands_in_order_without_repeats_and_user_values_collapse_an_axis() -> None:
    grid = [{"a": [1, 2], "b": [3, 4]}, {"a": [1], "b": [3, 5]}]
    assert expand(grid, {}) == [
        {"a": 1, "b": 3},
        {"a": 1, "b": 4},
        {"a": 2, "b": 3},
        {"a": 2, "b": 4},
        {"a": 1, "b": 5},
    ]
    assert expand(grid, {"b": 9}) == [{"a": 1, "b": 9}, {"a": 2, "b": 9}]


def test_changed_settings_never_pass_for_the_declared_experiment() -> None:
    declared = make_plan(["experiment=demo_under_training", "scale=micro", "execution.threads=2", "data.root=x"])[0]
    changed = make_plan(["experiment=demo_under_training", "scale=micro", "batch_size=4"])[0]
    assert declared.name == "demo_under_training"
    assert changed.name.startswith("demo_under_training+")
