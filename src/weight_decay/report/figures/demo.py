"""The figures of the two demo experiments: what `make demo` shows of each regime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from weight_decay.report.figures.style import (
    DASHED,
    DOTTED,
    Draw,
    LineStyle,
    Theme,
    curve,
    decay_colors,
    legend,
    new_figure,
    plain_log,
    save,
)
from weight_decay.report.tables.read import DECAY, LEARNING_RATE, Tables, missing_metrics, tables_of

JACOBIAN_LABEL = r"Jacobian norm $\|J(w)\|_F^2$"
NORM_LABEL = r"weight norm $\|w\|_2$"


@dataclass(frozen=True)
class DrawnFigure:
    """A figure on disk, with the words that go with it."""

    path: Path
    title: str
    caption: str
    alternative: str
    experiment: str
    scale: str


LINES: dict[str, LineStyle] = {"iterate": "-", "moving average (EMA)": DASHED}


def drawn(
    results: Path, tables: Tables, title: str, caption: str, alternative: str, draw: Draw, part: str = ""
) -> DrawnFigure:
    """Draw a figure of an experiment into `results`/figures; `part` tells its several figures apart."""
    path = save(draw, results / "figures", f"{tables.experiment}{part}-{tables.scale}")
    return DrawnFigure(path, title, caption, alternative, tables.experiment, tables.scale)


def demo_figures(results: Path, scale: str = "micro") -> list[DrawnFigure]:
    """Draw both demo figures from `results`/tables into `results`/figures (PNG, dark PNG, PDF).

    Raises UserError when a table is absent.
    """
    return [demo_over_training(results, scale), demo_under_training(results, scale)]


def demo_over_training(results: Path, scale: str) -> DrawnFigure:
    """Test error, training loss, ‖J‖ and ‖w‖ against epochs for the 2×2 of η and λ (Figs 2, 3)."""
    tables = tables_of(results, "demo_over_training", scale)
    return drawn(
        results,
        tables,
        "Over-training: many passes, SGD",
        "The vertical dotted line marks the drop of the learning rate. Before it, compare the iterate "
        "(solid) with its moving average (dashed), which is free of most of the noise.",
        "Panels against epochs for large and small learning rate, with and without weight decay: "
        "test error, training loss, Jacobian norm and weight norm.",
        lambda theme: _over_training(tables, theme),
    )


def _over_training(tables: Tables, theme: Theme) -> Figure:
    curves = tables.main_curves
    cells = cells_of(curves, theme)
    panels: list[tuple[str, str, str, float]] = [
        ("test/error", "Test error", "test error (%)", 100.0),
        ("train/loss", "Training loss", "training cross-entropy", 1.0),
        ("jacobian/mean_square", "Jacobian norm", JACOBIAN_LABEL, 1.0),
        ("weights/norm", "Weight norm", NORM_LABEL, 1.0),
    ]
    panels = [panel for panel in panels if not missing_metrics(curves, [panel[0]])]
    rows, columns = (2, 2) if len(panels) == 4 else (1, len(panels))
    figure, axes = new_figure(rows, columns, tables.band_stamp, width=4.6)
    drop = rate_drop(curves)
    for axis, (metric, title, label, factor) in zip(axes, panels, strict=True):
        for measured, name, color in cells:
            # Before the first step the iterate's batch-norm statistics are placeholders, and ‖J‖ means nothing.
            rows_of_cell = measured[measured["step"] > 0] if metric.startswith("jacobian/") else measured
            curve(axis, rows_of_cell, "epoch", metric, color, label=name, factor=factor)
            averaged = f"ema/{metric}"
            if metric != "weights/norm" and not missing_metrics(rows_of_cell, [averaged]):
                curve(axis, rows_of_cell, "epoch", averaged, color, linestyle=DASHED, factor=factor, linewidth=1.5)
        if metric != "test/error":
            plain_log(axis)
        else:
            axis.set_ylim(bottom=0)
        if drop is not None:
            axis.axvline(drop, color=theme.muted, linewidth=1.0, linestyle=DOTTED)
        axis.set(title=title, xlabel="epoch", ylabel=label)
        axis.margins(x=0.01)
    legend(figure, axes[0], columns=3, lines=LINES)
    return figure


def cells_of(curves: pd.DataFrame, theme: Theme) -> list[tuple[pd.DataFrame, str, str]]:
    """Rows, label and colour of each (η, λ), largest η first; one hue family with decay, one without."""
    grid = curves[[LEARNING_RATE, DECAY]].drop_duplicates().sort_values([LEARNING_RATE, DECAY], ascending=False)
    rates = sorted(grid[LEARNING_RATE].unique(), reverse=True)
    cells = []
    for rate, decay in grid.to_numpy(dtype=float):
        rows = curves[(curves[LEARNING_RATE] == rate) & (curves[DECAY] == decay)]
        index = 2 * rates.index(rate) + (0 if decay > 0 else 1)
        cells.append((rows, f"η = {rate:g}, λ = {decay:g}", theme.series[index % len(theme.series)]))
    return cells


def rate_drop(curves: pd.DataFrame) -> float | None:
    """The epoch of the last step at the largest learning rate, if the rate falls at all."""
    last = []
    for _, rows in curves.sort_values("step").groupby("run_id"):
        rate = rows["lr"].ffill()
        if rate.min() < 0.999 * rate.max():
            last.append(rows["epoch"][rate >= 0.999 * rate.max()].max())
    return min(last) if last else None


def demo_under_training(results: Path, scale: str) -> DrawnFigure:
    """Validation loss, its difference to λ = 0, effective LR and ‖w‖ against iterations (Figs 6 and 7)."""
    tables = tables_of(results, "demo_under_training", scale)
    return drawn(
        results,
        tables,
        "Under-training: one pass, AdamW",
        "Top right: the loss with decay minus the loss without, at the same step and seed; below zero, "
        "decay is ahead. The effective learning rate is the learning rate over the norm of the weights, "
        "both of which change as the run goes on.",
        "Four panels against iterations for each weight decay: validation loss, loss difference to no decay, "
        "effective learning rate and weight norm.",
        lambda theme: _under_training(tables, theme),
    )


def _under_training(tables: Tables, theme: Theme) -> Figure:
    curves = tables.main_curves
    figure, (loss, difference, rate, norm) = new_figure(2, 2, tables.band_stamp, width=4.6)
    strengths = sorted(curves[DECAY].unique())
    colors = decay_colors(theme, strengths)
    gaps: list[tuple[pd.DataFrame, str]] = []
    for decay in strengths:
        rows = curves[curves[DECAY] == decay]
        curve(loss, rows, "step", "val/loss", colors[decay], label=f"λ = {decay:g}")
        curve(loss, rows, "step", "ema/val/loss", colors[decay], linestyle=DASHED, linewidth=1.5)
        curve(rate, rows[rows["step"] > 0], "step", "effective_lr/adamw", colors[decay], geometric=True)
        curve(norm, rows, "step", "weights/norm", colors[decay], geometric=True)
        if decay != strengths[0]:
            for metric, line in (("val/loss", "-"), ("ema/val/loss", DASHED)):
                gap = paired_difference(curves, metric, DECAY, decay, strengths[0])
                gaps.append((gap, metric))
                curve(difference, gap, "step", metric, colors[decay], linestyle=line)
    difference.axhline(0, color=theme.series[1], linewidth=1.8)
    zoom(loss, [(curves, "val/loss"), (curves, "ema/val/loss")])
    zoom(difference, gaps, zero=True)
    plain_log(norm)
    plain_log(rate)
    loss.set(title="Validation loss", ylabel="validation loss (nats per token)")
    difference.set(title=f"Difference to λ = {strengths[0]:g}", ylabel="loss difference")
    rate.set(title="Effective learning rate", ylabel=r"effective learning rate $\eta_t / \|w_t\|_2$")
    norm.set(title="Weight norm", ylabel=NORM_LABEL)
    for axis in (loss, difference, rate, norm):
        axis.set_xlabel("iteration")
        axis.margins(x=0.01)
    legend(figure, loss, columns=len(strengths) + 2, lines=LINES)
    return figure


def paired_difference(curves: pd.DataFrame, metric: str, coordinate: str, ours: float, theirs: float) -> pd.DataFrame:
    """Per seed and step, `metric` where `coordinate` is `ours` minus where it is `theirs`."""
    keys = ["seed", "step", "epoch", "samples"]
    one, other = (curves[curves[coordinate] == value].set_index(keys)[metric] for value in (ours, theirs))
    return (one - other).dropna().reset_index()


def zoom(axis: Axes, measured: list[tuple[pd.DataFrame, str]], *, zero: bool = False) -> None:
    """Limit y to what happens after the first eighth of the steps, whose fall would flatten the rest."""
    if not measured:
        return
    late = [rows[metric][rows["step"] >= rows["step"].max() / 8] for rows, metric in measured]
    values = pd.concat([*late, pd.Series([0.0])] if zero else late)
    margin = 0.08 * (values.max() - values.min())
    if margin > 0:
        axis.set_ylim(values.min() - margin, values.max() + margin)
