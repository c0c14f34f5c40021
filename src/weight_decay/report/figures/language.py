"""Figures of the under-training regime: Figs 6-8 and 19-26 of the paper, and the two studies of our own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from weight_decay.report.figures.demo import LINES, NORM_LABEL, DrawnFigure, Panel, drawing, drawn, zoom
from weight_decay.report.figures.differences import DIFFERENCE_METRIC, differences, smoothed, with_differences
from weight_decay.report.figures.reference import paper_title, reference
from weight_decay.report.figures.style import (
    DASHED,
    Theme,
    curve,
    decay_colors,
    empty,
    faded,
    legend,
    legend_within,
    new_figure,
    panel_grid,
    plain_log,
    shades,
    with_average,
)
from weight_decay.report.tables.read import DECAY, LEARNING_RATE, Tables, missing_metrics

THEIR_RATE = 6e-4
"""The learning rate of the paper's Figs 6, 7 and 26; Fig 25b has two more."""
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
SAID = {
    "bfloat16_autocast": "bfloat16 autocast",
    "decoupled": "LayerNorm decays too",
    "penalty_except_norms": "l2 penalty",
    "l2_except_norms": "l2 penalty (half)",
    "per_matrix": "each matrix",
    "whole": "whole norm",
    "auto": "fastest",
    "matched_effective_lr": "matched",
    "gpt_micro": "small model",
}
"""Values whose names in the code say little."""


VALIDATION = Panel("val/loss", "validation loss (nats per token)", zoomed=True)
TRAINING = Panel("train/loss", "training loss (nats per token)", zoomed=True)
WEIGHTS = Panel("weights/norm", NORM_LABEL, logarithmic=True)
EFFECTIVE = Panel("effective_lr/adamw", r"effective learning rate $\eta_t / \|w_t\|_2$", logarithmic=True)
DIFFERENCE = Panel(DIFFERENCE_METRIC, "training loss minus that at λ = 0")
BATCHES = Panel("batch/loss", "loss of the batches, smoothed", zoomed=True)
LOSSES = (DIFFERENCE, VALIDATION, WEIGHTS, EFFECTIVE)
FIGURE_6 = (
    replace(BATCHES, paper=("6", "train_loss")),
    DIFFERENCE,
    VALIDATION,
    replace(WEIGHTS, paper=("25b", "weight_norm")),
    Panel("grad/norm", "gradient norm before clipping", logarithmic=True),
)
FIGURE_7 = (
    replace(EFFECTIVE, paper=("7a", "effective_lr")),
    Panel("lr", "learning rate", logarithmic=True, paper=("7b", "lr")),
    replace(BATCHES, paper=("7c", "train_loss")),
    VALIDATION,
    WEIGHTS,
)
MATCHING = (EFFECTIVE, Panel("lr", "learning rate", logarithmic=True), BATCHES, VALIDATION)
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


def trajectories(results: Path, tables: Tables, panels: tuple[Panel, ...], title: str) -> DrawnFigure:
    """Each cell of an experiment against iterations, one panel for each quantity (Figs 6, 7, 19-23, 26)."""
    curves = with_differences(_with_gaps(tables.main_curves), list(NAMES))
    shown = [panel for panel in panels if not missing_metrics(curves, [panel.metric])]
    names = ", ".join(panel.label for panel in shown)
    return drawn(
        results, tables, title, "Dashed: the moving average of the weights.",
        f"{names} against iterations, a line for each cell.",
        lambda theme: _trajectories(results, tables, curves, shown, theme),
    )  # fmt: skip


def _trajectories(results: Path, tables: Tables, curves: pd.DataFrame, panels: list[Panel], theme: Theme) -> Figure:
    beside = {panel: reference(results, *panel.paper) for panel in panels if panel.paper}
    slots = [
        (panel, paper) for panel in panels for paper in ((False, True) if len(beside.get(panel, ())) else (False,))
    ]
    figure, axes = panel_grid(len(slots), 2 if len(slots) in (2, 4) else 3, tables.band_stamp, width=4.4)
    lines = cells(curves, theme)
    completed = set(tables.runs["run_id"][tables.runs["status"] == "completed"])
    for axis, (panel, paper) in zip(axes, slots, strict=True):
        if paper:
            _paper(axis, panel, beside[panel], theme)
        else:
            _ours(axis, panel, lines, completed, theme)
        axis.set(xlabel="iteration", ylabel=panel.label)
        axis.margins(x=0.01)
    legend(figure, axes[0], columns=3, lines=LINES)
    return figure


def _ours(
    axis: Axes, panel: Panel, lines: list[tuple[pd.DataFrame, str, str]], completed: set[str], theme: Theme
) -> None:
    if panel.metric == DIFFERENCE_METRIC:
        differences(axis, lines, theme)
        return
    measured = []
    for part, name, color in lines:
        part = smoothed(part) if panel.metric == "batch/loss" else part
        part = part[part["step"] > 0] if panel.logarithmic else part
        drawn_metrics = with_average(
            axis, part, "step", panel.metric, color, 1.3, label=name, geometric=panel.logarithmic
        )
        # What is zoomed in on: a run that diverges would hide all others.
        whole = part[part["run_id"].isin(completed)]
        measured += [(whole, metric) for metric in drawn_metrics if len(whole)]
    if panel.logarithmic:
        plain_log(axis)
    if panel.zoomed:
        zoom(axis, measured)
    if panel.metric.startswith("gap/"):
        axis.axhline(0, color=theme.muted, linewidth=1.0)
    if panel.paper:
        axis.set_title("Ours")


def cells(curves: pd.DataFrame, theme: Theme) -> list[tuple[pd.DataFrame, str, str]]:
    """Rows, label and colour of each cell of the grid, seeds together, in the order of what varies."""
    varying = [name for name in NAMES if name in curves and curves[name].nunique(dropna=False) > 1]
    varying = varying or [DECAY]
    found = []
    for values, rows, color in colored(curves, varying, theme):
        pairs = zip(varying, values, strict=True)
        words = ", ".join(said(name, value) for name, value in pairs if not pd.isna(value))
        found.append((rows, words or "as Fig 6", color))
    return found


def colored(curves: pd.DataFrame, names: list[str], theme: Theme) -> list[tuple[tuple[Any, ...], pd.DataFrame, str]]:
    """Values, rows and colour of each group that agrees in `names`; where they are λ alone, it has its own colours."""
    groups = list(curves.groupby(names, dropna=False, sort=True))
    if names == [DECAY]:
        colors = decay_colors(theme, curves[DECAY])
        palette = [colors[rows[DECAY].iloc[0]] for _, rows in groups]
    else:
        palette = list(theme.series) if len(groups) <= len(theme.series) else shades(theme, len(groups))
    return [(values, rows, color) for (values, rows), color in zip(groups, palette, strict=False)]


def said(name: str, value: Any) -> str:
    """A coordinate in words: `λ = 0.05`, `bfloat16 autocast`."""
    return NAMES[name].format(f"{value:g}" if isinstance(value, float) else SAID.get(str(value), value))


def _with_gaps(curves: pd.DataFrame) -> pd.DataFrame:
    if missing_metrics(curves, ["unseen/loss", "train/loss", "val/loss"]):
        return curves
    seen = curves["train/loss"]
    gaps = {"gap/unseen": curves["unseen/loss"] - seen, "gap/documents": curves["val/loss"] - seen}
    return curves.assign(**gaps)


def _paper(axis: Axes, panel: Panel, points: pd.DataFrame, theme: Theme) -> None:
    """The paper's curves of one panel: a colour for each λ, dashed in float32; its tails have a figure of their own."""
    points = points[points["iterate"] != "tiny_lr"]
    points = points[(points["lr"] == THEIR_RATE) | points["lr"].isna()]
    points = points.fillna({"lr": 0.0, "precision": "", "note": ""})
    order = sorted(points["decay"].unique())
    colors = decay_colors(theme, order)
    notes = sorted(set(points["note"][points["lr"] == 0]))
    for (decay, rate, precision, note), rows in points.groupby(["decay", "lr", "precision", "note"]):
        name = f"λ = {decay:g}" if rate else str(note).replace("wd=", "λ = ")
        other = theme.series[(len(order) + notes.index(note)) % len(theme.series)] if not rate else ""
        color = colors[float(str(decay))] if rate else other
        line = DASHED if precision == "float32" else "-"
        label = f"{name}, float32" if precision == "float32" else name
        axis.plot(rows["x"], rows["y"], color=faded(color, theme), linewidth=1.0, linestyle=line, label=label)
    if panel.logarithmic:
        plain_log(axis)
    else:
        axis.locator_params(axis="y", nbins=6)
    axis.locator_params(axis="x", nbins=4)
    axis.set_title(paper_title(panel.paper[0]), color=theme.muted)
    legend_within(axis, fontsize=7.5)


@drawing(
    "A tiny learning rate from each snapshot",
    "Weight decay raises the loss at a large learning rate and the fall when it becomes tiny: "
    "the fall is the validation loss at the snapshot minus that at the end of its branch.",
    "Final validation loss of the tiny-learning-rate branches and their fall, against the snapshot's step.",
    part="-tails",
)
def tails(results: Path, tables: Tables, theme: Theme) -> Figure:
    """What a tiny learning rate wins from each snapshot: loss at its end, and its fall (Fig 6)."""
    figure, (level, fall, theirs) = new_figure(1, 3, tables.band_stamp, width=4.4)
    _paper_tails(theirs, reference(results, "6", "train_loss", "tiny_lr"), theme)
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
    colors = decay_colors(theme, ends[DECAY])
    for decay, rows in ends.groupby(DECAY):
        color = colors[float(str(decay))]
        curve(level, rows, "step", "val/loss", color, label=f"λ = {decay:g}", marker="o")
        curve(fall, rows, "step", "fall", color, marker="o")
    level.set(xlabel="snapshot (iteration)", ylabel="validation loss after the tail")
    fall.set(xlabel="snapshot (iteration)", ylabel="fall in validation loss")
    legend(figure, level, columns=3)
    return figure


def _paper_tails(axis: Axes, points: pd.DataFrame, theme: Theme) -> None:
    if points.empty:
        axis.set_axis_off()
        return
    ends = points.groupby(["decay", "start"], as_index=False).last()
    colors = decay_colors(theme, ends["decay"])
    for decay, rows in ends.groupby("decay"):
        color = faded(colors[float(str(decay))], theme)
        axis.plot(rows["start"], rows["y"], "-o", color=color, linewidth=1.0, markersize=4)
    axis.locator_params(axis="x", nbins=4)
    axis.set(xlabel="snapshot (iteration)", ylabel="training loss after the tail")
    axis.set_title(paper_title("6"), color=theme.muted)
