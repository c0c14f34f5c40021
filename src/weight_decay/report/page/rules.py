"""Kinds of weight decay side by side, as a table in Markdown: the numbers behind the forest figure and beside it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from weight_decay.report.figures.rules import OUTCOMES, PILOT, best_strengths, differences, effective_rate, ratios
from weight_decay.report.tables.numbers import three_digits
from weight_decay.report.tables.read import Tables, scales_of, tables_of
from weight_decay.report.tables.text_table import markdown_table

EXPERIMENTS = {
    "decay_rules_over_training": "Over-training, SGD",
    "decay_rules_under_training": "Under-training, AdamW",
}
BESIDE = (
    ("ema/jacobian/mean_square", "‖J‖² of the EMA"),
    ("stability/max_attention_logit", "largest attention logit"),
    ("stability/bf16_lost_updates", "updates bfloat16 would lose"),
)
"""What else is told of each kind, in units of the same seed's value without decay."""


def rules_markdown(results: Path, scale: str = "micro") -> str:
    """A table for each regime whose experiment was run at `scale`; a sentence where none was."""
    parts = [
        _regime(title, tables_of(results, experiment, scale))
        for experiment, title in EXPERIMENTS.items()
        if scale in scales_of(results, experiment)
    ]
    return "\n\n".join(parts) or "Not run yet."


def _regime(title: str, tables: Tables) -> str:
    runs = tables.runs
    (iterate, label, factor, unit), (average, *_) = [outcome for outcome in OUTCOMES if outcome[0] in runs][-2:]
    best = best_strengths(runs, average)  # as in the figure
    effects = {metric: differences(runs, metric, factor, best) for metric in (iterate, average)}
    rate, symbol = effective_rate(runs)
    beside = [(rate, symbol), *((metric, name) for metric, name in BESIDE if metric in runs)]
    order = effects[average][effects[average]["against"] == "none"].sort_values("effect")
    header = ["kind", "strength", "against none", "EMA against none", "EMA against decoupled"]
    rows = []
    for kind, strength in zip(order["decay"], order["strength"], strict=True):
        shown = [(iterate, "none"), (average, "none"), (average, "decoupled")]
        rows.append([
            kind.replace("_", " "), f"{strength:g}",
            *(_interval(effects[metric], kind, against, 4 if unit == "nats" else 1) for metric, against in shown),
            *(_mean(ratios(runs, metric, kind, strength)) for metric, _ in beside),
        ])  # fmt: skip
    pilots = runs.loc[runs["seed"] >= PILOT, "seed"].nunique()
    stamp = (
        f"scale {tables.scale} · {label} in {unit} with 95 % intervals over {order['seeds'].max()} seeds, "
        f"strengths chosen on pilots (seeds: {pilots}); last columns: times the value without decay"
    )
    lines = markdown_table(
        [[*header, *(name for _, name in beside)], *rows], "l" + "r" * (len(header) + len(beside) - 1)
    )
    return "\n".join([f"**{title}** ({stamp})", "", *lines])


def _interval(effects: pd.DataFrame, kind: str, against: str, digits: int) -> str:
    found = effects[(effects["decay"] == kind) & (effects["against"] == against)]
    if not len(found):
        return ""
    numbers = [f"{value:+.{digits}f}".replace("-", "−") for value in found.iloc[0][["effect", "low", "high"]]]
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]" if pd.notna(found.iloc[0]["low"]) else numbers[0]


def _mean(factors: pd.Series) -> str:
    return three_digits(factors.mean()) if len(factors) else ""
