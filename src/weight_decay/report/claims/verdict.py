"""Claims: a sentence each, an effect measured seed by seed, a test named in the protocol, a verdict at each scale.

An effect is oriented so that the claim predicts more than its threshold. Runs are paired by seed: at one seed they
share data, order of the data and, where the model is the same, initial weights. Intervals are 95 % and not widened for
the number of claims; verdicts go by q, which is (report/statistics.py). The stages are those of the protocol.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from weight_decay.report import statistics
from weight_decay.report.claims.pairs import Measured, nothing
from weight_decay.report.claims.protocol import Stage, protocol
from weight_decay.report.statistics import Interval
from weight_decay.report.tables.read import Tables

Test = Literal["above", "equivalent", "different", "share"]


class Verdict(StrEnum):
    """What the runs of one scale say about a claim."""

    HOLDS = "holds"
    FAILS = "fails"
    NO_EFFECT = "no effect"
    INCONCLUSIVE = "inconclusive"
    NOT_RUN = "not run"


DECIDED = (Verdict.HOLDS, Verdict.FAILS, Verdict.NO_EFFECT)


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


Measure = Callable[[Tables], Measured]


@dataclass(frozen=True)
class Claim:
    """A statement of the paper (or of ours), how to measure it in one experiment's tables, and what decides it.

    test: as in configs/claims/protocol.yaml. smallest: the smallest effect worth having, `margin` what counts as equal.
    paper: the paper's own effect in the same unit, if it states one. reads: the endpoint in the columns of the tables.
    """

    key: str
    statement: str
    figure: str
    experiment: str
    measure: Measure
    unit: Unit
    test: Test = "above"
    threshold: float = 0.0
    smallest: float = 0.0
    margin: float = 0.0
    endpoint: str = ""
    paper: float | None = None
    reads: str = ""

    @property
    def centre(self) -> float:
        """The effect that would mean nothing."""
        return 0.5 if self.test == "share" else self.threshold

    @property
    def criterion(self) -> str:
        """What the effect must be for the claim to hold, in words."""
        unit = f" {self.unit.name}" if self.unit.name else ""
        if self.test == "share":
            return "more than half"
        if self.test == "different":
            return "not 0"
        if self.test == "equivalent":
            return f"within ±{self.unit.write(self.margin).lstrip('+')}{unit}"
        bound = "0" if self.threshold == 0 else f"{self.unit.write(self.threshold).lstrip('+')}{unit}"
        return f"above {bound}"


@dataclass(frozen=True)
class Result:
    """A claim at one scale. `interval` is None when there is nothing to compute it from."""

    claim: Claim
    scale: str
    verdict: Verdict
    interval: Interval | None
    measured: Measured | None
    stamp: str
    effects: tuple[float, ...] = ()
    """The effects that decide: those of the first seeds, as many as the stage has."""
    stage: Stage | None = None
    p: float = math.nan
    q: float = math.nan
    pilot: bool = False
    """The runs were made before the protocol."""

    @property
    def effect(self) -> str:
        """The effect with its 95 % interval, in the claim's unit: `+7.6 [+5.1, +10.1] points`."""
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
    def improvement(self) -> float:
        """Share of the seeds with an effect on the claim's side of its threshold (of 0 for a claim of equality)."""
        return statistics.improvement(self.effects, self.claim.centre) if self.effects else math.nan

    @property
    def sensitivity(self) -> int:
        """How many seeds there are without any one of which the verdict would be another."""
        if self.verdict not in DECIDED or self.stage is None:
            return 0
        rest = [self.effects[:index] + self.effects[index + 1 :] for index in range(len(self.effects))]
        return sum(_verdict(self.claim, kept, self.stage.level, None)[0] is not self.verdict for kept in rest)

    @property
    def reason(self) -> str:
        """Why a claim is open, in a clause."""
        if self.verdict is not Verdict.INCONCLUSIVE:
            return ""
        if self.measured is not None and self.measured.unless:
            return self.measured.unless
        stages = [stage for stage in protocol().stages if stage.seeds > self.seeds]
        if self.stage is None or stages:
            return f"{self.seeds} of {stages[0].seeds} seeds" if stages else "no seeds"
        if self.claim.test == "share" or self.interval is None or self.interval.deviation == 0:
            return "all planned seeds are in"
        seen = statistics.detectable(self.interval.deviation, self.seeds, self.stage.level)
        low, high = statistics.deviation_interval(seen, self.seeds)
        write = self.claim.unit.write
        words = f"±{write(seen)} ({write(low)} to {write(high)}) {self.claim.unit.name}".replace("+", "")
        return f"all planned seeds are in; they resolve {words}"


def judged(claim: Claim, tables: Tables) -> Result:
    """The claim measured in the tables of its experiment at one scale, as if it were the only one (q = p)."""
    try:
        measured = _guarded(claim.measure(tables), tables)
    except (KeyError, ValueError, IndexError, TypeError) as error:
        # A sweep that is still running, or whose runs diverged: cells or metrics that a measure counts on are absent.
        measured = nothing(f"the tables lack what it needs ({type(error).__name__}: {error})")
    pilot = _pilot(measured, tables)
    stage = max((s for s in protocol().stages if s.seeds <= len(measured.effects)), key=lambda s: s.seeds, default=None)
    first = measured.effects[: stage.seeds] if stage else measured.effects
    known = tuple(effect for effect in first if not math.isnan(effect))
    if not known:
        verdict = Verdict.INCONCLUSIVE if measured.effects else Verdict.NOT_RUN
        return Result(claim, tables.scale, verdict, None, measured, tables.stamp, pilot=pilot)
    share = claim.test == "share"
    found = statistics.share_interval(known) if share else statistics.paired_interval(known)
    result = Result(claim, tables.scale, Verdict.INCONCLUSIVE, found, measured, tables.stamp, known, stage, pilot=pilot)
    if stage is None or measured.unless:
        return result
    verdict, p = _verdict(claim, known, stage.level, None)
    return replace(result, verdict=verdict, p=p, q=p)


def with_false_discoveries(results: Sequence[Result]) -> list[Result]:
    """The results with q over all claims of each scale, and the verdicts that follow from it."""
    decided: dict[tuple[str, str], Result] = {}
    for scale in dict.fromkeys(result.scale for result in results):
        family = [result for result in results if result.scale == scale]
        for result, q in zip(family, statistics.false_discovery([one.p for one in family]), strict=True):
            verdict = result.verdict
            if not math.isnan(q) and result.stage is not None:
                verdict = _verdict(result.claim, result.effects, result.stage.level, q)[0]
            decided[result.claim.key, scale] = replace(result, q=q, verdict=verdict)
    return [decided[result.claim.key, result.scale] for result in results]


def _verdict(claim: Claim, effects: Sequence[float], level: float, q: float | None) -> tuple[Verdict, float]:
    """The verdict on these effects and the p of the claim's own test; `q`: p adjusted for the other claims."""
    if claim.test == "share":
        p = statistics.share_p(effects)
        mean = math.fsum(effects) / len(effects)
        small = (p if q is None else q) <= level
        return (_side(mean > 0.5) if small else Verdict.INCONCLUSIVE), p
    found = statistics.paired_interval(effects, 1 - level)
    if claim.test == "equivalent":
        p = statistics.equivalence_p(effects, claim.margin)
        if (p if q is None else q) <= level:
            return Verdict.HOLDS, p
        outside = found.low > claim.margin or found.high < -claim.margin
        return (Verdict.FAILS if outside else Verdict.INCONCLUSIVE), p
    p = statistics.mean_p(effects, claim.threshold)
    smallest = claim.smallest
    # At the interval of 1 - 2 level both one-sided tests pass together: TOST.
    tost = statistics.paired_interval(effects, 1 - 2 * level)
    if smallest and tost.low > claim.threshold - smallest and tost.high < claim.threshold + smallest:
        return (Verdict.FAILS if claim.test == "different" else Verdict.NO_EFFECT), p
    if (p if q is None else q) > level:
        return Verdict.INCONCLUSIVE, p
    return _side(claim.test == "different" or found.mean > claim.threshold), p


def _side(agrees: bool) -> Verdict:
    return Verdict.HOLDS if agrees else Verdict.FAILS


def _pilot(measured: Measured, tables: Tables) -> bool:
    runs = tables.runs[tables.runs["run_id"].isin(measured.runs)]
    return "git_commit" in runs and any(protocol().is_pilot(str(commit)) for commit in runs["git_commit"].unique())


def _guarded(measured: Measured, tables: Tables) -> Measured:
    """Not to be decided on survivors: no run may have diverged (unless that is counted), no seed may lack a cell."""
    if measured.unless or not measured.effects:
        return measured
    missing = sum(math.isnan(effect) for effect in measured.effects)
    runs = tables.runs[tables.runs["run_id"].isin(measured.runs)]
    diverged = int((runs["status"] != "completed").sum())
    cells = runs.groupby("seed")["run_id"].nunique()
    unless = ""
    if not measured.binary and diverged:
        unless = f"{diverged} of the {len(runs)} runs it rests on diverged"
    elif missing:
        unless = f"{missing} seed(s) without a value"
    elif len(cells) and cells.min() < cells.max():
        unless = "not every seed has every cell that it rests on"
    return replace(measured, unless=unless) if unless else measured


def not_run(claim: Claim, scale: str) -> Result:
    """The result of a claim whose experiment has no tables at this scale."""
    return Result(claim, scale, Verdict.NOT_RUN, None, None, "")
