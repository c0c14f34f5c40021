"""Every kind of weight decay as a run: from the command line's words to the record, through stops and branches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import read_metrics, read_summary
from test_run import LABELS, folder_of, stop_after
from weight_decay.config.groups import OnlyEarly, OnlyLate, Points
from weight_decay.config.plain import build_dataclass, to_dict
from weight_decay.config.registry import DECAY_KINDS
from weight_decay.config.run import RunConfig, build, run_id
from weight_decay.config.span import Clock
from weight_decay.errors import UserError
from weight_decay.experiments.help import information
from weight_decay.training.run import run

Tiny = Callable[..., RunConfig]
# Those whose rule keeps something of its own, and one that does not.
STATEFUL = ["starting_point", "constrained", "rotational", "spectral", "norm_control", "cautious"]
SETTINGS = {"spectral": "decay.every='2 steps'", "constrained": "decay.bound_after='2 steps'"}
BRANCH = "'branches=[{name: tail, start: 2 steps, every: null, duration: 2 steps, lr: 0.001, strength: 0.2, "


def words(kind: str, more: str = "") -> str:
    return f"decay={kind} decay.strength=0.1 duration='4 steps' {SETTINGS.get(kind, '')} {more}"


@pytest.mark.parametrize("kind", STATEFUL)
def test_a_run_and_its_branch_go_on_bitwise(tiny: Tiny, kind: str, tmp_path: Path, monkeypatch: Any) -> None:
    branch = BRANCH + "keep_optimizer_state: true}]'"
    whole = tiny("text", words(kind, f"{branch} execution.results={tmp_path / 'whole'}"))
    assert run(whole, LABELS) == "completed"
    halved = tiny("text", words(kind, f"{branch} execution.results={tmp_path / 'halved'}"))
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert run(halved, LABELS) == "interrupted"
    assert run(halved, LABELS) == "completed"
    for folder in ("", "branches/tail-000000002"):
        assert read_metrics(folder_of(halved) / folder) == read_metrics(folder_of(whole) / folder)
    assert read_summary(folder_of(halved))["weights_sha256"] == read_summary(folder_of(whole))["weights_sha256"]


def test_a_branch_that_starts_anew_is_pulled_to_where_it_branched(tiny: Tiny) -> None:
    """L2-SP in fine-tuning: without the trunk's state the starting point is the snapshot."""
    far = BRANCH.replace("lr: 0.001, strength: 0.2", "lr: 0.01, strength: 90.0")
    norms = {}
    for keep in ("true", "false"):
        config = tiny("text", words("starting_point", f"{far} keep_optimizer_state: {keep}}}]' optimizer.lr=0.1"))
        run(config, LABELS)
        branch, trunk = folder_of(config) / "branches" / "tail-000000002", folder_of(config)
        before, after = (
            next(row["weights/norm"] for row in read_metrics(folder) if row["step"] == step and "weights/norm" in row)
            for folder, step in ((trunk, 2), (branch, 4))
        )
        norms[keep] = abs(after / before - 1)
    assert norms["false"] < norms["true"] / 3, norms


@pytest.mark.parametrize("regime", ["vision", "text"])
def test_every_kind_trains(tiny: Tiny, regime: str) -> None:
    kinds = ["independent", "l1", "elastic_net", "squared_lr", "adamc", "stable", "hyperball"]
    digests = set()
    for kind in [*kinds, "cautious", "matrices", "decoupled"]:
        config = tiny(regime, words(kind, "decay.strength=0.02 probes.jacobian_every=null"))
        assert run(config, LABELS) == "completed", kind
        digests.add(read_summary(folder_of(config))["weights_sha256"])
    if regime == "text":  # SGD without momentum at a constant rate knows no difference between some of them
        assert len(digests) == len(kinds) + 3


def test_muon_trains_and_says_what_it_is(tiny: Tiny) -> None:
    config = tiny("text", words("cautious", "optimizer=muon optimizer.lr=0.01"))
    assert run(config, LABELS) == "completed"
    logged = [row for row in read_metrics(folder_of(config)) if "batch/loss" in row]
    assert logged[-1]["effective_lr/adam_coordinate"] > 0  # of what AdamW steps


def test_a_window_is_recorded_and_changes_the_run(tiny: Tiny) -> None:
    window = "decay.window={kind: only_late, start: 2 steps}"
    config = tiny("text", words("decoupled", f"'{window}' probes.log_every='1 step'"))
    run(config, LABELS)
    logged = [row["weight_decay"] for row in read_metrics(folder_of(config)) if "batch/loss" in row]
    assert logged == [0.0, 0.0, 0.1, 0.1]
    early, none = (
        tiny("text", words("decoupled", f"decay.strength={strength} 'decay.window={{kind: only_early, until: 0%}}'"))
        for strength in (0.1, 0.0)
    )
    for each in (early, none):
        run(each, LABELS)
    assert read_summary(folder_of(early))["weights_sha256"] == read_summary(folder_of(none))["weights_sha256"]


CLOCK = Clock(batch_size=4, epoch_samples=400, total_steps=200)


def test_windows_are_functions_of_the_step() -> None:
    early = build_dataclass(OnlyEarly, {"kind": "only_early", "until": "1 epoch"}).factor(CLOCK)
    late = build_dataclass(OnlyLate, {"kind": "only_late", "start": "50%"}).factor(CLOCK)
    assert [early(99), early(100), late(99), late(100)] == [1, 0, 0, 1]
    points = {"kind": "points", "at": ["10%", "20%", "20%", "200 steps"], "factors": [0, 1, 3, 2]}
    ramp = build_dataclass(Points, points).factor(CLOCK)
    assert [ramp(step) for step in (0, 20, 30, 39, 40, 120, 199, 500)] == [0, 0, 0.5, 0.95, 3, 2.5, 2 + 1 / 160, 2]


REFUSED = {
    "decay=stable decay.strength=0.1 optimizer=muon": "stable is for sgd and adamw, not for muon",
    "decay=cautious decay.strength=0.1 precision=float16_autocast": "set optimizer.kernel to foreach",
    "decay=hyperball decay.strength=1 sphere_radius=1": "holds each parameter's norm already",
    "decay=elastic_net decay.l1_ratio=2": "decay.l1_ratio: must be in [0, 1]",
    "decay=spectral decay.match=\"'('\"": "decay.match: '(' is not a regular expression",
    "decay=adamc decay.corrected=\"'['\"": "decay.corrected: '[' is not a regular expression",
    "decay=constrained decay.bound=0": "decay.bound: must be positive",
    "decay=norm_control decay.ratio=-1": "decay.ratio: must not be negative",
    "decay=decoupled decay.ratio=1": "decay.ratio: there is no such setting",
    "optimizer=muon optimizer.kind=adamw optimizer.momentum=0 optimizer.nesterov=false": "matrices: only muon",
    "'decay.window={kind: points, at: [50%], factors: [1, 2]}'": "decay.window.at: 1 lengths for 2 factors",
    "'decay.window={kind: never}'": "decay.window.kind: must be one of only_early, only_late, points",
}


@pytest.mark.parametrize("more", REFUSED)
def test_what_means_nothing_is_refused_in_one_sentence(tiny: Tiny, more: str) -> None:
    with pytest.raises(UserError) as refused:
        tiny("text", more)
    assert REFUSED[more] in str(refused.value) and str(refused.value).count("\n") == 0


def test_muon_of_images_and_a_matched_rule_are_refused(tiny: Tiny) -> None:
    with pytest.raises(UserError, match="convolutions"):
        tiny("vision", "optimizer=muon")
    matched = "schedule=matched_effective_lr schedule.reference_strength=0.1"
    with pytest.raises(UserError, match="matched_effective_lr"):
        tiny("text", f"decay=cautious decay.strength=0.1 {matched}")
    tiny("text", f"decay=cautious decay.strength=0 {matched}")  # what the control of a rule needs


def test_points_out_of_order_are_one_sentence(tiny: Tiny) -> None:
    config = tiny("text", "'decay.window={kind: points, at: [50%, 10%], factors: [1, 0]}'")
    with pytest.raises(UserError, match=r"decay\.window\.at: must be in order"):
        run(config, LABELS)


def test_a_config_from_before_windows_keeps_its_run_id(tiny: Tiny) -> None:
    config = tiny("text", "")
    recorded = to_dict(config)
    del recorded["decay"]["window"], recorded["optimizer"]["matrices"]
    assert run_id(build(recorded)) == run_id(config)
    assert run_id(tiny("text", "'decay.window={kind: only_early, until: 50%}'")) != run_id(config)


def test_info_lists_every_kind_with_one_line() -> None:
    said = information(())
    for kind in DECAY_KINDS.names():
        line = next(line for line in said.splitlines() if line.startswith(f"  {kind} "))
        assert len(line) < 160 and len(line.split()) > 5, kind
    assert len(DECAY_KINDS.names()) >= 16
