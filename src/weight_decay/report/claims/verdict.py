"""Claims: one sentence each, an effect measured seed by seed, its 95 % interval and a verdict at each scale.

An effect is oriented so that the claim predicts more than its threshold. Runs are paired by seed: at one seed they
share data, order of the data and, where the model is the same, initial weights. The interval is Student's t over
seeds, which is wide with three of them, or the exact binomial one where the effect is yes or no. A claim of equality
has a margin and holds when the whole interval lies within it. Intervals are not widened for the number of claims.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from scipy import stats

from weight_decay.report.tables.read import Tables

CONFIDENCE = 0.95
POWER = 0.8
MOST_SEEDS = 100


class Verdict(StrEnum):
    """What the runs of one scale say about a claim."""

    HOLDS = "holds"
    FAILS = "fails"
    INCONCLUSIVE = "inconclusive"
    NOT_RUN = "not run"


@dataclass(frozen=True)
class Unit:
    """How an effect is written: multiplied by `factor`, with `digits` decimals, then `name`."""

    name: str
    factor: float = 1.0
    digits: int = 3

    def write(self, value: float) -> str:
        """A signed number, without its unit."""
        return f"{self.factor * value:+.{self.digits}f}".replace("-", "−").replace("inf", "∞")


POINTS = Unit("points", 100.0, 1)
NATS = Unit("nats", 1.0, 3)
SHARE = Unit("", 1.0, 2)


@dataclass(frozen=True)
class Measured:
    """The effect of a claim, one value per seed in the order of `seeds`, and the runs it was computed from.

    `words` puts the numbers behind the effect in a short clause. `unless` names a reason why the runs cannot
    answer although they were made (no two cells with the same norm, say); the verdict is then inconclusive.
    """

    seeds: tuple[int, ...]
    effects: tuple[float, ...]
    runs: tuple[str, ...]
    words: str
    unless: str = ""
    binary: bool = False
    """Each effect is 1 (it happened) or 0; the interval is then Clopper and Pearson's for the share."""


Measure = Callable[[Tables], Measured]


@dataclass(frozen=True)
class Claim:
    """A statement of the paper (or of ours) and how to measure it in the tables of one experiment.

    Without a `margin` the claim is that the effect exceeds `threshold`; with one, that it is within ± `margin` of zero.
    With `different` too, the claim is the opposite: that the effect is not zero, whatever its sign; it fails when the
    whole interval lies within the margin.
    """

    key: str
    statement: str
    figure: str
    experiment: str
    measure: Measure
    unit: Unit
    threshold: float = 0.0
    margin: float | None = None
    different: bool = False

    @property
    def criterion(self) -> str:
        """What the interval must do for the claim to hold, in words."""
        unit = f" {self.unit.name}" if self.unit.name else ""
        if self.different:
            return "not 0"
        if self.margin is not None:
            return f"within ±{self.unit.write(self.margin).lstrip('+')}{unit}"
        bound = "0" if self.threshold == 0 else f"{self.unit.write(self.threshold).lstrip('+')}{unit}"
        return f"above {bound}"


@dataclass(frozen=True)
class Interval:
    """Mean and Student-t confidence interval over seeds; infinite for one seed."""

    mean: float
    low: float
    high: float
    deviation: float
    count: int


@dataclass(frozen=True)
class Result:
    """A claim at one scale. `interval` is None when there is nothing to compute it from."""

    claim: Claim
    scale: str
    verdict: Verdict
    interval: Interval | None
    measured: Measured | None
    stamp: str
    needed: int | None
    """Seeds an inconclusive claim would need at the spread seen; None when decided or beyond MOST_SEEDS."""

    @property
    def effect(self) -> str:
        """The effect with its interval, in the claim's unit: `+7.6 [+5.1, +10.1] points`."""
        if self.interval is None:
            return "–"
        write = self.claim.unit.write
        words = f"{write(self.interval.mean)} [{write(self.interval.low)}, {write(self.interval.high)}]"
        return f"{words} {self.claim.unit.name}".rstrip()

    @property
    def seeds(self) -> int:
        """How many seeds (or yes-or-no outcomes) the interval rests on."""
        return 0 if self.interval is None else self.interval.count

    @property
    def power(self) -> str:
        """For an inconclusive claim, how many seeds would decide it."""
        if self.verdict is not Verdict.INCONCLUSIVE:
            return ""
        if self.measured is not None and self.measured.unless:
            return self.measured.unless
        if self.interval is not None and self.interval.count == 1:
            return "one seed says nothing about the spread"
        return f"would need {self.needed} seeds" if self.needed else f"would need over {MOST_SEEDS} seeds"


def judged(claim: Claim, tables: Tables) -> Result:
    """The claim measured in the tables of its experiment at one scale; "not run" while they lack what it needs."""
    try:
        measured = _guarded(claim.measure(tables), tables)
    except (KeyError, ValueError, IndexError) as error:
        # A sweep that is still running, or whose runs diverged: cells or metrics that a measure counts on are absent.
        measured = Measured((), (), (), "", f"the tables lack what it needs ({type(error).__name__}: {error})")
    known = [effect for effect in measured.effects if not math.isnan(effect)]
    if not known:
        verdict = Verdict.INCONCLUSIVE if measured.effects else Verdict.NOT_RUN
        return Result(claim, tables.scale, verdict, None, measured, tables.stamp, None)
    found = share_interval(known) if measured.binary else interval(known)
    verdict = Verdict.INCONCLUSIVE if measured.unless else _verdict(claim, found)
    needed = None
    if verdict is Verdict.INCONCLUSIVE and not measured.unless:
        needed = outcomes_needed(claim, found) if measured.binary else seeds_needed(claim, found)
    return Result(claim, tables.scale, verdict, found, measured, tables.stamp, needed)


def _guarded(measured: Measured, tables: Tables) -> Measured:
    """Not to be decided on survivors: no run may have diverged (unless that is counted), no seed may lack a cell."""
    if measured.unless or not measured.effects:
        return measured
    missing = sum(math.isnan(effect) for effect in measured.effects)
    runs = tables.runs[tables.runs["run_id"].isin(measured.runs)]
    diverged = int((runs["status"] != "completed").sum())
    cells = runs.groupby("seed")["run_id"].nunique()
    unless = ""
    if diverged and not measured.binary:
        unless = f"{diverged} of the {len(runs)} runs it rests on diverged"
    elif missing:
        unless = f"{missing} seed(s) without a value"
    elif cells.nunique() > 1:
        unless = "not every seed has every cell yet"
    return replace(measured, unless=unless)


def not_run(claim: Claim, scale: str) -> Result:
    """The claim at a scale whose experiment has no tables."""
    return Result(claim, scale, Verdict.NOT_RUN, None, None, "", None)


def interval(effects: Sequence[float]) -> Interval:
    """Mean of the effects and its Student-t interval at CONFIDENCE. Raises ValueError when there are none."""
    count = len(effects)
    if count == 0:
        raise ValueError("no effects")
    mean = math.fsum(effects) / count
    if count == 1:
        return Interval(mean, -math.inf, math.inf, math.nan, 1)
    deviation = math.sqrt(math.fsum((effect - mean) ** 2 for effect in effects) / (count - 1))
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, count - 1)) * deviation / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, deviation, count)


def share_interval(outcomes: Sequence[float]) -> Interval:
    """Share of ones among `outcomes` (0 or 1) and its exact binomial interval (Clopper-Pearson) at CONFIDENCE."""
    ones = round(math.fsum(outcomes))
    exact = stats.binomtest(ones, len(outcomes)).proportion_ci(CONFIDENCE, method="exact")
    share = ones / len(outcomes)
    return Interval(share, float(exact.low), float(exact.high), math.sqrt(share * (1 - share)), len(outcomes))


def _verdict(claim: Claim, found: Interval) -> Verdict:
    if claim.different:
        assert claim.margin is not None
        if found.low > 0 or found.high < 0:
            return Verdict.HOLDS
        return Verdict.FAILS if max(-found.low, found.high) <= claim.margin else Verdict.INCONCLUSIVE
    if claim.margin is not None:
        if -claim.margin <= found.low and found.high <= claim.margin:
            return Verdict.HOLDS
        outside = found.low > claim.margin or found.high < -claim.margin
        return Verdict.FAILS if outside else Verdict.INCONCLUSIVE
    if found.low > claim.threshold:
        return Verdict.HOLDS
    return Verdict.FAILS if found.high <= claim.threshold else Verdict.INCONCLUSIVE


def seeds_needed(claim: Claim, found: Interval) -> int | None:
    """Seeds with which the interval would be decided in POWER of all cases, if mean and spread are as seen.

    The distance to be resolved is that of the mean to the threshold, or to the nearer end of the margin. None when
    more than MOST_SEEDS are needed, or when one seed says nothing about the spread.
    """
    if math.isnan(found.deviation):
        return None
    if claim.margin is not None and not claim.different:
        distance = min(abs(found.mean - claim.margin), abs(found.mean + claim.margin))
    else:
        distance = abs(found.mean - claim.threshold)
    if distance == 0:
        return None
    for count in range(2, MOST_SEEDS + 1):
        freedom = count - 1
        needed = float(stats.t.ppf(0.5 + CONFIDENCE / 2, freedom) + stats.t.ppf(POWER, freedom))
        if needed * found.deviation / math.sqrt(count) <= distance:
            return max(count, found.count + 1)
    return None


def outcomes_needed(claim: Claim, found: Interval) -> int | None:
    """Yes-or-no outcomes with which the interval would leave the threshold, if their share stays as it is."""
    for count in range(found.count + 1, MOST_SEEDS + 1):
        ones = round(found.mean * count)
        wider = share_interval([1.0] * ones + [0.0] * (count - ones))
        if _verdict(claim, wider) is not Verdict.INCONCLUSIVE:
            return count
    return None
