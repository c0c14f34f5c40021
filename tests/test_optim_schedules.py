"""End points of every schedule, and the effective LR that a matched run gets."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from weight_decay.errors import UserError
from weight_decay.optim.schedules import MatchedEffectiveLR, constant, two_phase, warmup_cosine


def test_constant() -> None:
    schedule = constant(lr=0.1)
    assert [schedule(step) for step in (0, 1, 10**9)] == [0.1, 0.1, 0.1]


def test_two_phase_drops_exactly_at_its_step() -> None:
    schedule = two_phase(lr=0.1, drop_step=250, final_lr=1e-3)
    assert [schedule(step) for step in (0, 249, 250, 499, 10**6)] == [0.1, 0.1, 1e-3, 1e-3, 1e-3]


def test_warmup_cosine_end_points_of_the_paper() -> None:
    schedule = warmup_cosine(lr=6e-4, warmup_steps=400, decay_steps=50_000, final_lr=6e-5)
    assert schedule(0) == 0.0
    assert schedule(1) == pytest.approx(6e-4 / 400, rel=1e-12)
    assert schedule(399) == pytest.approx(6e-4 * 399 / 400, rel=1e-12)
    assert schedule(400) == 6e-4
    assert schedule(401) < 6e-4
    assert schedule(25_200) == pytest.approx((6e-4 + 6e-5) / 2, rel=1e-12)
    assert schedule(49_999) > 6e-5
    assert schedule(50_000) == 6e-5
    assert schedule(60_000) == 6e-5
    # Fig 7: the effective LR starts at 2.56e-6 with a weight norm of 235.
    assert schedule(400) / 235 == pytest.approx(2.56e-6, rel=0.005)


def test_warmup_cosine_without_warmup_starts_at_the_peak_and_only_falls() -> None:
    schedule = warmup_cosine(lr=1.0, warmup_steps=0, decay_steps=10, final_lr=0.0)
    rates = [schedule(step) for step in range(12)]
    assert rates[0] == 1.0
    assert rates[10:] == [0.0, 0.0]
    assert all(a > b for a, b in itertools.pairwise(rates[:11]))
    assert rates[1] == pytest.approx(math.cos(math.pi / 20) ** 2)


@pytest.mark.parametrize("power", [1, 2])
def test_matched_whole_norm_gives_the_reference_effective_lr(power: Any) -> None:
    steps, rates, norms = [0, 100, 300], [1e-3, 6e-4, 2e-4], [10.0, 8.0, 4.0]
    schedule = MatchedEffectiveLR(steps, rates, norms, "whole", power)
    current = torch.tensor([3.0, 4.0, 12.0])  # whole norm 13
    for step in (0, 40, 100, 250, 300, 1000):
        reference = np.interp(step, steps, rates) / np.interp(step, steps, norms) ** power
        eta = schedule.lr(step, current)
        assert eta.shape == ()
        assert eta.item() / 13.0**power == pytest.approx(reference, rel=1e-6)


def test_matched_per_matrix_gives_each_parameter_its_own() -> None:
    schedule = MatchedEffectiveLR([0, 10], [0.1, 0.2], [[1.0, 2.0], [3.0, 2.0]], "per_matrix", 1)
    eta = schedule.lr(5, torch.tensor([4.0, 6.0]))
    torch.testing.assert_close(eta, torch.tensor([0.15 * 4 / 2, 0.15 * 6 / 2]))


def test_matching_a_run_against_itself_gives_its_own_schedule() -> None:
    rates, norms = np.linspace(1e-3, 1e-4, 50), np.linspace(235.0, 436.0, 50)
    schedule = MatchedEffectiveLR(np.arange(50), rates, norms, "whole", 1)
    for step in range(50):
        assert schedule.lr(step, torch.tensor([norms[step]])).item() == pytest.approx(rates[step], rel=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: constant(-0.1),
        lambda: constant(float("nan")),
        lambda: two_phase(0.1, 10, -1e-3),
        lambda: warmup_cosine(0.1, 10, 10, 0.0),
        lambda: warmup_cosine(0.1, -1, 10, 0.0),
        lambda: MatchedEffectiveLR([], [], [], "whole", 1),
        lambda: MatchedEffectiveLR([1, 0], [0.1, 0.1], [1.0, 1.0], "whole", 1),
        lambda: MatchedEffectiveLR([0, 1], [0.1], [1.0, 1.0], "whole", 1),
        lambda: MatchedEffectiveLR([0, 1], [0.1, 0.1], [1.0, 1.0], "per_matrix", 1),
        lambda: MatchedEffectiveLR([0, 1], [0.1, 0.1], [1.0, 0.0], "whole", 1),
        lambda: MatchedEffectiveLR([0, 1], [0.1, 0.1], [1.0, float("nan")], "whole", 1),
    ],
)
def test_bad_input_is_refused(make: Any) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert str(caught.value).endswith(".")
