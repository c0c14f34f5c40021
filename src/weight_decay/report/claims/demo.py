"""What came out of the demo: a table of effects per experiment, and what its runs say to the paper's claims.

The claims are those of the protocol, measured by the same functions. Where there are seeds enough the protocol judges;
one seed answers only where the effect is larger than what one seed resolves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from weight_decay.report.claims.measures import CLAIMS
from weight_decay.report.claims.verdict import DECIDED, Claim, Verdict, judged
from weight_decay.report.tables.numbers import loss, percent, scientific, three_digits
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
    """A claim as the demo's runs answer it: yes, no, or None where they cannot tell."""

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


_OVER_TRAINING = ("decay_wins", "average_sees_it", "jacobian_before_drop")
_UNDER_TRAINING = ("higher_middle", "lower_end", "averaging")
_REPLAY = ("bfloat16_foreach", "bfloat16_fused", "bfloat16_stochastic", "bfloat16_kahan")
RESOLUTION: dict[tuple[str, str], dict[str, float]] = {
    ("procedural", "micro"): {"decay_wins": 0.030, "average_sees_it": 0.047, "jacobian_before_drop": 0.036},
    ("synthetic_text", "micro"): {
        "higher_middle": 0.016, "lower_end": 0.0085, "averaging": 0.0033,
        "bfloat16_foreach": 0.001, "bfloat16_fused": 0.085, "bfloat16_stochastic": 0.007, "bfloat16_kahan": 0.001,
    },
}  # fmt: skip
"""By data and scale, what one seed resolves of a claim: two standard deviations of its effect between seeds.

Images: seeds 0 to 2 of Fig 2. Text: the pilots 100 to 103 of Fig 6 or its seeds 0 to 2, whichever differ more, and the
pilots 100 and 101 of the replay; where these do not differ, .001.
"""


def demo_effects(results: Path, scale: str = "micro") -> list[Effect]:
    """The demo's three experiments, from `results`/tables. Raises UserError when a table is absent."""
    return [effect(tables_of(results, experiment, scale)) for experiment, effect in EFFECTS.items()]


def over_training_effect(tables: Tables) -> Effect:
    """The 2×2 of learning rate η and decay λ: error, EMA, ‖J‖² before the drop of η and at the end."""
    columns = [
        Column("test error before the drop of η", _phase_end(tables, "test/error"), percent),
        Column("of its EMA", _phase_end(tables, "ema/test/error"), percent),
        Column("final test error", _final(tables, "test/error"), percent),
        Column("‖J‖² of the EMA before the drop", _phase_end(tables, "ema/jacobian/mean_square"), three_digits),
        Column("final ‖J‖²", _final(tables, "jacobian/mean_square"), three_digits),
        Column("final ‖w‖", _final(tables, "weights/norm"), three_digits),
    ]
    cells = [(f"η = {rate:g}, λ = {decay:g}", runs) for (rate, decay), runs in _cells(tables, [LEARNING_RATE, DECAY])]
    title = "Over-training: many passes, SGD; learning rate η and weight decay λ"
    return _effect(tables, title, columns, cells[::-1], _OVER_TRAINING)


def under_training_effect(tables: Tables) -> Effect:
    """λ = 0 against λ > 0 in one pass: loss in the middle and at the end, EMA, effective LR and ‖w‖."""
    columns = [
        Column("training loss, middle of the run", _batches(tables, 0.4, 0.6), loss),
        Column("training loss, last 5 %", _batches(tables, 0.9501, 1.0), loss),
        Column("final validation loss", _final(tables, "val/loss"), loss),
        Column("of its EMA", _final(tables, "ema/val/loss"), loss),
        Column("final effective LR η/‖w‖", _final(tables, "effective_lr/adamw"), scientific),
        Column("final ‖w‖", _final(tables, "weights/norm"), three_digits),
    ]
    cells = [(f"λ = {decay:g}", runs) for (decay,), runs in _cells(tables, [DECAY])]
    title = "Under-training: one pass, AdamW; weight decay λ"
    return _effect(tables, title, columns, cells, _UNDER_TRAINING)


def replay_effect(tables: Tables) -> Effect:
    """What each arithmetic of bfloat16 weights keeps of float32's decay, one sequence of gradients replayed."""
    names = [str(name) for name in tables.runs if str(name).startswith("replay/")]
    columns = [Column(name.split("/")[1], _final(tables, name), percent) for name in names]
    title = "Weights in bfloat16: the same gradients with and without λ, in each rounding and kernel"
    return _effect(tables, title, columns, [("share of float32's decay that is kept", tables.runs)], _REPLAY)


EFFECTS = {
    "demo_over_training": over_training_effect,
    "demo_under_training": under_training_effect,
    "bfloat16_replay": replay_effect,
}
"""What each experiment of the demo shows."""


def _effect(
    tables: Tables, title: str, columns: list[Column], cells: list[tuple[str, pd.DataFrame]], keys: Sequence[str]
) -> Effect:
    """A row for the runs of each cell, and what all runs say to the claims with these keys."""
    header = ["", *[column.header for column in columns]]
    rows = [_row(name, runs, columns) for name, runs in cells]
    claims = {claim.key: claim for claim in CLAIMS}
    return Effect(tables, title, header, rows, [_answer(claims[key], tables) for key in keys])


def _answer(claim: Claim, tables: Tables) -> Finding:
    """The claim as the demo's runs answer it: by the protocol or, below its first stage, by what one seed resolves."""
    result = judged(claim, tables)
    statement, found = claim.statement.rstrip("."), result.measured
    if found is None or found.unless or result.interval is None:
        return Finding(statement, None, found.unless if found and found.unless else "not measured in every cell")
    effect = result.interval.mean
    numbers = f"{claim.unit.write(effect)} {claim.unit.name}: {found.words}"
    if result.stage is not None:
        holds = result.verdict is Verdict.HOLDS if result.verdict in DECIDED else None
        return Finding(statement, holds, f"{result.effect}: {found.words}")
    resolution = RESOLUTION.get((tables.data, tables.scale), {}).get(claim.key)
    if resolution is None:
        return Finding(statement, None, f"{numbers}; what so few seeds resolve here is not known")
    sees = resolution / math.sqrt(len(result.effects))
    # How far the effect is on the claim's side of what it is compared with.
    beyond = claim.margin - abs(effect) if claim.test == "equivalent" else effect - claim.threshold
    if abs(beyond) < sees:
        return Finding(statement, None, f"{numbers}; below the resolution of {claim.unit.write(sees).lstrip('+')}")
    return Finding(statement, beyond > 0, numbers)


def _batches(tables: Tables, start: float, stop: float) -> pd.Series:
    """Mean training loss between two fractions of each completed run."""
    curves = tables.main_curves
    curves = curves[curves["run_id"].isin(tables.runs["run_id"][tables.runs["status"] == "completed"])]
    return pd.Series() if missing_metrics(curves, ["batch/loss"]) else mean_between(curves, "batch/loss", start, stop)


def _phase_end(tables: Tables, metric: str) -> pd.Series:
    curves = tables.main_curves
    return pd.Series() if missing_metrics(curves, ["lr", metric]) else large_rate_phase_end(curves, metric)


def _final(tables: Tables, metric: str) -> pd.Series:
    """Final values; a diverged run has none, whatever it measured last."""
    final = tables.runs.set_index("run_id")
    return final[metric].where(final["status"] == "completed") if metric in final else pd.Series()


def _cells(tables: Tables, coordinates: list[str]) -> list[tuple[tuple[float, ...], pd.DataFrame]]:
    """The runs at each grid point, ordered by seed."""
    return list(tables.runs.sort_values("seed").groupby(coordinates))  # type: ignore[arg-type]


def _row(name: str, runs: pd.DataFrame, columns: list[Column]) -> list[str]:
    diverged = runs["status"] == "diverged"
    if diverged.any():
        steps = ", ".join(f"{step:.0f}" for step in runs["divergence_step"].dropna())
        name = f"{name} — {int(diverged.sum())} of {len(runs)} diverged (step {steps})"
    return [name, *(_mean_and_spread(runs["run_id"].map(column.values).dropna(), column.write) for column in columns)]


def _mean_and_spread(values: pd.Series, write: Callable[[float], str]) -> str:
    if values.empty:
        return "–"
    mean = sum(values) / len(values)
    if len(values) == 1:
        return write(mean)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return f"{write(mean).removesuffix(' %')} ± {write(spread)}"


def effects_text(effects: list[Effect]) -> str:
    """The effects as plain text for the terminal: per experiment a table, then the findings."""
    parts = []
    for effect in effects:
        parts += [f"{effect.title}\n({effect.stamp})", text_table(effect.header, effect.rows)]
        parts += [f"  {item.verdict:>11}  {item.statement}:\n{'':15}{item.numbers}" for item in effect.findings]
        if effect.tables.seeds == 1:
            parts.append("  One seed: a small difference may be chance.")
    return "\n\n".join(parts)
