"""The divergence monitor: what counts as diverged, and at which step."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from weight_decay.cli import make_plan
from weight_decay.config.run import run_id
from weight_decay.config.span import Clock
from weight_decay.errors import UserError
from weight_decay.probes.divergence import DivergenceMonitor
from weight_decay.training.assemble import divergence_monitor

PAPER = Path(__file__).resolve().parents[1] / "results" / "reference" / "paper_curves.csv"
STEPS = 50_000


def monitor(**changes: float) -> DivergenceMonitor:
    values = {"threshold": 0.5, "patience": 10, "grace": 50} | changes
    return DivergenceMonitor(values["threshold"], int(values["patience"]), int(values["grace"]))


def falling(steps: int, start: float, end: float, noise: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return end + (start - end) * np.exp(-np.arange(steps) / (steps / 6)) + noise * rng.standard_normal(steps)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_loss_is_found_at_its_step(bad: float) -> None:
    losses = [2.0] * 30
    losses[17] = bad
    assert monitor().update(100, losses) == 117


@pytest.mark.parametrize(("start", "end", "noise"), [(10.8, 3.0, 0.1), (2.3, 0.0, 0.02), (2.3, 0.9, 0.25)])
def test_healthy_runs_of_both_regimes_do_not_count(start: float, end: float, noise: float) -> None:
    watch = monitor()
    assert watch.update(0, falling(2000, start, end, noise).tolist()) is None
    assert watch.score < 0.5


def test_a_loss_that_climbs_back_is_found_where_it_began() -> None:
    losses = np.concatenate([falling(1000, 10.8, 3.0, 0.05), np.full(200, 7.5)])
    watch = monitor(patience=100)
    found = [watch.update(i, losses[i : i + 25].tolist()) for i in range(0, 1200, 25)]
    assert next(step for step in found if step is not None) == 1000


def test_a_short_spike_is_no_divergence() -> None:
    losses = falling(1000, 10.8, 3.0, 0.05)
    losses[600:690] = 9.0
    assert monitor(patience=100).update(0, losses.tolist()) is None


def test_a_loss_on_its_way_back_is_given_time() -> None:
    # One of our runs on images: from .02 to 2.1 at once, and back within two or three hundred steps.
    back = 0.02 + 2.1 * np.exp(-np.arange(900) / 250)
    losses = np.concatenate([falling(1000, 2.3, 0.0, 0.01), back])
    assert monitor(patience=100).update(0, losses.tolist()) is None
    losses[1000:] = 0.02 + 2.1 * np.exp(-np.arange(900) / 2500)
    assert monitor(patience=100).update(0, losses.tolist()) == 1000


def test_a_loss_that_hovers_near_chance_with_a_large_decay_is_no_divergence() -> None:
    # η = .5 with λ = .06, measured: 2.3 at the start, 1.9 for long, then 2.1.
    losses = np.concatenate([falling(600, 2.3, 1.9, 0.1), 2.12 + 0.1 * np.random.default_rng(1).standard_normal(400)])
    assert monitor(patience=100).update(0, losses.tolist()) is None


def test_the_start_of_a_run_is_exempt() -> None:
    losses = np.concatenate([np.full(20, 2.3), np.full(20, 1.0), np.full(60, 2.3)])
    assert monitor(grace=1000).update(0, losses.tolist()) is None
    assert monitor(grace=0).update(0, losses.tolist()) == 40


@pytest.mark.parametrize("piece", [7, 20, 333])
def test_the_verdict_does_not_depend_on_how_the_losses_come_in(piece: int) -> None:
    losses = np.concatenate([falling(1000, 10.8, 3.0, 0.05), np.full(200, 3.5)]).tolist()
    whole = DivergenceMonitor(0.5, 100, 50, 0.25, 200)
    pieces, first = DivergenceMonitor(0.5, 100, 50, 0.25, 200), None
    for i in range(0, 1200, piece):
        again = DivergenceMonitor(0.5, 100, 50, 0.25, 200)
        again.load_state_dict(pieces.state_dict())
        pieces = again
        first = pieces.update(i, losses[i : i + piece])
        if first is not None:
            break
    assert whole.update(0, losses) == first == 1000


# -- the paper's own curves ----------------------------------------------------------------------------------------


def paper(figure: str) -> dict[tuple[str, ...], np.ndarray]:
    """Training loss at each of 50,000 steps for each curve, with a reader's step where it left the axes (else NaN)."""
    curves: dict[tuple[str, ...], list[tuple[float, float]]] = defaultdict(list)
    with PAPER.open() as file:
        for row in csv.DictReader(file):
            if row["figure"] == figure:
                curves[tuple(row[n] for n in ("lr", "weight_decay", "precision", "seed", "note"))].append(
                    (float(row["x"]), float(row["y"]))
                )
    made = {}
    for key, points in curves.items():
        x, y = np.array(points).T
        step = np.arange(STEPS, dtype=float)
        losses = np.interp(step, x, y, right=math.nan)
        losses[step < x[0]] = 10.9 + (y[0] - 10.9) * (step[step < x[0]] / x[0]) ** 0.2
        made[key] = losses + 0.03 * np.random.default_rng(len(made)).standard_normal(STEPS)
    return made


def as_configured(*words: str, first: int = 0, last: int = STEPS) -> DivergenceMonitor:
    """As a run of 50,000 steps of text has it, if not told otherwise."""
    words = words or ("data=openwebtext", "model=gpt2_small", "probes=language", "batch_size=256")
    clock = Clock(batch_size=256, epoch_samples=35_000_000, tokens_per_sample=256, total_steps=STEPS)
    return divergence_monitor(make_plan(list(words))[0].cells[0].config, clock, first, last)


FIG8 = paper("8")
LEFT = {key: int(np.argmax(np.isnan(losses))) for key, losses in FIG8.items() if np.isnan(losses[-100:]).all()}


def test_in_three_of_twelve_curves_of_fig_8_the_loss_leaves_the_axes() -> None:
    assert len(FIG8) == 12
    assert sorted(LEFT.values()) == [29011, 30465, 44248]
    assert {key[1:3] for key in LEFT} == {("0.0", "bf16_autocast")}


@pytest.mark.parametrize("after", ["stays at 3.5", "climbs to 5", "NaN"])
@pytest.mark.parametrize("key", LEFT, ids=lambda key: f"seed {key[3]}")
def test_fig_8_diverges_where_a_reader_would_say(key: tuple[str, ...], after: str) -> None:
    losses, left = FIG8[key].copy(), LEFT[key]
    steps = np.arange(STEPS - left)
    noise = 0.03 * np.random.default_rng(9).standard_normal(len(steps))
    losses[left:] = {
        "stays at 3.5": 3.5 + noise,
        "climbs to 5": 5 - 1.55 * np.exp(-steps / 500) + noise,
        "NaN": np.where(steps < 400, 3.45 + noise, math.nan),
    }[after]
    found = as_configured().update(0, losses.tolist())
    assert found is not None and abs(found - left) < 500


@pytest.mark.parametrize("key", [key for key in FIG8 if key not in LEFT], ids=lambda key: " ".join(key[1:4]))
def test_the_other_curves_of_fig_8_do_not_diverge(key: tuple[str, ...]) -> None:
    # The curve ends a step before the run does.
    assert as_configured().update(0, FIG8[key][:-100].tolist()) is None


@pytest.mark.parametrize(("height", "back"), [(0.4, 800), (2.0, 400), (7.0, 300)])
def test_a_spike_of_text_that_comes_back_is_no_divergence(height: float, back: float) -> None:
    losses = next(losses for key, losses in FIG8.items() if key not in LEFT)[:-100].copy()
    losses[20_000:] += height * np.exp(-np.arange(len(losses) - 20_000) / back)
    assert as_configured().update(0, losses.tolist()) is None


def test_a_slow_rise_in_the_middle_as_with_a_large_decay_is_no_divergence() -> None:
    losses = next(losses for key, losses in FIG8.items() if key not in LEFT)[:-100].copy()
    losses += 0.4 * np.exp(-(((np.arange(len(losses)) - 20_000) / 8000) ** 2))
    assert as_configured().update(0, losses.tolist()) is None


def test_images_have_no_bar_for_rises_and_a_branch_its_own_patience() -> None:
    assert as_configured().rise == 0.25 and as_configured().patience == 2500
    assert as_configured("batch_size=256").rise is None
    assert as_configured(first=30_000, last=40_000).patience == 500
    assert as_configured(first=30_000, last=30_200).patience == 100


def test_a_loss_of_images_hovers_and_rises_without_diverging() -> None:
    # As in our own runs: down to 0.1, up to 0.8 within some dozen steps, and hovering there.
    rng = np.random.default_rng(0)
    losses = np.concatenate([falling(300, 2.3, 0.1, 0.02), 0.8 + 0.15 * rng.standard_normal(700)]).tolist()
    assert DivergenceMonitor(0.5, 100, 50).update(0, losses) is None
    assert DivergenceMonitor(0.5, 100, 50, 0.25, 200).update(0, losses) == 300


def test_the_settings_are_checked_and_leave_the_identity_of_published_runs_alone() -> None:
    def config(*words: str):  # type: ignore[no-untyped-def]
        return make_plan(list(words))[0].cells[0].config

    assert run_id(config()) != run_id(config("divergence.text_rise=0.5"))
    assert run_id(config()) != run_id(config("divergence.lasting=10%"))
    with pytest.raises(UserError, match=r"divergence\.text_rise: must be positive, or 0"):
        config("divergence.text_rise=-1")
