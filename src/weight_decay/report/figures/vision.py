"""Figures of the over-training regime against epochs and data-set size: Figs 1, 2, 5, 11, 12 of the paper."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from weight_decay.report.figures.demo import (
    JACOBIAN_LABEL,
    LINES,
    NORM_LABEL,
    DrawnFigure,
    Panel,
    cells_of,
    drawing,
    drawn,
    over_epochs,
)
from weight_decay.report.figures.reference import paper_title, reference
from weight_decay.report.figures.style import (
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
from weight_decay.report.tables.cells import TRAIN_SIZE, branch_ends, one_decay_for_all
from weight_decay.report.tables.read import DECAY, LEARNING_RATE, Tables, missing_metrics

ERROR = ("test/error", "test error (%)")
FIGURE_2 = (
    Panel(*ERROR, paper=("2a", "test_error"), factor=100),
    Panel("train/loss", "training cross-entropy", paper=("2b", "train_cross_entropy"), logarithmic=True),
    Panel("weights/norm", NORM_LABEL, paper=("2c", "weight_norm")),
)
FIGURE_2D = (Panel(*ERROR, paper=("2d", "test_error"), factor=100),)
FIGURE_5 = (
    Panel("train/loss", "training cross-entropy", paper=("5a", "train_cross_entropy"), logarithmic=True),
    Panel(*ERROR, paper=("5b", "test_error"), factor=100),
    Panel("jacobian/mean_square", JACOBIAN_LABEL, paper=("5c", "jacobian_norm"), logarithmic=True),
    Panel("weights/norm", NORM_LABEL, paper=("5d", "weight_norm")),
    Panel("hessian/trace", "trace of the Hessian", paper=("14", "hessian_trace"), logarithmic=True),
)


def against_epochs(results: Path, tables: Tables, panels: tuple[Panel, ...], title: str, caption: str) -> DrawnFigure:
    """Iterate and EMA of every (η, λ) against epochs, ours left and the paper's right (Figs 2, 11, 12)."""
    shown = [panel for panel in panels if not missing_metrics(tables.main_curves, [panel.metric])]
    names = ", ".join(panel.label for panel in shown)
    return drawn(
        results, tables, title, caption,
        f"{names} against epochs, our runs beside the paper's curves.",
        lambda theme: _against_epochs(results, tables, shown, theme),
    )  # fmt: skip


def _against_epochs(results: Path, tables: Tables, panels: list[Panel], theme: Theme) -> Figure:
    curves = tables.main_curves
    figure, axes = new_figure(len(panels), 2, tables.band_stamp, width=4.6)
    for row, panel in enumerate(panels):
        ours, theirs = axes[2 * row], axes[2 * row + 1]
        over_epochs(ours, curves, panel.metric, theme, 1.4, factor=panel.factor)
        _paper_curves(results, theirs, panel, theme, named=row == 0)
        for axis in (ours, theirs):
            axis.set(xlabel="epoch", ylabel=panel.label)
            axis.margins(x=0.01)
            if panel.logarithmic and axis.lines:
                plain_log(axis)
            elif panel.factor == 100:
                axis.set_ylim(bottom=0)
        ours.set_title("Ours")
        theirs.set_title(paper_title(panel.paper[0]), color=theme.muted)
        if not theirs.lines:
            empty(theirs, "not digitised", theme)
    legend(figure, axes[0], columns=3, lines=LINES)
    return figure


def _paper_curves(results: Path, axis: Axes, panel: Panel, theme: Theme, named: bool) -> None:
    """Every (η, λ) of the paper's panel, drained of colour; iterate solid, EMA dashed."""
    lines: dict[str, LineStyle] = {"sgd": "-", "ema": DASHED}
    points = reference(results, *panel.paper)
    for rows, name, color in cells_of(points.rename(columns={"lr": LEARNING_RATE, "decay": DECAY}), theme):
        for iterate, line in lines.items():
            part = rows[rows["iterate"] == iterate]
            axis.plot(
                part["x"], part["y"] * panel.factor, linestyle=line, color=faded(color, theme), linewidth=1.2,
                label=name if iterate == "sgd" else "_", marker="o" if len(part) == 1 else "",
            )  # fmt: skip
    if not points.empty and named:
        axis.legend(fontsize=7.5, ncols=2, handlelength=1.8, loc="best")


@drawing(
    "Fine-tuning along the way",
    "Each fine-tuned point starts from the iterate at that epoch and trains on at a small learning "
    "rate without decay. The lower row of each pair is the paper's.",
    "Training loss, test error, Jacobian norm and weight norm of iterate, average and fine-tuned iterate.",
)
def finetuning(results: Path, tables: Tables, theme: Theme) -> Figure:
    """Iterate, EMA and fine-tuned iterate for each η against epochs (Figs 5 and 14)."""
    main, finetuned = tables.main_curves, branch_ends(tables)
    panels = [panel for panel in FIGURE_5 if not missing_metrics(main, [panel.metric])]
    rates = sorted(main[LEARNING_RATE].unique())
    papers = [reference(results, *panel.paper) for panel in panels]
    rows_of_panels = len(panels) + sum(not points.empty for points in papers)
    figure, axes = new_figure(rows_of_panels, 3, tables.band_stamp, width=3.6, height=2.5)
    remaining = iter(axes)
    for panel, points in zip(panels, papers, strict=True):
        ours = [next(remaining) for _ in range(3)]
        theirs = [] if points.empty else [next(remaining) for _ in range(3)]
        for rate, color in zip(rates, shades(theme, len(rates)), strict=True):
            rows, ends = main[main[LEARNING_RATE] == rate], finetuned[finetuned[LEARNING_RATE] == rate]
            sources = ((rows, panel.metric), (rows, f"ema/{panel.metric}"), (ends, panel.metric))
            for axis, (source, metric) in zip(ours, sources, strict=True):
                if not missing_metrics(source, [metric]):
                    label = f"η = {rate:g}"
                    marker = "." if source is ends else ""
                    curve(axis, source, "epoch", metric, color, label=label, factor=panel.factor, marker=marker)
        for axis, iterate in zip(theirs, ("sgd", "ema", "finetuned"), strict=False):
            groups = points[points["iterate"] == iterate].groupby("lr")
            for (_, part), color in zip(groups, shades(theme, len(groups)), strict=False):
                axis.plot(part["x"], part["y"] * panel.factor, color=faded(color, theme), linewidth=1.2)
        for axis, name in zip(ours, ("Iterate", "Moving average (EMA)", "Fine-tuned"), strict=True):
            axis.set_title(name)
        for axis in (*ours, *theirs):
            axis.set(xlabel="epoch", ylabel=panel.label)
            if not axis.lines:
                empty(axis, "not measured" if axis in ours else "not digitised", theme)
            elif panel.logarithmic:
                plain_log(axis)
        for axis in theirs:
            axis.set_title(paper_title(panel.paper[0]), color=theme.muted)
    legend(figure, axes[0], columns=len(rates))
    return figure


def best_decay_per_size(runs: pd.DataFrame) -> pd.DataFrame:
    """For each size the runs at the λ > 0 with the lowest mean test error there."""
    decayed = runs[runs[DECAY] > 0]
    means = decayed.groupby([TRAIN_SIZE, DECAY])["test/error"].mean().reset_index()
    best = means.loc[means.groupby(TRAIN_SIZE)["test/error"].idxmin(), [TRAIN_SIZE, DECAY]]
    return decayed.merge(best, on=[TRAIN_SIZE, DECAY])


@drawing(
    "From many passes to one",
    "Every run sees the same number of images; from left to right they are repeated less. One λ for "
    "all sizes is the one with the lowest mean test error, the dashed line has the best λ of each size; "
    "both were chosen by the test error shown.",
    "Test and training error against data-set size, with and without decay, ours above the paper's.",
)
def dataset_size(results: Path, tables: Tables, theme: Theme) -> Figure:
    """Test and train error against the number of distinct training images, presentations fixed (Fig 1)."""
    runs = tables.runs
    chosen = one_decay_for_all(runs)
    series: list[tuple[str, pd.DataFrame, str, LineStyle]] = [
        ("λ = 0", runs[runs[DECAY] == 0], theme.series[1], "-"),
        (f"λ = {chosen:g} for all sizes", runs[runs[DECAY] == chosen], theme.series[0], "-"),
    ]
    if runs[runs[DECAY] > 0][DECAY].nunique() > 1:
        series.append(("best λ > 0 of each size", best_decay_per_size(runs), theme.series[4], DASHED))
    figure, axes = new_figure(2, 2, tables.band_stamp, width=4.6)
    for column, (metric, name) in enumerate((("test", "Test error"), ("train", "Training error"))):
        ours, theirs = axes[column], axes[2 + column]
        for label, rows, color, line in series:
            curve(ours, rows, TRAIN_SIZE, f"{metric}/error", color, label=label, factor=100, linestyle=line, marker="o")
        points = reference(results, "1", f"{metric}_error")
        for decays, color in ((True, theme.series[0]), (False, theme.series[1])):
            part = points[(points["weight_decay"] != "0.0") == decays]
            theirs.plot(part["x"], 100 * part["y"], "-o", color=faded(color, theme), markersize=4)
        ours.set_title(f"{name}, ours")
        theirs.set_title(paper_title("1"), color=theme.muted)
        for axis in (ours, theirs):
            plain_log(axis, "x")
            axis.set(xlabel="training set size (images)", ylabel=f"{name.lower()} (%)")
            axis.set_ylim(bottom=0 if metric == "test" else None)
    legend(figure, axes[0], columns=3)
    return figure
