"""What came out of the demo: a table of effects per regime and what they say, computed from the numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from weight_decay.report.tables.read import (
    DECAY,
    LEARNING_RATE,
    Tables,
    large_rate_phase_end,
    mean_between,
    missing_metrics,
    tables_of,
)
from weight_decay.report.tables.text_table import text_table


@dataclass(frozen=True)
class Finding:
    """One sentence and whether the runs bear it out; None when they cannot tell."""

    statement: str
    holds: bool | None
    numbers: str

    @property
    def verdict(self) -> str:
        """The answer in a word or two."""
        return {True: "yes", False: "no", None: "cannot tell"}[self.holds]


@dataclass(frozen=True)
class Effect:
    """The effect of weight decay in one experiment: a table of cells and what it says."""

    tables: Tables
    title: str
    header: list[str]
    rows: list[list[str]]
    findings: list[Finding]

    @property
    def stamp(self) -> str:
        """Scale, data and seeds, and what ± means where it appears."""
        return self.tables.stamp + (", mean ± standard deviation" if self.tables.seeds > 1 else "")


@dataclass(frozen=True)
class Column:
    """A column of an effects table: per-run values and how they are written."""

    header: str
    values: pd.Series
    write: Callable[[float], str]


RESOLUTION = {
    ("synthetic_text", "micro"): {"gain": 0.014, "end": 0.003, "average": 0.005},
}
"""By data and scale, what one seed resolves in nats: two standard deviations between pilot seeds 100 to 103."""


def percent(value: float) -> str:
    """A fraction as a percentage with one decimal."""
    return f"{100 * value:.1f} %"


def loss(value: float) -> str:
    """A loss with three decimals."""
    return f"{value:.3f}"


def three_digits(value: float) -> str:
    """Three significant digits, plain where that is readable."""
    return f"{value:.0f}" if 100 <= abs(value) < 1e7 else f"{value:.3g}"


def points(value: float) -> str:
    """A difference of two fractions, in percentage points, with its sign."""
    return f"{100 * value:+.1f} points".replace("-", "−")


def scientific(value: float) -> str:
    """Three significant digits with an exponent."""
    return f"{value:.2e}"


def demo_effects(results: Path, scale: str = "micro") -> list[Effect]:
    """Both demo experiments, from `results`/tables. Raises UserError when a table is absent."""
    return [
        over_training_effect(tables_of(results, "demo_over_training", scale)),
        under_training_effect(tables_of(results, "demo_under_training", scale)),
    ]


def over_training_effect(tables: Tables) -> Effect:
    """The 2×2 of learning rate η and decay λ: error, EMA, ‖J‖² before the drop of η and at the end."""
    curves = tables.main_curves
    before = {name: _phase_end(curves, name) for name in ("test/error", "ema/test/error", "ema/jacobian/mean_square")}
    final = tables.runs.set_index("run_id")
    columns = [
        Column("test error before the drop of η", before["test/error"], percent),
        Column("of its EMA", before["ema/test/error"], percent),
        Column("final test error", _final(final, "test/error"), percent),
        Column("‖J‖² of the EMA before the drop", before["ema/jacobian/mean_square"], three_digits),
        Column("final ‖J‖²", _final(final, "jacobian/mean_square"), three_digits),
        Column("final ‖w‖", _final(final, "weights/norm"), three_digits),
    ]
    cells = sorted(_cells(tables, [LEARNING_RATE, DECAY]), key=lambda cell: (-cell[0][0], -cell[0][1]))
    rows = [_row([f"η = {key[0]:g}, λ = {key[1]:g}"], runs, columns, final) for key, runs in cells]
    return Effect(
        tables,
        "Over-training: many passes, SGD; learning rate η and weight decay λ",
        ["", *[column.header for column in columns]],
        rows,
        _over_training_findings(dict(cells), columns),
    )


def _over_training_findings(cells: dict[tuple[float, ...], list[str]], columns: list[Column]) -> list[Finding]:
    error, averaged, final, jacobian, *_ = (column.values for column in columns)
    large, strong = max(key[0] for key in cells), max(key[1] for key in cells)
    chosen, weak = cells[large, strong], min(key[1] for key in cells)
    others = [runs for key, runs in cells.items() if runs is not chosen]
    same_rate = cells[large, weak]
    return [
        _lowest(
            "Decay with the large learning rate ends with the lowest test error",
            final, chosen, others, percent,
        ),
        _lowest(
            "Its moving average has the lowest test error already before the learning rate drops",
            averaged, chosen, others, percent,
        ),
        _below(
            "With decay, averaging the noise away lowers the error by more than without",
            averaged - error, chosen, same_rate, points,
        ),
        _lowest(
            "Its Jacobian norm (EMA, before the drop) is the lowest",
            jacobian, chosen, others, three_digits,
        ),
    ]  # fmt: skip


def under_training_effect(tables: Tables) -> Effect:
    """λ = 0 against λ > 0 in one pass: loss in the middle and at the end, EMA, effective LR and ‖w‖."""
    curves = tables.main_curves
    final = tables.runs.set_index("run_id")
    curves = curves[curves["run_id"].map(final["status"]) == "completed"]
    middle, end = _batches(curves, 0.4, 0.6), _batches(curves, 0.9501, 1.0)
    columns = [
        Column("training loss, middle of the run", middle, loss),
        Column("training loss, last 5 %", end, loss),
        Column("final validation loss", _final(final, "val/loss"), loss),
        Column("of its EMA", _final(final, "ema/val/loss"), loss),
        Column("final effective LR η/‖w‖", _final(final, "effective_lr/adamw"), scientific),
        Column("final ‖w‖", _final(final, "weights/norm"), three_digits),
    ]
    cells = sorted(_cells(tables, [DECAY]))
    rows = [_row([f"λ = {key[0]:g}"], runs, columns, final) for key, runs in cells]
    without = cells[0][1]
    sees = RESOLUTION.get((tables.data, tables.scale), {})
    findings = []
    for (decay, *_), runs in cells[1:]:
        at = f" (λ = {decay:g})" if len(cells) > 2 else ""
        average, gain = columns[3].values, middle - end
        gains = f"From the middle to the end decay gains on no decay{at}"
        lower = f"At the end of the pass it has the lower training loss{at}"
        for found, values, sees_it in (
            (_above(gains, gain, runs, without, loss), gain, "gain"),
            (_below(lower, end, runs, without, loss), end, "end"),
            (
                _below(f"Its moving average has the lower loss on other documents{at}", average, runs, without, loss),
                average, "average",
            ),
        ):  # fmt: skip
            findings.append(_resolved(found, values, runs, without, sees.get(sees_it)))
        findings.append(
            _above(
                f"It ends with the larger effective learning rate{at}",
                columns[4].values, runs, without, scientific,
            )
        )  # fmt: skip
    title = "Under-training: one pass, AdamW; weight decay λ"
    return Effect(tables, title, ["", *[column.header for column in columns]], rows, findings)


def _batches(curves: pd.DataFrame, start: float, stop: float) -> pd.Series:
    return _nothing() if missing_metrics(curves, ["batch/loss"]) else mean_between(curves, "batch/loss", start, stop)


def _resolved(
    finding: Finding, values: pd.Series, chosen: list[str], other: list[str], resolution: float | None
) -> Finding:
    """The finding, or "cannot tell" where the difference is below what so many seeds resolve.

    `resolution` is that of one seed; None: nothing is known of it, and one seed then tells nothing.
    """
    if finding.holds is None or (resolution is None and len(chosen) > 1):
        return finding
    gap = abs(_mean(values, chosen) - _mean(values, other))
    sees = math.inf if resolution is None else resolution / math.sqrt(len(chosen))
    if gap >= sees:
        return finding
    words = "one seed resolves nothing here" if resolution is None else f"below the resolution of {sees:.3f}"
    return Finding(finding.statement, None, f"{finding.numbers}; {words}")


def _nothing() -> pd.Series:
    return pd.Series(dtype=float)


def _phase_end(curves: pd.DataFrame, metric: str) -> pd.Series:
    return _nothing() if missing_metrics(curves, ["lr", metric]) else large_rate_phase_end(curves, metric)


def _final(final: pd.DataFrame, metric: str) -> pd.Series:
    """Final values; a diverged run has none, whatever it measured last."""
    return final[metric].where(final["status"] == "completed") if metric in final else _nothing()


def _cells(tables: Tables, coordinates: list[str]) -> list[tuple[tuple[float, ...], list[str]]]:
    """The run ids at each grid point, ordered by seed."""
    grouped = tables.runs.sort_values("seed").groupby(coordinates)
    return [(tuple(float(value) for value in _tuple(key)), list(runs["run_id"])) for key, runs in grouped]


def _tuple(key: object) -> tuple[float, ...]:
    return key if isinstance(key, tuple) else (key,)


def _of(values: pd.Series, runs: list[str]) -> list[float]:
    return [float(values[run]) for run in runs if run in values.index and not math.isnan(values[run])]


def _row(named: list[str], runs: list[str], columns: list[Column], final: pd.DataFrame) -> list[str]:
    diverged = final.loc[runs, "status"] == "diverged"
    if diverged.any():
        steps = ", ".join(f"{step:.0f}" for step in final.loc[runs, "divergence_step"].dropna())
        named = [f"{named[0]} — {int(diverged.sum())} of {len(runs)} diverged (step {steps})"]
    return named + [_mean_and_spread(_of(column.values, runs), column.write) for column in columns]


def _mean_and_spread(values: list[float], write: Callable[[float], str]) -> str:
    if not values:
        return "–"
    mean = sum(values) / len(values)
    if len(values) == 1:
        return write(mean)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return f"{write(mean).removesuffix(' %')} ± {write(spread)}"


def _mean(values: pd.Series, runs: list[str]) -> float:
    """The mean over seeds; NaN as soon as one is missing, since a mean over survivors would flatter."""
    known = _of(values, runs)
    return sum(known) / len(known) if len(known) == len(runs) and runs else math.nan


def _lowest(
    statement: str,
    values: pd.Series,
    chosen: list[str],
    others: list[list[str]],
    write: Callable[[float], str],
) -> Finding:
    """Whether the mean of `chosen` is below that of every other cell."""
    ours, theirs = _mean(values, chosen), [_mean(values, runs) for runs in others]
    if any(math.isnan(value) for value in (ours, *theirs)):
        return Finding(statement, None, "not measured in every cell")
    return Finding(statement, ours < min(theirs), f"{write(ours)}; the best of the others has {write(min(theirs))}")


def _below(
    statement: str, values: pd.Series, chosen: list[str], other: list[str], write: Callable[[float], str]
) -> Finding:
    """Whether the mean of `chosen` is below that of `other`; with several seeds, in how many of them."""
    ours, theirs = _mean(values, chosen), _mean(values, other)
    if math.isnan(ours) or math.isnan(theirs):
        return Finding(statement, None, "not measured in both cells")
    numbers = f"{write(ours)} against {write(theirs)}"
    if len(chosen) == len(other) > 1:
        agreeing = sum(values[one] < values[two] for one, two in zip(chosen, other, strict=True))
        numbers += f"; in {agreeing} of {len(chosen)} seeds"
    return Finding(statement, ours < theirs, numbers)


def _above(
    statement: str, values: pd.Series, chosen: list[str], other: list[str], write: Callable[[float], str]
) -> Finding:
    """Whether the mean of `chosen` is above that of `other`."""
    return _below(statement, -values, chosen, other, lambda value: write(-value))


def effects_text(effects: list[Effect]) -> str:
    """The effects as plain text for the terminal: per experiment a table, then the findings."""
    parts = []
    for effect in effects:
        parts += [f"{effect.title}\n({effect.stamp})", text_table(effect.header, effect.rows)]
        parts += [f"  {item.verdict:>11}  {item.statement}:\n{'':15}{item.numbers}" for item in effect.findings]
        if effect.tables.seeds == 1:
            parts.append("  One seed: a small difference may be chance.")
    return "\n\n".join(parts)
