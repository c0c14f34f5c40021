"""The statistics of the claims: intervals, exact tests, equivalence, power, and false discoveries.

Thin layers over scipy (and statsmodels for power): what they add is the degenerate cases that tables have, namely one
seed, no spread, missing values. An effect is one number for each seed, already paired; `effects` are 1-d and finite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
LEVEL = 1 - CONFIDENCE
POWER = 0.8
DRAWS = 2000
"""Bootstrap resamples."""


@dataclass(frozen=True)
class Interval:
    """Mean and confidence interval over seeds; infinite for one seed."""

    mean: float
    low: float
    high: float
    deviation: float
    count: int


def paired_interval(effects: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Student's t interval of the mean of `effects` (n,), n ≥ 1."""
    values = np.asarray(effects, dtype=float)
    count, mean = len(values), float(values.mean())
    if count == 1:
        return Interval(mean, -math.inf, math.inf, math.nan, 1)
    deviation = float(values.std(ddof=1))
    half = float(stats.t.ppf(0.5 + confidence / 2, count - 1)) * deviation / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, deviation, count)


def share_interval(outcomes: Sequence[float]) -> Interval:
    """Share of ones among `outcomes` (0 or 1) and its exact interval (Clopper-Pearson)."""
    ones, count = round(math.fsum(outcomes)), len(outcomes)
    exact = stats.binomtest(ones, count).proportion_ci(CONFIDENCE, method="exact")
    share = ones / count
    return Interval(share, float(exact.low), float(exact.high), math.sqrt(share * (1 - share)), count)


def mean_p(effects: Sequence[float], threshold: float = 0.0) -> float:
    """Two-sided p of the mean being `threshold` (paired t); the sign test where there is no spread; 1 for one seed."""
    values = np.asarray(effects, dtype=float)
    if len(values) < 2:
        return 1.0
    if np.ptp(values) == 0:
        return sign_p(effects, threshold)
    return float(stats.ttest_1samp(values, threshold).pvalue)


def sign_p(effects: Sequence[float], threshold: float = 0.0) -> float:
    """Two-sided p of the sign test: as many effects above `threshold` as below. Ties are left out."""
    above = sum(value > threshold for value in effects)
    below = sum(value < threshold for value in effects)
    return float(stats.binomtest(above, above + below, 0.5).pvalue) if above + below else 1.0


def share_p(outcomes: Sequence[float]) -> float:
    """Two-sided p of the exact binomial test: each outcome (0 or 1) is 1 as often as 0."""
    return float(stats.binomtest(round(math.fsum(outcomes)), len(outcomes), 0.5).pvalue)


def equivalence_p(effects: Sequence[float], margin: float) -> float:
    """p of the two one-sided t tests (TOST): small where the mean lies within ± `margin`; 1 for one seed.

    Without spread the t test says nothing: then the exact probability that n coins all fall the same way.
    """
    values = np.asarray(effects, dtype=float)
    if len(values) < 2:
        return 1.0
    if np.ptp(values) == 0:
        return 0.5 ** len(values) if abs(values[0]) < margin else 1.0
    below = stats.ttest_1samp(values, -margin, alternative="greater").pvalue
    above = stats.ttest_1samp(values, margin, alternative="less").pvalue
    return float(max(below, above))


def false_discovery(p_values: Sequence[float]) -> list[float]:
    """q of each p (Benjamini and Hochberg): reject q ≤ .05 and one in twenty rejections is false, on average.

    nan (not run) stays nan and counts as no test.
    """
    p = np.asarray(p_values, dtype=float)
    q, known = np.full(len(p), np.nan), ~np.isnan(p)
    if known.any():
        q[known] = stats.false_discovery_control(p[known], method="bh")
    return [float(value) for value in q]


def power(effect: float, deviation: float, count: int, level: float = LEVEL) -> float:
    """Chance that `count` seeds find a mean of `effect` at `deviation` between seeds (two-sided t, noncentral t)."""
    if count < 2:
        return 0.0
    if deviation == 0:
        return float(effect != 0)
    freedom, shift = count - 1, abs(effect) / deviation * math.sqrt(count)
    critical = float(stats.t.ppf(1 - level / 2, freedom))
    return float(stats.nct.sf(critical, freedom, shift) + stats.nct.cdf(-critical, freedom, shift))


def detectable(deviation: float, count: int, level: float = LEVEL) -> float:
    """The smallest mean that `count` seeds find with probability POWER; infinite for one seed."""
    if count < 2:
        return math.inf
    if deviation == 0:
        return 0.0
    low, high = 0.0, 1.0
    while power(high, 1.0, count, level) < POWER:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle, 1.0, count, level) >= POWER else (middle, high)
    return high * deviation


def deviation_interval(deviation: float, count: int) -> tuple[float, float]:
    """Confidence interval of a standard deviation seen over `count` seeds (chi-square): wide where they are few."""
    if count < 2:
        return 0.0, math.inf
    freedom, tail = count - 1, (1 - CONFIDENCE) / 2
    high, low = (freedom / stats.chi2.ppf([tail, 1 - tail], freedom)) ** 0.5
    return deviation * float(low), deviation * float(high)


def improvement(effects: Sequence[float], threshold: float = 0.0) -> float:
    """Probability of improvement, paired: the share of seeds with an effect above `threshold`, ties counted half."""
    values = np.asarray(effects, dtype=float)
    return float((values > threshold).mean() + 0.5 * (values == threshold).mean())


def bootstrap_interval(effects: Sequence[float]) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean.

    As rliable's, but not stratified: each seed has a draw of the data of its own, so seed and draw are resampled
    together.
    """
    values = np.asarray(effects, dtype=float)
    totals = np.random.default_rng(0).choice(values, (DRAWS, len(values))).sum(axis=1)
    low, high = np.quantile(totals / len(values), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
