"""The divergence monitor: what counts as diverged, and at which step."""

from __future__ import annotations

import math

import numpy as np
import pytest

from weight_decay.probes.divergence import DivergenceMonitor


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
    losses[600:609] = 9.0
    assert monitor(patience=10).update(0, losses.tolist()) is None


def test_the_start_of_a_run_is_exempt() -> None:
    losses = np.concatenate([np.full(20, 2.3), np.full(20, 1.0), np.full(60, 2.3)])
    assert monitor(grace=1000).update(0, losses.tolist()) is None
    assert monitor(grace=0).update(0, losses.tolist()) == 40


def test_the_verdict_does_not_depend_on_how_the_losses_come_in() -> None:
    losses = np.concatenate([falling(1000, 10.8, 3.0, 0.05), np.full(200, 7.5)]).tolist()
    whole = monitor(patience=100).update(0, losses)
    pieces, first = monitor(patience=100), None
    for i in range(0, 1200, 7):
        again = monitor(patience=100)
        again.load_state_dict(pieces.state_dict())
        pieces = again
        first = pieces.update(i, losses[i : i + 7])
        if first is not None:
            break
    assert whole == first == 1000
