"""Config: strict building, one clear sentence for each mistake, and the identity of a run."""

from __future__ import annotations

import copy
import dataclasses
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from weight_decay.cli import main, make_plan
from weight_decay.config.execution import is_execution_setting
from weight_decay.config.groups import BranchConfig, OnlyEarly, OnlyLate, Window
from weight_decay.config.plain import to_dict
from weight_decay.config.run import RunConfig, build, folder_name, run_id
from weight_decay.config.schema import off
from weight_decay.config.span import Clock, Span
from weight_decay.errors import UserError
from weight_decay.training.branch import check_branches

SIDE = {"name": "side", "start": "1 steps", "every": None, "duration": "1 steps", "lr": 0.1, "strength": 0.0,
        "keep_optimizer_state": True}  # fmt: skip
BAD_SETTINGS = {
    "optimizer.lr=-1": "optimizer.lr: must be from 1e-20 to 1e+06, got -1.0.",
    "optimizer.lr=abc": "optimizer.lr: must be a number, got 'abc'.",
    "optimizer.lr=nan": "optimizer.lr: must be a number",
    "optimizer.lr=inf": "optimizer.lr: must be a number",
    "optimizer.momentum=1": "optimizer.momentum: must be in [0, 1), got 1.",
    "optimzer.lr=1": "optimzer.lr: there is no such setting; did you mean optimizer.lr?",
    "optimizer.lrr=1": "optimizer.lrr: there is no such setting; did you mean optimizer.lr?",
    "averaging.ema=[1.5]": "averaging.ema: every decay must lie strictly between 0 and 1, got 1.5.",
    "averaging.ema=[0.9,0.9]": "averaging.ema: the same decay is listed twice",
    "averaging.ema=0.9": "averaging.ema: must be a list, got 0.9.",
    "decay.strength=-0.1": "decay.strength: must be 0, or from 1e-20 to 1e+06, got -0.1.",
    "decay.kind=l3": "decay.kind: must be one of cautious, constrained, corrected, decoupled,",
    "decay.rules=[]": "decay.rules: at least one rule is needed",
    "batch_size=0": "batch_size: must be from 1 to 10 million, got 0.",
    "micro_batch_size=5": "micro_batch_size: must divide batch_size 128, got 5.",
    "duration='5 parsecs'": 'duration: "5 parsecs" is not a length',
    "duration=50%": 'duration: must be a positive length, got "50%".',
    "decay.strength=05": "decay.strength: must be a number, got '05'.",
    "seed=1.5": "seed: must be a whole number, got 1.5.",
    "execution.progress=3": "execution.progress: must be true or false, got 3.",
    "model=gpt_micro": "model: procedural data needs a model for images, got gpt.",
    "model=resnet19": "model: there is no resnet19; did you mean resnet18?",
    "model=resnet18 data=python_text": "model: python_text data needs a model for text, got resnet.",
    "data.train_size=null": "data.train_size: the procedural generator is endless",
    "optimizer.lr=0.1,0.2": "several values for one setting need the flag -m",
    "+new=1": "settings can be changed but not added or removed",
    "~seed": "settings can be changed but not added or removed",
    "seed": "cannot be read as key=value",
    "cell=5": "cell: single at scale micro has cells 0 to 0, got 5.",
    "cell=x": "cell: must be a number or a list of numbers",
    "jobs=0": "jobs: must be a whole number of at least 1, got 0.",
    "branches=[{name: a b}]": "branches[0]",
    "model.kind=[1]": "model.kind: must be one of gpt, resnet, vgg, got [1].",
    "schedule.kind={a: 1}": "schedule.kind: must be one of",
    "duration='1e400 steps'": "is too long to count",
    "data.seed=-1": "data.seed: must be from 0 to 2^53 - 1, got -1.",
    "data.kind=cifar5m data.test_size=null": "data.test_size: CIFAR-5m",
    "probes.evaluation_train_samples=0": "probes.evaluation_train_samples: must be positive or null, got 0.",
    "optimizer=adamw optimizer.momentum=0.9": "optimizer.momentum: AdamW has betas instead; set it to 0.",
}
NONSENSE = {
    "seed": (-1, 1e300, "1:30"),
    "optimizer.lr": (1e-320, 1e18, 0, -0.1, math.nan, math.inf, "1:30"),
    "optimizer.momentum": (1, 1.5, -0.1, math.nan),
    "optimizer.betas": ([1, 0.9], [0.9, math.inf]),
    "optimizer.clip_norm": (0, -1, 1e-320, math.nan),
    "decay.strength": (-1, 1e-320, 1e30, math.nan, math.inf, "1:30"),
    "decay.rules": ([{"match": ".*", "scale": -1}], [{"match": ".*", "scale": 1e300}]),
    "averaging.ema": ([1.5], [1], [0], [-0.1], [math.nan], [1 - 1e-20]),
    "batch_size": (0, -128, 1.5, 10**13, "1:30"),
    "model.width": (0, -1, math.nan),
    "data.image_size": (0, 1e30),
    "execution.threads": (-1, 10**8),
    "sphere_radius": (0, -1, 1e-320),
    "duration": ("0 steps", "-1 steps", "1:30", "nan steps", "200%"),
    "probes.log_every": ("0 steps",),
    "probes.evaluate_every": ("0 epochs", "-1 steps"),
    "branches": (
        [{**SIDE, "start": "500%"}], [{**SIDE, "every": "0 steps"}], [{**SIDE, "name": "main"}], [{**SIDE, "lr": 1e18}],
        [{**SIDE, "lr": math.nan}], [{**SIDE, "strength": -1}], [SIDE, {**SIDE, "name": "Side"}],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return make_plan([])[0].cells[0].config


@pytest.mark.parametrize("setting", BAD_SETTINGS)
def test_a_mistake_gets_one_clear_sentence(setting: str) -> None:
    with pytest.raises(UserError) as error:
        make_plan(re.split(r" (?=data\.|data=|optimizer\.)", setting))
    assert BAD_SETTINGS[setting] in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", NONSENSE)
def test_nonsense_is_refused_wherever_it_is_written(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In an experiment file, and typed: the sentence names the setting, and the exit code is 2."""
    monkeypatch.setenv("WEIGHT_DECAY_OWN_CONFIGS", str(tmp_path))
    (tmp_path / "experiment").mkdir()
    file = tmp_path / "experiment" / "mine.yaml"
    about = {"title": "Mine", "figure": None, "regime": "over_training"}
    for value in NONSENSE[key]:
        file.write_text("# @package _global_\n" + yaml.safe_dump({"about": about, "grid": [{key: [value]}]}))
        with pytest.raises(UserError, match=f"^{re.escape(key)}|mine.yaml: .*{re.escape(key)} says where"):
            make_plan(["experiment=mine", "scale=micro"])
    typed = yaml.safe_dump(NONSENSE[key][0], default_flow_style=True).splitlines()[0]
    with pytest.raises(SystemExit) as left:
        main(["--dry-run", f"{key}={typed}"])
    said = capsys.readouterr().err
    assert left.value.code == 2
    assert said.startswith(f"weight-decay: {key}") and said.count("\n") == 1


@pytest.mark.parametrize("words", [["data=python_text", "model=gpt_micro"], ["model=gpt_micro"]])
def test_an_experiment_with_a_model_of_the_other_regime_is_refused(words: list[str]) -> None:
    off = ["probes=language", "probes.jacobian_every=null", "probes.curvature=null", "averaging.ensemble=null"]
    with pytest.raises(UserError, match=r"is declared for over_training, but its|needs a model for images, got gpt"):
        make_plan(["experiment=fig02_cifar10", "scale=micro", *off, *words])


@pytest.mark.parametrize(
    "change", [{"start": Span(7, "steps")}, {"start": Span(2, "epochs")}, {"duration": Span(0.1, "steps")}]
)
def test_a_branch_that_never_starts_or_has_no_step_is_refused(config: RunConfig, change: dict[str, Span]) -> None:
    clock = Clock(batch_size=4, epoch_samples=16, total_steps=6)
    side = BranchConfig("side", Span(6, "steps"), None, Span(1, "steps"), 0.1, 0.0, True)
    check_branches(dataclasses.replace(config, branches=(side,)), clock)
    with pytest.raises(
        UserError, match=r"branches\[0\]\.(start: .* is step [78], beyond the run's 6|duration: .* one step)"
    ):
        check_branches(dataclasses.replace(config, branches=(dataclasses.replace(side, **change),)), clock)


@pytest.mark.parametrize("window", [OnlyEarly("only_early", Span(6, "steps")), OnlyLate("only_late", Span(500, "%"))])
def test_a_window_without_an_edge_in_the_run_is_refused(window: Window) -> None:
    with pytest.raises(ValueError, match="of 6, so"):
        window.factor(Clock(batch_size=4, epoch_samples=16, total_steps=6))


def test_missing_and_unknown_keys_are_named(config: RunConfig) -> None:
    values = to_dict(config)
    missing: dict[str, Any] = copy.deepcopy(values)
    del missing["optimizer"]["eps"]
    with pytest.raises(UserError, match=r"optimizer\.eps: this setting is missing"):
        build(missing)
    unknown: dict[str, Any] = copy.deepcopy(values)
    unknown["optimizer"]["epsilon"] = 1
    with pytest.raises(UserError, match=r"optimizer\.epsilon: there is no such setting"):
        build(unknown)


def test_a_config_survives_the_round_trip_through_plain_values(config: RunConfig) -> None:
    assert build(to_dict(config)) == config
    assert run_id(build(to_dict(config))) == run_id(config)


def test_a_config_recorded_before_a_setting_existed_is_read_with_the_feature_off(config: RunConfig) -> None:
    values = to_dict(config)
    del values["optimizer"]["dampening"]
    assert build(values) == config


def test_the_identity_is_pinned() -> None:
    """A change here makes every run of a user start anew: it must be meant."""
    assert run_id(make_plan(["seed=3", "decay.strength=0.01"])[0].cells[0].config) == "3099d96432f4"


def test_the_settings_outside_the_identity_are_told_by_their_names(config: RunConfig) -> None:
    kept = to_dict(config, identity_only=True)
    for name, value in to_dict(config).items():
        assert is_execution_setting(name) == (name not in kept), name
        for inner in value if isinstance(value, dict) and name in kept else ():
            # What is off is not in the identity either, and yet a setting of the run.
            assert not is_execution_setting(f"{name}.{inner}") or inner not in kept[name], (name, inner)
    assert is_execution_setting("data.root")


@pytest.mark.parametrize(
    "setting",
    [
        "execution.threads=2",
        "execution.results=elsewhere",
        "execution.progress=false",
        "checkpoint.every_seconds=1",
        "tracking=disabled",
        "data.root=elsewhere",
    ],
)
def test_where_and_how_a_run_is_computed_is_no_part_of_its_identity(config: RunConfig, setting: str) -> None:
    assert run_id(make_plan([setting])[0].cells[0].config) == run_id(config)


@pytest.mark.parametrize(
    "setting",
    [
        "seed=1",
        "decay.strength=0.1",
        "optimizer.lr=0.2",
        "averaging.ema=[0.9]",
        "data.train_size=4096",
        "precision=tf32",
    ],
)
def test_whatever_changes_the_numbers_changes_the_identity(config: RunConfig, setting: str) -> None:
    other = make_plan([setting])[0].cells[0].config
    assert run_id(other) != run_id(config)
    assert folder_name(other) != folder_name(config)


@given(st.integers(1, 10**6), st.sampled_from(["steps", "epochs", "samples", "tokens"]))
def test_a_length_reads_back_what_it_writes(value: int, unit: str) -> None:
    assert Span.parse(str(Span(float(value), unit))) == Span(float(value), unit)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("960 steps", 960),
        ("1 step", 1),
        ("2 epochs", 800),
        ("0.5 epochs", 200),
        ("12.8k samples", 100),
        ("5M samples", 39063),  # 39062.5: halves go up, so that no presentation is left out
        ("8192 tokens", 8),
        ("25%", 250),
    ],
)
def test_lengths_in_steps(text: str, steps: int) -> None:
    assert Span.parse(text).steps(Clock(128, 51200, 8, 1000)) == steps


def test_a_cadence_is_at_least_one_step() -> None:
    assert Span.parse("1 sample").every(Clock(128, 51200)) == 1


def test_a_user_value_beats_the_experiment_and_collapses_its_axis() -> None:
    cells = make_plan(["experiment=demo_over_training", "scale=micro", "optimizer.lr=0.07"])[0].cells
    assert {cell.config.optimizer.lr for cell in cells} == {0.07}
    assert len(cells) == 2
    assert {cell.config.decay.strength for cell in cells} == {0.0, 0.015}


def test_an_experiment_that_is_not_declared_at_a_scale_says_so(words: Callable[..., list[str]]) -> None:
    with pytest.raises(UserError, match="there is no huge"):
        make_plan(["experiment=demo_over_training", "scale=huge"])


def test_a_feature_that_is_off_leaves_the_identity_alone() -> None:
    @dataclass(frozen=True)
    class Grown:
        lr: float
        later: int | None = field(default=None, metadata=off(None))

    assert to_dict(Grown(0.1), identity_only=True) == {"lr": 0.1}
    assert to_dict(Grown(0.1, 2), identity_only=True) == {"lr": 0.1, "later": 2}
    assert to_dict(Grown(0.1)) == {"lr": 0.1, "later": None}
