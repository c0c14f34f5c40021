"""Each statistic against another implementation (statsmodels, brute force) or a simulation with a known answer."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from weight_decay.report import statistics as ours

EFFECTS = [0.3, -0.1, 0.8, 0.45, 0.2, 0.61]


def test_interval_and_p_agree_with_statsmodels() -> None:
    from statsmodels.stats.weightstats import DescrStatsW

    oracle = DescrStatsW(EFFECTS)
    found = ours.paired_interval(EFFECTS)
    assert (found.low, found.high) == pytest.approx(oracle.tconfint_mean(0.05))
    assert ours.mean_p(EFFECTS, 0.1) == pytest.approx(oracle.ttest_mean(0.1)[1])


def test_an_interval_excludes_zero_exactly_where_its_p_is_below_the_level() -> None:
    for shift in np.linspace(-1, 1, 41):
        moved = [value + shift for value in EFFECTS]
        found = ours.paired_interval(moved)
        assert (found.low > 0 or found.high < 0) == (ours.mean_p(moved) < 0.05)


def test_equivalence_agrees_with_statsmodels() -> None:
    from statsmodels.stats.weightstats import ttost_paired

    zero = np.zeros(len(EFFECTS))
    for margin in (0.5, 0.7, 1.0):
        assert ours.equivalence_p(EFFECTS, margin) == pytest.approx(
            ttost_paired(np.array(EFFECTS), zero, -margin, margin)[0]
        )


def test_exact_tests_agree_with_counting_every_outcome() -> None:
    signs = list(itertools.product([-1, 1], repeat=6))
    seen = sum(value > 0 for value in EFFECTS)
    far = [row for row in signs if abs(row.count(1) - 3) >= abs(seen - 3)]
    assert ours.sign_p(EFFECTS) == pytest.approx(len(far) / len(signs))
    assert ours.sign_p([0.0, 0.0]) == 1
    assert ours.share_p([1] * 5) == pytest.approx(2 * 0.5**5)
    low = ours.share_interval([1] * 5).low
    assert stats.binom.sf(4, 5, low) == pytest.approx(0.025)


def test_false_discovery_agrees_with_statsmodels_and_leaves_out_what_was_not_run() -> None:
    from statsmodels.stats.multitest import multipletests

    p = [0.001, 0.04, 0.03, 0.9, 0.2]
    assert ours.false_discovery(p) == pytest.approx(multipletests(p, method="fdr_bh")[1])
    with_gap = ours.false_discovery([*p[:2], math.nan, *p[2:]])
    assert math.isnan(with_gap[2]) and [*with_gap[:2], *with_gap[3:]] == pytest.approx(ours.false_discovery(p))


def test_false_discoveries_stay_below_their_rate_in_a_simulation() -> None:
    random, shares = np.random.default_rng(0), []
    for _ in range(300):
        nothing, something = random.normal(0, 1, (30, 10)), random.normal(2, 1, (10, 10))
        q = np.array(ours.false_discovery([ours.mean_p(row) for row in (*nothing, *something)]))
        rejected = q <= 0.05
        shares.append(rejected[:30].sum() / max(rejected.sum(), 1))
    assert 0.01 < np.mean(shares) < 0.06


def test_power_agrees_with_statsmodels() -> None:
    from statsmodels.stats.power import TTestPower

    for count in (3, 10, 30):
        assert ours.power(0.7, 1.4, count) == pytest.approx(TTestPower().power(0.5, count, 0.05), abs=1e-6)
        assert ours.power(ours.detectable(1.4, count), 1.4, count) == pytest.approx(0.8, abs=1e-6)
    # EVIDENCE.md: three seeds see no less than 3.3 paired standard deviations.
    assert ours.detectable(1.0, 3) == pytest.approx(3.3, abs=0.05)


def test_the_interval_of_a_deviation_covers_it() -> None:
    random = np.random.default_rng(1)
    hits = 0
    for sample in random.normal(0, 2.0, (2000, 4)):
        low, high = ours.deviation_interval(float(sample.std(ddof=1)), 4)
        hits += low <= 2.0 <= high
    assert hits / 2000 == pytest.approx(0.95, abs=0.015)


def test_the_bootstrap_is_near_the_interval_of_the_t_test() -> None:
    low, high = ours.bootstrap_interval([0.0, 0.01, 0.02, 1.0, 1.01, 1.02])
    assert high - low > 0.5
    sample = list(np.random.default_rng(2).normal(1, 1, 40))
    assert ours.bootstrap_interval(sample) == pytest.approx(
        (ours.paired_interval(sample).low, ours.paired_interval(sample).high), abs=0.06
    )


def test_what_one_seed_or_no_spread_leaves() -> None:
    assert ours.paired_interval([0.4]).high == math.inf
    assert ours.mean_p([0.4]) == ours.equivalence_p([0.4], 1.0) == 1
    assert ours.detectable(1.0, 1) == math.inf
    # Five equal effects are five signs, not a certainty.
    assert ours.mean_p([0.2] * 5) == pytest.approx(2 * 0.5**5)
    assert ours.equivalence_p([0.2] * 5, 0.1) == 1 and ours.equivalence_p([0.05] * 5, 0.1) < 0.05
    assert ours.improvement([0.0, 1.0, -1.0, 2.0]) == pytest.approx(0.625)
