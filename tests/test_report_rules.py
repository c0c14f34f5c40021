"""The forest figure of decay kinds: strengths chosen on pilots, differences paired by seed."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from weight_decay.errors import UserError
from weight_decay.report.figures.demo import Drawing
from weight_decay.report.figures.rules import (
    best_strengths,
    differences,
    forest,
    passes,
    rate_exponent,
    timescale,
    tuned,
)
from weight_decay.report.figures.style import LIGHT, rc
from weight_decay.report.page.rules import rules_markdown
from weight_decay.report.statistics import paired_interval
from weight_decay.report.tables.read import DECAY, Tables, tables_of


def row(decay: str, strength: float, seed: int, loss: float, status: str = "completed") -> dict[str, object]:
    return {
        "decay": decay, "decay.strength": strength, "seed": seed, "ema/val/loss": loss, "val/loss": loss,
        "effective_lr/adamw": 1e-5, "status": status, "branch": "main", "data": "text",
    }  # fmt: skip


ROWS = pd.DataFrame(
    [row("decoupled", 0.0, seed, 2.0 + 0.1 * seed) for seed in (0, 1, 2, 100)]
    + [row("decoupled", 0.1, seed, 1.9 + 0.1 * seed) for seed in (0, 1, 2, 100)]
    + [row("l1", 0.1, seed, 1.5 + 0.1 * seed) for seed in (0, 1, 2)]  # better, but not on the pilot seed
    + [row("l1", 0.1, 100, 12.0), row("l1", 0.2, 100, 11.0), row("l1", 0.4, 100, 1.0, "diverged")]
    + [row("l1", 0.2, seed, 1.8 + 0.1 * seed + 0.01 * gap) for seed, gap in ((0, -1), (1, 0), (2, 1))]
)


def tables(frame: pd.DataFrame) -> Tables:
    return Tables("decay_rules_under_training", "micro", frame, frame)


def built(drawing: Drawing, frame: pd.DataFrame) -> Figure:
    """The figure of a table, built but not rendered."""
    with matplotlib.rc_context(rc(LIGHT)):
        return drawing.__wrapped__(Path(), tables(frame), LIGHT)


def test_strengths_are_chosen_on_pilot_seeds_and_a_diverged_one_is_not_chosen() -> None:
    best = best_strengths(ROWS, "ema/val/loss")
    assert dict(zip(best["decay"], best["strength"], strict=True)) == {"decoupled": 0.1, "l1": 0.2}
    without = best_strengths(ROWS[ROWS["seed"] < 100], "ema/val/loss")
    assert dict(zip(without["decay"], without["strength"], strict=True)) == {"decoupled": 0.1, "l1": 0.1}


def test_the_strengths_of_constrained_decay_are_its_bounds() -> None:
    rows = [row("constrained", 1.0, 100, loss) | {"decay.bound": bound} for bound, loss in ((2.0, 1.7), (8.0, 1.6))]
    best = best_strengths(pd.concat([ROWS, pd.DataFrame(rows)]), "ema/val/loss").set_index("decay")["strength"]
    assert best["constrained"] == 8.0 and best["l1"] == 0.2


def test_differences_are_paired_and_pilots_enter_no_interval() -> None:
    effects = differences(ROWS, "ema/val/loss", 100.0).set_index(["decay", "against"])
    assert set(effects.index) == {("decoupled", "none"), ("l1", "none"), ("l1", "decoupled")}
    assert (effects["seeds"] == 3).all()
    l1 = effects.loc[("l1", "none")]
    margin = 4.3026527 * 1.0 / np.sqrt(3)  # Student's t with two degrees of freedom, standard deviation 1
    assert (l1["effect"], l1["low"], l1["high"]) == pytest.approx((-20.0, -20.0 - margin, -20.0 + margin))
    assert effects.loc[("l1", "decoupled"), "effect"] == pytest.approx(-10.0)


def test_the_forest_names_every_kind_best_first() -> None:
    figure = built(forest, ROWS)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["l1 (0.2)", "decoupled (0.1)"]
    with pytest.raises(UserError, match="no pair"):
        built(forest, ROWS[ROWS["decay.strength"] > 0])


def test_the_table_has_the_figures_numbers(tmp_path: Path) -> None:
    assert rules_markdown(tmp_path) == "Not run yet."
    (tmp_path / "tables").mkdir()
    rows = ROWS.assign(experiment="decay_rules_under_training", scale="micro", step=1)
    rows["run_id"] = [f"r{number}" for number in range(len(rows))]
    rows["stability/max_attention_logit"] = np.where(rows["decay.strength"] > 0, 3.0, 6.0)
    for kind in ("summary", "curves"):
        rows.to_csv(tmp_path / "tables" / f"decay_rules_under_training-micro.{kind}.csv", index=False)
    lines = rules_markdown(tmp_path).splitlines()
    assert "over 3 seeds, strengths chosen on pilots (seeds: 1)" in lines[0]
    # -0.2 and +-0.01 between seeds; without decay the attention logits are twice as large.
    interval = "−0.2000 [−0.2248, −0.1752]"
    assert f"| l1 | 0.2 | {interval} | {interval} | −0.1000 [−0.1248, −0.0752] | 1 | 0.5 |" in lines


def test_passes_and_tuned_rates_are_drawn() -> None:
    grid = pd.DataFrame(
        [row("decoupled", strength, 0, strength + passes / 100) | {"data.train_tokens": 64 / passes, "optimizer.lr": lr}
         for strength in (0.0, 0.1) for passes in (1, 4) for lr in (0.1, 0.2)]
    )  # fmt: skip
    left, right = built(passes, grid[grid["optimizer.lr"] == 0.1]).axes
    labels = [line.get_label() for line in built(tuned, grid).axes[0].lines]
    assert [line.get_label() for line in left.lines] == ["λ = 0", "λ = 0.1"]
    np.testing.assert_allclose(right.lines[1].get_ydata(), 0.1)
    assert labels == ["η·λ = 0", "η·λ = 0.01", "η·λ = 0.02"]


def test_the_exponent_of_a_constant_timescale_is_minus_one() -> None:
    rows = [
        row("decoupled", strength, seed, abs(np.log(rate * strength / 1e-3)) + 0.01 * seed)
        | {"optimizer.lr": rate, "batch_size": batch, "duration": "100 steps", "step": 100}
        for seed in (0, 1) for rate in (1e-3, 1e-2) for batch in (8, 16) for strength in (0.0, 0.01, 0.1, 1.0, 10.0)
        if strength or seed < 0
    ]  # fmt: skip
    frame = pd.DataFrame(rows).assign(run_id=lambda made: made.index.astype(str))
    assert rate_exponent(frame, "val/loss") == (pytest.approx(-1.0), pytest.approx(0.0, abs=1e-12), 2)
    constant = frame.assign(**{"ema/val/loss": np.log(frame["decay.strength"]) ** 2})
    assert rate_exponent(constant, "ema/val/loss")[0] == pytest.approx(0.0, abs=1e-12)
    figure = built(timescale, frame)
    assert figure.axes[0].get_title(loc="left").startswith("λ ∝ η^p, p = -1")
    assert len(figure.axes[0].lines) == 4


@pytest.mark.parametrize(
    ("tokens", "strength", "metric", "sign"),
    [
        (12_000, 2, "val/loss", -1),
        (12_000, 2, "train/loss", 1),
        (48_000, 0.2, "val/loss", -1),
        (48_000, 2, "val/loss", 1),
    ],
)
def test_what_the_docs_say_of_many_passes_is_in_the_table(tokens: int, strength: float, metric: str, sign: int) -> None:
    root = Path(__file__).resolve().parents[1]
    runs = tables_of(root / "results", "passes_text", "micro").runs
    cells = runs[runs["data.train_tokens"] == tokens].pivot(index="seed", columns=DECAY, values=metric)
    found = paired_interval((sign * (cells[strength] - cells[0.0])).tolist())
    mean, low, high = (
        f"{value:.3f}".replace("0.", ".").replace("-", "−") for value in (found.mean, found.low, found.high)
    )
    said = " ".join((root / "docs" / "regimes.md").read_text().split())
    assert f"[{low}, {high}]" in said and mean in said
