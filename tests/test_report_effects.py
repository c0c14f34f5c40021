from __future__ import annotations

import json
from pathlib import Path

import pytest

import synthetic_runs
from synthetic_runs import over_training_run, under_training_run, write_demo, write_experiment, write_run
from weight_decay.errors import UserError
from weight_decay.report.claims.demo import (
    demo_effects,
    effects_text,
    over_training_effect,
    under_training_effect,
)
from weight_decay.report.tables.collect import collect
from weight_decay.report.tables.read import tables_of


def _verdicts(effect) -> list[str]:
    return [finding.verdict for finding in effect.findings]


def test_the_numbers_are_those_the_runs_were_made_of(tmp_path: Path) -> None:
    write_demo(tmp_path)
    collect(tmp_path)
    over, under, replay = demo_effects(tmp_path)
    assert [row[0] for row in over.rows] == [
        "η = 0.3, λ = 0.015", "η = 0.3, λ = 0", "η = 0.02, λ = 0.015", "η = 0.02, λ = 0",
    ]  # fmt: skip
    assert over.rows[0][1:] == ["39.4 %", "22.4 %", "23.7 %", "92", "111", "20"]
    assert over.rows[3][1:] == ["74.3 %", "73.3 %", "73.6 %", "623", "657", "36"]
    assert _verdicts(over) == ["yes"] * 3
    assert [row[3:5] for row in under.rows] == [["1.526", "1.516"], ["1.510", "1.489"]]
    assert [row[-1] for row in under.rows] == ["321", "151"]
    # The rate ends at a tenth of 1e-2: 1e-3 / 321 and 1e-3 / 151.
    assert [row[5] for row in under.rows] == ["3.12e-06", "6.62e-06"]
    assert _verdicts(under) == ["yes"] * 3
    assert replay.rows == [["share of float32's decay that is kept", "0.0 %", "85.0 %", "86.0 %", "100.1 %", "100.0 %"]]
    assert _verdicts(replay) == ["yes"] * 4
    text = effects_text([over, under, replay])
    assert "scale micro · data procedural · 1 seed" in text and text.count("One seed:") == 3


def test_verdicts_turn_with_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Swap the outcomes of decay and no decay: every verdict must turn into its opposite."""
    table = synthetic_runs.OVER_TRAINING
    swapped = {key: table[key[0], 0.015 if key[1] == 0 else 0.0] for key in table}
    monkeypatch.setattr(synthetic_runs, "OVER_TRAINING", swapped)
    reverse = dict(zip(synthetic_runs.UNDER_TRAINING, reversed(synthetic_runs.UNDER_TRAINING.values()), strict=True))
    monkeypatch.setattr(synthetic_runs, "UNDER_TRAINING", reverse)
    turned = {"foreach": 1.0, "fused": 0.1, "nearest": 0.1, "stochastic": 0.9, "kahan": 1.1}
    monkeypatch.setattr(synthetic_runs, "REPLAY", turned)
    write_demo(tmp_path)
    collect(tmp_path)
    over, under, replay = demo_effects(tmp_path)
    assert _verdicts(over) == ["no"] * 3
    assert _verdicts(under) == ["no"] * 3
    assert _verdicts(replay) == ["no"] * 4


def test_the_demo_cannot_tell_what_is_below_its_resolution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A final loss apart by .001 with one seed, or any on data whose spread between seeds is not known."""
    near = {0.0: (1.693, 1.511, 1.516, 321.0), 0.05: (1.734, 1.510, 1.489, 151.0)}
    monkeypatch.setattr(synthetic_runs, "UNDER_TRAINING", near)
    write_demo(tmp_path)
    collect(tmp_path)
    under = demo_effects(tmp_path)[1]
    assert _verdicts(under) == ["yes", "cannot tell", "yes"]
    assert "below the resolution of 0.009" in under.findings[1].numbers
    cells = [write_run(tmp_path / "other", under_training_run(decay, data="python_text")) for decay in (0.0, 0.05)]
    write_experiment(tmp_path / "other", "demo_under_training", cells, "under_training")
    collect(tmp_path / "other")
    unknown = under_training_effect(tables_of(tmp_path / "other", "demo_under_training", "micro"))
    assert _verdicts(unknown) == ["cannot tell"] * 3


def test_several_seeds_give_mean_spread_and_an_interval_by_the_protocol(tmp_path: Path) -> None:
    write_demo(tmp_path, seeds=(0, 1, 2))
    collect(tmp_path)
    over, under, replay = demo_effects(tmp_path)
    # Seeds shift errors by 0, 0.4 and 0.8 points: mean + 0.4, standard deviation 0.4.
    assert over.rows[0][3] == "24.1 ± 0.4 %"
    assert under.rows[1][3] == "1.514 ± 0.004"
    assert under.findings[1].numbers.startswith("+0.013 [+0.013, +0.013] nats")
    assert "One seed" not in effects_text([over, under, replay])


def test_a_diverged_cell_is_shown_as_such_and_leaves_the_verdict_open(tmp_path: Path) -> None:
    cells = [write_run(tmp_path, under_training_run(0.0, status="diverged"))]
    cells.append(write_run(tmp_path, under_training_run(0.05)))
    write_experiment(tmp_path, "demo_under_training", cells, "under_training")
    collect(tmp_path)
    effect = under_training_effect(tables_of(tmp_path, "demo_under_training", "micro"))
    assert effect.rows[0][0] == "λ = 0 — 1 of 1 diverged (step 2000)" and effect.rows[0][2] == "–"
    assert effect.findings[1].verdict == "cannot tell"


def test_metrics_that_were_not_measured_are_dashes(tmp_path: Path) -> None:
    cells = []
    for lr, decay in synthetic_runs.OVER_TRAINING:
        run = over_training_run(lr, decay)
        run.rows = [{name: row[name] for name in ("step", "epoch", "lr", "test/error")} for row in run.rows]
        cells.append(write_run(tmp_path, run))
    write_experiment(tmp_path, "demo_over_training", cells, "over_training")
    collect(tmp_path)
    effect = over_training_effect(tables_of(tmp_path, "demo_over_training", "micro"))
    assert effect.rows[0][1:] == ["39.4 %", "–", "23.7 %", "–", "–", "–"]
    assert _verdicts(effect) == ["yes", "cannot tell", "cannot tell"]


def test_absent_and_empty_tables_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run demo_over_training first"):
        demo_effects(tmp_path)
    cell = write_run(tmp_path, over_training_run(0.3, 0.0, status="failed"))
    path = write_experiment(tmp_path, "demo_over_training", [cell], "over_training")
    assert json.loads(path.read_text())["cells"]
    collect(tmp_path)
    with pytest.raises(UserError, match="No run of demo_over_training at scale micro has finished"):
        demo_effects(tmp_path)
