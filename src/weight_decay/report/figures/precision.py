"""What precision does to a language model: divergence in bfloat16 (Figs 8, 24, 25) and weight decay that is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from weight_decay.report.figures.demo import drawing
from weight_decay.report.figures.language import said
from weight_decay.report.figures.reference import paper_title, reference
from weight_decay.report.figures.style import (
    DASHED,
    LineStyle,
    Theme,
    curve,
    decay_colors,
    empty,
    faded,
    legend,
    legend_within,
    new_figure,
    plain_log,
)
from weight_decay.report.tables.read import DECAY, LEARNING_RATE, Tables, missing_metrics


@drawing(
    "Precision, decay and divergence",
    "Top: final validation loss against decay; a cross marks cells in which a run diverged. Below: the largest "
    "attention logit and activation at the end.",
    "Final validation loss and stability indicators against decay for learning rates, precisions and kernels.",
)
def divergence(results: Path, tables: Tables, theme: Theme) -> Figure:
    """Which runs diverge, what they end at, and the indicators that move first (Figs 8, 24, 25)."""
    runs = tables.runs
    quantities = [
        ("val/loss", "final validation loss"),
        ("stability/max_attention_logit", "largest attention logit"),
        ("stability/max_activation", "largest activation"),
    ]
    quantities = [item for item in quantities if not missing_metrics(runs, [item[0]])]
    rates = sorted(runs[LEARNING_RATE].unique())
    paper = reference(results, "8", "train_loss")
    columns = len(rates) + (0 if paper.empty else 1)
    figure, axes = new_figure(len(quantities), columns, tables.band_stamp, width=3.6, height=2.7)
    for axis in axes[len(rates) :: columns] if columns > len(rates) else []:
        axis.set_axis_off()
    if not paper.empty:
        _paper_divergence(axes[len(rates)], paper, theme)
    kinds = [name for name in ("precision", "model.attention") if name in runs]
    groups = list(runs.groupby(kinds)) if kinds else [(("",), runs)]
    for row, (metric, label) in enumerate(quantities):
        for column, rate in enumerate(rates):
            axis = axes[row * columns + column]
            for index, (kind, rows) in enumerate(groups):
                rows = rows[rows[LEARNING_RATE] == rate]
                color = theme.series[index % len(theme.series)]
                name = ", ".join(said(name, value) for name, value in zip(kinds, kind, strict=False))
                if rows.empty:
                    axis.plot([], [], color=color, marker="o", label=name)
                    continue
                curve(axis, rows, DECAY, metric, color, label=name, marker="o", geometric=metric != "val/loss")
                lost = rows[rows["status"] == "diverged"].groupby(DECAY)[metric].mean()
                axis.plot(lost.index, lost, linestyle="", marker="x", markersize=11, color=color)
            if metric != "val/loss":
                plain_log(axis)
            axis.set(title=f"η = {rate:g}" if row == 0 else "", xlabel="λ", ylabel=label if column == 0 else "")
    legend(figure, axes[0], columns=3)
    return figure


def _paper_divergence(axis: Axes, points: pd.DataFrame, theme: Theme) -> None:
    """The paper's nine runs in bfloat16 and three in float32, all at η = 1e-3: a line for each seed."""
    axis.set_axis_on()
    colors = decay_colors(theme, points["decay"])
    for (decay, precision, _), rows in points.groupby(["decay", "precision", "seed"]):
        line = DASHED if precision == "float32" else "-"
        color = faded(colors[float(str(decay))], theme)
        label = f"λ = {decay:g}" + (", float32" if precision == "float32" else "")
        axis.plot(rows["x"], rows["y"], color=color, linewidth=0.9, linestyle=line, label=label)
    legend_within(axis, fontsize=7.0)
    axis.set_ylim(2.9, 3.5)
    axis.locator_params(axis="x", nbins=4)
    axis.set(xlabel="iteration", ylabel="training loss")
    axis.set_title(paper_title("8"), color=theme.muted)


def kept_shares(runs: pd.DataFrame) -> pd.DataFrame:
    """Columns `how`, `product` (η·λ), `seed`, `kept` for every run with bfloat16 weights and λ > 0.

    kept = ln(‖w‖ at λ = 0 / ‖w‖ at λ), both of the same kind, over the same of the float32 runs.
    """
    words = runs["precision.rounding"].where(
        runs["precision.rounding"] != "kernel", runs["optimizer.kernel"] + " kernel"
    )
    runs = runs.assign(how=words.where(runs["precision"] == "bfloat16", "float32"), log=np.log(runs["weights/norm"]))
    keys = ["how", LEARNING_RATE, "seed"]
    base = runs[runs[DECAY] == 0].set_index(keys)["log"]
    decayed = runs[runs[DECAY] > 0].set_index([*keys, DECAY])["log"]
    fall = (base - decayed).dropna().rename("fall").reset_index()
    exact = fall[fall["how"] == "float32"].drop(columns="how")
    joined = fall[fall["how"] != "float32"].merge(exact, on=[LEARNING_RATE, "seed", DECAY], suffixes=("", "_exact"))
    product = (joined[LEARNING_RATE] * joined[DECAY]).map(lambda value: float(f"{value:.6g}"))
    return joined.assign(product=product, kept=joined["fall"] / joined["fall_exact"])


@drawing(
    "What bfloat16 does to weight decay",
    "Kept: the fall of the log weight norm that decay causes, divided by the same in float32. The dotted line is "
    "η·λ = 1/512, where a step of decay is half a unit in the last place.",
    "Share of the weight decay kept against the product of learning rate and decay, for kernels and roundings.",
)
def decay_kept(results: Path, tables: Tables, theme: Theme) -> Figure:
    """Share of float32's weight decay that bfloat16 weights keep, against η·λ (a figure of our own)."""
    shares = kept_shares(tables.runs)
    figure, (axis,) = new_figure(1, 1, tables.band_stamp, width=7.0, height=4.2)
    lines: tuple[LineStyle, ...] = ("-", DASHED)
    for index, (how, rows) in enumerate(shares.groupby("how")):
        color = theme.series[index % len(theme.series)]
        for line, (rate, part) in zip(lines, rows.groupby(LEARNING_RATE), strict=False):
            curve(axis, part, "product", "kept", color, label=f"{how}, η = {rate:g}", linestyle=line, marker="o")
    axis.axvline(1 / 512, color=theme.muted, linewidth=1.0, linestyle=":")
    for level in (0, 1):
        axis.axhline(level, color=theme.muted, linewidth=0.8)
    plain_log(axis, "x")
    # Shares through a difference near zero say nothing (the replay does); they must not set the scale.
    axis.set_ylim(-0.5, 1.6)
    axis.set(xlabel="η·λ", ylabel="share of float32's decay that is kept")
    legend(figure, axis, columns=2)
    return figure


ROUNDINGS = {
    "foreach": "foreach kernel",
    "fused": "fused kernel",
    "nearest": "nearest, float32 moments",
    "stochastic": "stochastic",
    "kahan": "Kahan",
}


@drawing(
    "What bfloat16 does to weight decay, by replay",
    "One sequence of a run's own gradients drives weights with and without decay in each arithmetic. A point for "
    "each seed: what decay did to bfloat16 weights, along what it did to float32 ones. 0 is lost, 1 is kept.",
    "Share of weight decay that is kept by each rounding and kernel of bfloat16 weights.",
)
def replay(results: Path, tables: Tables, theme: Theme) -> Figure:
    """Share of float32's weight decay that bfloat16 weights keep when the same gradients are replayed (our own)."""
    runs = tables.runs
    strengths = sorted({float(str(name).rpartition("_")[2]) for name in runs if str(name).startswith("replay/")})
    figure, axes = new_figure(1, max(1, len(strengths)), tables.stamp, width=6.0, height=3.2)
    if not strengths:
        empty(axes[0], "no gradients were replayed in these runs", theme)
    for axis, strength in zip(axes, strengths, strict=False):
        for place, key in enumerate(ROUNDINGS):
            values = runs[f"replay/{key}/kept_{strength:g}"].dropna()
            spread = place + np.linspace(-0.15, 0.15, len(values)) if len(values) > 1 else [place]
            axis.plot(spread, values, "o", color=theme.series[place % len(theme.series)], markersize=5)
        for level in (0, 1):
            axis.axhline(level, color=theme.muted, linewidth=0.8)
        axis.set_xticks(range(len(ROUNDINGS)), [name.replace(" ", "\n", 1) for name in ROUNDINGS.values()], fontsize=8)
        axis.set_ylim(-0.1, 1.15)
        axis.set(ylabel="share of float32's decay kept", title=f"λ = {strength:g}")
    return figure
