"""Kinds of weight decay side by side, passes over a text, and tuned learning rates: figures of our own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from weight_decay.errors import UserError
from weight_decay.report.figures.demo import drawing
from weight_decay.report.figures.style import Theme, curve, legend, new_figure, plain_log, shades
from weight_decay.report.statistics import paired_interval
from weight_decay.report.tables.read import DECAY, LEARNING_RATE, Tables, missing_metrics

PILOT = 100
"""Seeds from here on choose a kind's strength and enter no interval."""

PLAIN = ("decoupled", "decoupled_except_norms")
STRENGTH = {"constrained": "decay.bound"}
"""The setting whose values are a kind's strengths, where it is not decay.strength: CPR's is the bound on the norm."""
OUTCOMES = (
    ("test/error", "test error", 100.0, "points"),
    ("ema/test/error", "test error of the EMA", 100.0, "points"),
    ("val/loss", "validation loss", 1.0, "nats"),
    ("ema/val/loss", "validation loss of the EMA", 1.0, "nats"),
)


def best_strengths(runs: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Columns `decay`, `strength`: for each kind the strength with the lowest mean of `metric`; diverged runs lose.

    Chosen on the seeds from PILOT on, or on all seeds if there are none.
    """
    runs = runs.assign(strength=_strengths(runs))
    pilot = runs[runs["seed"] >= PILOT]
    chosen = (pilot if len(pilot) else runs).copy()
    chosen.loc[chosen["status"] != "completed", metric] = np.inf
    means = chosen[chosen[DECAY] > 0].groupby(["decay", "strength"])[metric].mean().reset_index()
    best = means.loc[means.groupby("decay")[metric].idxmin()]
    return best[["decay", "strength"]].reset_index(drop=True)


def _strengths(runs: pd.DataFrame) -> pd.Series:
    """Of each run the value of the setting in which its kind's strengths differ."""
    strengths = runs[DECAY].copy()
    for kind, setting in STRENGTH.items():
        if setting in runs:
            strengths = strengths.where(runs["decay"] != kind, runs[setting])
    return strengths


def differences(runs: pd.DataFrame, metric: str, factor: float, best: pd.DataFrame | None = None) -> pd.DataFrame:
    """Per kind at its best strength: `decay`, `strength`, `against`, `effect`, `low`, `high`, `seeds`.

    best: the strengths, where not `best_strengths` of `metric`.
    against: "none" (λ = 0) or "decoupled" (decoupled decay at its own best strength). effect: mean over seeds of the
    paired difference, times `factor`, negative if the kind has the lower value; the interval is NaN with one seed.
    """
    best = best_strengths(runs, metric) if best is None else best
    runs = runs.assign(strength=_strengths(runs))
    judged = runs[(runs["seed"] < PILOT) & (runs["status"] == "completed")]
    judged = judged if len(judged) else runs[runs["status"] == "completed"]
    references = {"none": judged[judged[DECAY] == 0]}
    plain = best[best["decay"].isin(PLAIN)]
    if len(plain):
        kind, strength = plain.iloc[0]
        references["decoupled"] = judged[(judged["decay"] == kind) & (judged["strength"] == strength)]
    rows = []
    for kind, strength in best.itertuples(index=False):
        own = judged[(judged["decay"] == kind) & (judged["strength"] == strength)].set_index("seed")[metric]
        for name, reference in references.items():
            gaps = (own - reference.set_index("seed")[metric]).dropna() * factor
            if (name == "decoupled" and kind in PLAIN) or not len(gaps):
                continue
            found = paired_interval(gaps.tolist())
            rows.append((kind, strength, name, found.mean, found.low, found.high, found.count))
    columns = ["decay", "strength", "against", "effect", "low", "high", "seeds"]
    # An interval without end, that of one seed, cannot be drawn.
    return pd.DataFrame(rows, columns=columns).replace([-np.inf, np.inf], np.nan)


@drawing(
    "Kinds of weight decay",
    "Each kind at its best strength (in brackets), chosen by the average's outcome on pilot seeds where there are "
    "any and otherwise, too kindly, on these seeds. Differences are paired by seed, with 95 % intervals (Student's "
    "t) where there are two seeds or more; left is better. Right: the effective learning rate at the end, in units "
    "of the same seed's without decay.",
    "For each kind of weight decay, its difference in outcome to no decay and to decoupled decay with intervals.",
)
def forest(results: Path, tables: Tables, theme: Theme) -> Figure:
    """Each kind at its best strength: difference to no decay and to decoupled decay, and effective learning rate."""
    runs = tables.runs
    outcomes = [outcome for outcome in OUTCOMES if not missing_metrics(runs, [outcome[0]])]
    if not outcomes or "decay" not in runs:
        raise UserError(f"{tables.experiment} at {tables.scale}: no outcome is in its table; run it again.")
    metric, label, factor, unit = outcomes[-1]
    effects = differences(runs, metric, factor)
    order = effects[effects["against"] == "none"].sort_values("effect")["decay"].tolist()
    if not order:
        raise UserError(f"{tables.experiment} at {tables.scale}: there is no pair with and without decay yet.")
    figure, axes = new_figure(1, 3, tables.stamp, width=4.2, height=0.28 * len(order) + 1.6)
    for axis, against, words in zip(axes, ("none", "decoupled"), ("no decay", "decoupled decay"), strict=False):
        rows = effects[effects["against"] == against]
        heights = [order.index(kind) for kind in rows["decay"]]
        axis.axvline(0, color=theme.muted, linewidth=1.0)
        axis.hlines(heights, rows["low"], rows["high"], color=theme.series[0], linewidth=1.6)
        axis.plot(rows["effect"], heights, color=theme.series[0], marker="o", markersize=5, linestyle="")
        axis.set(title=f"against {words}", xlabel=f"difference in {label} ({unit})")
    strengths = effects.drop_duplicates("decay").set_index("decay")["strength"]
    _effective(axes[2], runs, order, strengths, theme)
    kinds = [f"{kind.replace('_', ' ')} ({strengths[kind]:g})" for kind in order]
    for axis, labels in zip(axes, (kinds, [""] * len(order), [""] * len(order)), strict=True):
        axis.set_yticks(range(len(order)), labels)
        axis.set_ylim(len(order) - 0.5, -0.5)
    return figure


def effective_rate(runs: pd.DataFrame) -> tuple[str, str]:
    """The effective learning rate of the runs' optimizer, its metric and its symbol: SGD's where errors are counted."""
    return ("effective_lr/sgd", "η/‖w‖²") if "test/error" in runs else ("effective_lr/adamw", "η/‖w‖")


def ratios(runs: pd.DataFrame, metric: str, kind: str, strength: float) -> pd.Series:
    """`metric` at the end of a kind's runs over that of the same seed without decay, by seed, pilots left out."""
    runs = runs[runs["seed"] < PILOT] if (runs["seed"] < PILOT).any() else runs
    none = runs[runs[DECAY] == 0].set_index("seed")[metric]
    own = runs[(runs["decay"] == kind) & (_strengths(runs) == strength) & (runs[DECAY] > 0)].set_index("seed")[metric]
    return (own / none).dropna()


def _effective(axis: Axes, runs: pd.DataFrame, order: list[str], strengths: pd.Series, theme: Theme) -> None:
    """The effective learning rate at the end of each kind over that of the same seed without decay, as dots."""
    metric, symbol = effective_rate(runs)
    axis.axvline(1, color=theme.muted, linewidth=1.0)
    for height, kind in enumerate(order):
        values = ratios(runs, metric, kind, strengths[kind])
        axis.plot(values, [height] * len(values), color=theme.series[1], marker="o", markersize=4, linestyle="")
    plain_log(axis, "x")
    low, high = axis.get_xlim()
    if high / low < 4:  # with ticks at 1, 2 and 5 it could not be read
        axis.xaxis.set_major_locator(FixedLocator([0.6, 0.8, 0.9, 1, 1.1, 1.2, 1.5, 2, 3]))
        axis.minorticks_off()
        axis.set_xlim(low, high)
    axis.set(title="effective learning rate", xlabel=f"final {symbol}, times that without decay")


@drawing(
    "Passes over a text",
    "Left: loss on other documents after the same number of presentations, from one pass over much text to many "
    "over little. Right: difference to no decay of the same seed; below the line decay is better.",
    "Validation loss against training tokens for each decay, and its difference to the run without decay.",
)
def passes(results: Path, tables: Tables, theme: Theme) -> Figure:
    """Loss against the number of passes for each decay, and what decay wins over none (Fig 1 for language)."""
    runs, axis_name, metric = tables.runs, "data.train_tokens", "val/loss"
    figure, (left, right) = new_figure(1, 2, tables.band_stamp, width=4.6, height=3.6)
    strengths = sorted(runs[DECAY].unique())
    none = runs[runs[DECAY] == 0].set_index([axis_name, "seed"])[metric]
    for color, strength in zip(shades(theme, len(strengths)), strengths, strict=True):
        rows = runs[runs[DECAY] == strength]
        curve(left, rows, axis_name, metric, color, label=f"λ = {strength:g}", marker="o")
        keys = pd.MultiIndex.from_frame(rows[[axis_name, "seed"]])
        curve(right, rows.assign(gap=rows[metric] - none.reindex(keys).to_numpy()), axis_name, "gap", color, marker="o")
    sizes = sorted(runs[axis_name].unique())
    for axis in (left, right):
        axis.set_xscale("log")
        axis.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
        axis.minorticks_off()
        axis.invert_xaxis()
        axis.set_xlabel("training tokens (fewer: more passes)")
    left.set_ylabel("final validation loss")
    right.set_ylabel("difference to λ = 0")
    legend(figure, left, columns=5)
    return figure


@drawing(
    "Each at its own learning rate",
    "λ·η is the same along a line. What counts is the lowest point of each line, not the gap at one learning rate.",
    "Final validation loss of iterate and average against the learning rate for each product of rate and decay.",
)
def tuned(results: Path, tables: Tables, theme: Theme) -> Figure:
    """Final losses against the learning rate for each amount of decay λ·η, with and without averaging."""
    runs = tables.runs
    product = (runs[LEARNING_RATE] * runs[DECAY]).map(lambda value: float(f"{value:.2g}"))
    runs = runs.assign(product=product)
    figure, axes = new_figure(1, 2, tables.band_stamp, width=4.4, height=3.6)
    groups = sorted(runs["product"].unique())
    for axis, metric in zip(axes, ("val/loss", "ema/val/loss"), strict=True):
        for color, group in zip(shades(theme, len(groups)), groups, strict=True):
            rows = runs[runs["product"] == group]
            curve(axis, rows, LEARNING_RATE, metric, color, label=f"η·λ = {group:g}", marker="o")
        plain_log(axis, "x")
        axis.set(xlabel="η", ylabel=metric.replace("ema/", "EMA, ").replace("val/loss", "final validation loss"))
    legend(figure, axes[0], columns=4)
    return figure


def rate_exponent(runs: pd.DataFrame, metric: str) -> tuple[float, float, int]:
    """Exponent p of λ* ∝ η^p, half its 95 % interval (infinite with one seed), and the number of seeds.

    λ* is the best strength above 0 of each seed, learning rate, batch size and length; p is the slope of its logarithm
    within a batch size and length, one for each seed.
    """
    rows = runs[(runs[DECAY] > 0) & (runs["status"] == "completed")].dropna(subset=[metric])
    setting = ["seed", LEARNING_RATE, "batch_size", "duration"]
    best = rows.loc[rows.groupby(setting)[metric].idxmin()].assign(
        x=lambda frame: np.log(frame[LEARNING_RATE]), y=lambda frame: np.log(frame[DECAY])
    )
    pairs = best.groupby(["seed", "batch_size", "duration"])
    best["dx"], best["dy"] = best["x"] - pairs["x"].transform("mean"), best["y"] - pairs["y"].transform("mean")
    totals = best.assign(xy=best["dx"] * best["dy"], xx=best["dx"] ** 2).groupby("seed")[["xy", "xx"]].sum()
    slopes = (totals["xy"] / totals["xx"]).dropna()
    if slopes.empty:
        return np.nan, np.nan, 0  # one learning rate alone
    found = paired_interval(slopes.tolist())
    return found.mean, found.high - found.mean, found.count


@drawing(
    "Is the best decay a timescale?",
    "A line for each learning rate, batch size and length: the average's outcome above the lowest of its line, "
    "against τ = 1/(ηλ). Where lines fall on one another, that τ is what counts. In the title: the exponent p of "
    "λ ∝ η^p at the best decay, with its 95 % interval over seeds; a constant timescale has -1.",
    "Loss above the best of each setting against the timescale of decay in steps and as a share of the run.",
)
def timescale(results: Path, tables: Tables, theme: Theme) -> Figure:
    """What each decay costs above the best of its setting, against τ = 1/(ηλ) in steps and as a share of the run."""
    runs = tables.runs
    present = [metric for metric, *_ in OUTCOMES if not missing_metrics(runs, [metric])]
    if not present or not {LEARNING_RATE, "batch_size", "duration"} <= set(runs.columns):
        raise UserError(f"{tables.experiment} at {tables.scale}: no outcome over rate, batch and length; run it again.")
    metric = present[-1]
    slope, half, seeds = rate_exponent(runs, metric)
    rows = runs[(runs[DECAY] > 0) & (runs["status"] == "completed")]
    lengths = tables.main_curves.groupby("run_id")["step"].max()
    rows = rows.assign(tau=1 / (rows[LEARNING_RATE] * rows[DECAY]), steps=rows["run_id"].map(lengths))
    settings = list(rows.groupby([LEARNING_RATE, "batch_size", "duration"]))
    figure, (left, right) = new_figure(1, 2, tables.stamp, width=5.0, height=3.8)
    for color, ((rate, batch, length), part) in zip(shades(theme, len(settings)), settings, strict=True):
        mean = part.groupby("tau")[[metric]].mean().reset_index()
        mean["above"] = mean[metric] - mean[metric].min()
        label = f"η = {rate:g}, {batch:g} × {length}"
        left.plot(mean["tau"], mean["above"], color=color, marker="o", label=label)
        right.plot(mean["tau"] / part["steps"].max(), mean["above"], color=color, marker="o")
    for axis in (left, right):
        plain_log(axis, "x")
    interval = f" ± {half:.2g}" if seeds > 1 else ""
    left.set(
        xlabel="τ = 1/(ηλ), steps", ylabel=f"{metric} above the lowest", title=f"λ ∝ η^p, p = {slope:.2g}{interval}"
    )
    right.set(xlabel="τ as a share of the run")
    legend(figure, left, columns=3)
    return figure
