"""Figures of the under-training regime: Figs 6-8 and 19-26 of the paper, and the two studies of our own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from weight_decay.report.figures import LINES, NORM_LABEL, DrawnFigure, drawn, zoom
from weight_decay.report.reference import decay_of, reference
from weight_decay.report.style import (
    DASHED,
    LineStyle,
    Theme,
    curve,
    empty,
    faded,
    legend,
    new_figure,
    plain_log,
    shades,
)
from weight_decay.report.tables import DECAY, LEARNING_RATE, Tables, missing_metrics

NAMES = {
    LEARNING_RATE: "η = {}",
    DECAY: "λ = {}",
    "schedule.reference_strength": "matched to λ = {}",
    "schedule.norm": "{}",
    "schedule.power": "power {}",
    "schedule.decay_until": "cosine to {}",
    "decay": "{}",
    "precision": "{}",
    "precision.rounding": "{} rounding",
    "optimizer.kernel": "{}",
    "model.attention": "{} attention",
    "model": "{}",
    "model.width": "width {}",
    "model.qk_norm": "QK-norm {}",
    "duration": "{}",
}
"""Coordinates of language-model cells, and how a legend says them."""


@dataclass(frozen=True)
class Panel:
    """One quantity against iterations; `paper`: the figure and metric of the digitised curves to lay under it."""

    metric: str
    label: str
    logarithmic: bool = False
    zoomed: bool = False
    paper: tuple[str, str] | None = None


VALIDATION = Panel("val/loss", "validation loss (nats per token)", zoomed=True)
TRAINING = Panel("train/loss", "training loss (nats per token)", zoomed=True)
WEIGHTS = Panel("weights/norm", NORM_LABEL, logarithmic=True)
EFFECTIVE = Panel("effective_lr/adamw", r"effective learning rate $\eta_t / \|w_t\|_2$", logarithmic=True)
LOSSES = (VALIDATION, TRAINING, WEIGHTS, EFFECTIVE)
FIGURE_6 = (
    VALIDATION,
    TRAINING,
    Panel("batch/loss", "loss of the batches, smoothed", zoomed=True, paper=("6", "train_loss")),
    Panel("grad/norm", "gradient norm before clipping", logarithmic=True),
    WEIGHTS,
    EFFECTIVE,
)
FIGURE_7 = (EFFECTIVE, Panel("lr", "learning rate", logarithmic=True), VALIDATION, WEIGHTS)
FIGURE_19 = (
    Panel("gap/unseen", "unseen minus seen windows (nats)"),
    Panel("gap/documents", "other documents minus seen windows (nats)"),
    TRAINING,
    VALIDATION,
)
FIGURE_23 = (
    VALIDATION,
    Panel("ema_0.999/val/loss", "validation loss of the EMA, 0.999", zoomed=True),
    Panel("tail/val/loss", "validation loss of the tail average"),
)


def trajectories(results: Path, tables: Tables, panels: tuple[Panel, ...], title: str, caption: str) -> DrawnFigure:
    """Each cell of an experiment against iterations, one panel for each quantity (Figs 6, 7, 19-23, 26)."""
    curves = _with_gaps(tables.main_curves)
    shown = [panel for panel in panels if not missing_metrics(curves, [panel.metric])]
    names = ", ".join(panel.label for panel in shown)
    return drawn(
        results, tables, title, caption, f"{names} against iterations, a line for each cell.",
        lambda theme: _trajectories(results, tables, curves, shown, theme),
    )  # fmt: skip


def _trajectories(results: Path, tables: Tables, curves: pd.DataFrame, panels: list[Panel], theme: Theme) -> Figure:
    columns = 2 if len(panels) in (2, 4) else 3
    rows = -(-len(panels) // columns)
    figure, axes = new_figure(rows, columns, tables.band_stamp, width=4.4)
    lines = cells(curves, theme)
    for axis, panel in zip(axes, panels, strict=False):
        measured = []
        for part, name, color in lines:
            part = _smoothed(part) if panel.metric == "batch/loss" else part
            part = part[part["step"] > 0] if panel.logarithmic else part
            curve(axis, part, "step", panel.metric, color, label=name)
            measured.append((part, panel.metric))
            averaged = f"ema/{panel.metric}"
            if panel.metric.endswith("/loss") and not missing_metrics(part, [averaged]):
                curve(axis, part, "step", averaged, color, line=DASHED, width=1.3)
                measured.append((part, averaged))
        if panel.paper is not None and tables.scale == "paper":
            _paper(results, axis, panel.paper, theme)
        if panel.logarithmic:
            plain_log(axis)
        if panel.zoomed:
            zoom(axis, measured)
        if panel.metric.startswith("gap/"):
            axis.axhline(0, color=theme.muted, linewidth=1.0)
        axis.set(xlabel="iteration", ylabel=panel.label)
        axis.margins(x=0.01)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    legend(figure, axes[0], columns=3, lines=LINES)
    return figure


def cells(curves: pd.DataFrame, theme: Theme) -> list[tuple[pd.DataFrame, str, str]]:
    """Rows, label and colour of each cell of the grid, seeds together, in the order of what varies."""
    varying = [name for name in NAMES if name in curves and curves[name].nunique(dropna=False) > 1]
    varying = varying or [DECAY]
    groups = list(curves.groupby(varying, dropna=False, sort=True))
    palette = theme.series if len(groups) <= len(theme.series) else shades(theme, len(groups))
    found = []
    for (values, rows), color in zip(groups, palette, strict=False):
        found.append((rows, ", ".join(_words(varying, values)), color))
    return found


def _words(names: list[str], values: Any) -> list[str]:
    pairs = zip(names, values if isinstance(values, tuple) else (values,), strict=True)
    said = [NAMES[name].format(f"{v:g}" if isinstance(v, float) else v) for name, v in pairs if not pd.isna(v)]
    return said or ["as Fig 6"]


def _with_gaps(curves: pd.DataFrame) -> pd.DataFrame:
    if missing_metrics(curves, ["unseen/loss", "train/loss", "val/loss"]):
        return curves
    seen = curves["train/loss"]
    gaps = {"gap/unseen": curves["unseen/loss"] - seen, "gap/documents": curves["val/loss"] - seen}
    return curves.assign(**gaps)


def _smoothed(rows: pd.DataFrame) -> pd.DataFrame:
    """Losses of single batches are noise; a running mean over a fiftieth of the log shows the level."""
    rows = rows.dropna(subset=["batch/loss"]).sort_values("step")
    window = max(1, rows["step"].nunique() // 50)
    means = rows.groupby("run_id")["batch/loss"].transform(lambda losses: losses.rolling(window).mean())
    return rows.assign(**{"batch/loss": means})


def _paper(results: Path, axis: Any, paper: tuple[str, str], theme: Theme) -> None:
    points = reference(results, *paper)
    for index, (_, rows) in enumerate(points.groupby(decay_of(points))):
        axis.plot(rows["x"], rows["y"], color=faded(theme.series[index], theme), linewidth=1.0)


def tails(results: Path, tables: Tables) -> DrawnFigure:
    """What a tiny learning rate wins from each snapshot: loss at its end, and its fall (Fig 6)."""
    return drawn(
        results, tables, "A tiny learning rate from each snapshot",
        "Weight decay raises the loss at a large learning rate and the fall when it becomes tiny: "
        "the fall is the validation loss at the snapshot minus that at the end of its branch.",
        "Final validation loss of the tiny-learning-rate branches and their fall, against the snapshot's step.",
        lambda theme: _tails(tables, theme), "-tails",
    )  # fmt: skip


def _tails(tables: Tables, theme: Theme) -> Figure:
    figure, (level, fall) = new_figure(1, 2, tables.band_stamp, width=4.8)
    ends = tables.summary[tables.summary["branch"] != "main"]
    ends = ends[ends["start_step"].notna()] if "start_step" in ends else ends.iloc[:0]
    if ends.empty or missing_metrics(ends, ["val/loss"]):
        for axis in (level, fall):
            empty(axis, "no branches in these runs", theme)
        return figure
    before = tables.main_curves.dropna(subset=["val/loss"]).set_index(["run_id", "step"])["val/loss"]
    ends = ends.assign(step=ends["start_step"].astype(int))
    keys = pd.MultiIndex.from_frame(ends[["run_id", "step"]])
    ends = ends.assign(fall=before.reindex(keys).to_numpy() - ends["val/loss"].to_numpy())
    for index, (decay, rows) in enumerate(ends.groupby(DECAY)):
        color = theme.series[index % len(theme.series)]
        curve(level, rows, "step", "val/loss", color, label=f"λ = {decay:g}", marker="o")
        curve(fall, rows, "step", "fall", color, marker="o")
    level.set(xlabel="snapshot (iteration)", ylabel="validation loss after the tail")
    fall.set(xlabel="snapshot (iteration)", ylabel="fall in validation loss")
    legend(figure, level, columns=3)
    return figure


def divergence(results: Path, tables: Tables) -> DrawnFigure:
    """Which runs diverge, what they end at, and the indicators that move first (Figs 8, 24, 25)."""
    return drawn(
        results, tables, "Precision, decay and divergence",
        "Top: final validation loss against decay; a cross marks cells in which a run diverged. Below: the largest "
        "attention logit and activation at the end.",
        "Final validation loss and stability indicators against decay for learning rates, precisions and kernels.",
        lambda theme: _divergence(tables, theme),
    )  # fmt: skip


def _divergence(tables: Tables, theme: Theme) -> Figure:
    runs = tables.runs
    quantities = [
        ("val/loss", "final validation loss"),
        ("stability/max_attention_logit", "largest attention logit"),
        ("stability/max_activation", "largest activation"),
    ]
    quantities = [item for item in quantities if not missing_metrics(runs, [item[0]])]
    rates = sorted(runs[LEARNING_RATE].unique())
    figure, axes = new_figure(len(quantities), len(rates), tables.band_stamp, width=3.6, height=2.7)
    kinds = [name for name in ("precision", "model.attention") if name in runs]
    groups = list(runs.groupby(kinds)) if kinds else [(("",), runs)]
    for row, (metric, label) in enumerate(quantities):
        for column, rate in enumerate(rates):
            axis = axes[row * len(rates) + column]
            for index, (kind, rows) in enumerate(groups):
                rows = rows[rows[LEARNING_RATE] == rate]
                color = theme.series[index % len(theme.series)]
                name = ", ".join(map(str, kind)) if isinstance(kind, tuple) else str(kind)
                if rows.empty:
                    axis.plot([], [], color=color, label=name)
                    continue
                curve(axis, rows, DECAY, metric, color, label=name, marker="o")
                lost = rows[rows["status"] == "diverged"].groupby(DECAY)[metric].mean()
                axis.plot(lost.index, lost, linestyle="", marker="x", markersize=11, color=color)
            if metric != "val/loss":
                plain_log(axis)
            axis.set(title=f"η = {rate:g}" if row == 0 else "", xlabel="λ", ylabel=label if column == 0 else "")
    legend(figure, axes[0], columns=3)
    return figure


def decay_kept(results: Path, tables: Tables) -> DrawnFigure:
    """Share of float32's weight decay that bfloat16 weights keep, against η·λ (a figure of our own)."""
    return drawn(
        results, tables, "What bfloat16 does to weight decay",
        "Kept: the fall of the log weight norm that decay causes, divided by the same in float32. The dotted line is "
        "η·λ = 1/512, where a step of decay is half a unit in the last place.",
        "Share of the weight decay kept against the product of learning rate and decay, for kernels and roundings.",
        lambda theme: _decay_kept(tables, theme),
    )  # fmt: skip


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


def _decay_kept(tables: Tables, theme: Theme) -> Figure:
    shares = kept_shares(tables.runs)
    figure, (axis,) = new_figure(1, 1, tables.band_stamp, width=7.0, height=4.2)
    lines: tuple[LineStyle, ...] = ("-", DASHED)
    for index, (how, rows) in enumerate(shares.groupby("how")):
        color = theme.series[index % len(theme.series)]
        for line, (rate, part) in zip(lines, rows.groupby(LEARNING_RATE), strict=False):
            curve(axis, part, "product", "kept", color, label=f"{how}, η = {rate:g}", line=line, marker="o")
    axis.axvline(1 / 512, color=theme.muted, linewidth=1.0, linestyle=":")
    for level in (0, 1):
        axis.axhline(level, color=theme.muted, linewidth=0.8)
    plain_log(axis, "x")
    axis.set(xlabel="η·λ", ylabel="share of float32's decay that is kept")
    legend(figure, axis, columns=2)
    return figure
