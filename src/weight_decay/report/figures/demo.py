"""The figures of the two demo experiments: what `make demo` shows of each regime."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    with_average,
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


@dataclass(frozen=True)
class Panel:
    """One quantity over a run and how it is drawn; `paper`: figure and metric of the digitised curves beside it."""

    metric: str
    label: str
    logarithmic: bool = False
    zoomed: bool = False
    factor: float = 1.0
    paper: tuple[str, ...] = ()


Drawing = Callable[..., DrawnFigure]
"""What draws a figure to disk, from the folder of results and an experiment's tables."""

LINES: dict[str, LineStyle] = {"iterate": "-", "moving average (EMA)": DASHED}


def drawn(
    results: Path, tables: Tables, title: str, caption: str, alternative: str, draw: Draw, part: str = ""
) -> DrawnFigure:
    """Draw a figure of an experiment into `results`/figures; `part` tells its several figures apart."""
    path = save(draw, results / "figures", f"{tables.experiment}{part}-{tables.scale}")
    return DrawnFigure(path, title, caption, alternative, tables.experiment, tables.scale)


def drawing(title: str, caption: str, alternative: str, part: str = "") -> Callable[[Callable[..., Figure]], Drawing]:
    """Makes of `draw(results, tables, theme, **options)` a function of all but the theme that draws to disk.

    As `drawn` does it, for a figure whose words are the same for all tables.
    """

    def declared(draw: Callable[..., Figure]) -> Drawing:
        @functools.wraps(draw)
        def to_disk(results: Path, tables: Tables, **options: Any) -> DrawnFigure:
            in_theme = functools.partial(draw, results, tables, **options)
            return drawn(results, tables, title, caption, alternative, in_theme, part)

        return to_disk

    return declared


@drawing(
    "Over-training: many passes, SGD",
    "The vertical dotted line marks the drop of the learning rate. Before it, compare the iterate "
    "(solid) with its moving average (dashed), which is free of most of the noise.",
    "Panels against epochs for large and small learning rate, with and without weight decay: "
    "test error, training loss, Jacobian norm and weight norm.",
)
def over_training(results: Path, tables: Tables, theme: Theme) -> Figure:
    """Test error, training loss, ‖J‖ and ‖w‖ against epochs for the 2×2 of η and λ (Figs 2, 3)."""
    curves = tables.main_curves
    panels: list[tuple[str, str, str, float]] = [
        ("test/error", "Test error", "test error (%)", 100.0),
        ("train/loss", "Training loss", "training cross-entropy", 1.0),
        ("jacobian/mean_square", "Jacobian norm", JACOBIAN_LABEL, 1.0),
        ("weights/norm", "Weight norm", NORM_LABEL, 1.0),
    ]
    panels = [panel for panel in panels if not missing_metrics(curves, [panel[0]])]
    rows, columns = (2, 2) if len(panels) == 4 else (1, len(panels))
    figure, axes = new_figure(rows, columns, tables.band_stamp, width=4.6)
    for axis, (metric, title, label, factor) in zip(axes, panels, strict=True):
        over_epochs(axis, curves, metric, theme, 1.5, factor=factor)
        if metric != "test/error":
            plain_log(axis)
        else:
            axis.set_ylim(bottom=0)
        axis.set(title=title, xlabel="epoch", ylabel=label)
        axis.margins(x=0.01)
    legend(figure, axes[0], columns=3, lines=LINES)
    return figure


def over_epochs(axis: Axes, curves: pd.DataFrame, metric: str, theme: Theme, thin: float, *, factor: float) -> None:
    """Iterate and average (`thin`) of every (η, λ) against epochs, and where the learning rate drops."""
    # Before the first step the iterate's batch-norm statistics are placeholders, and ‖J‖ means nothing.
    shown = curves[curves["step"] > 0] if metric.startswith("jacobian/") else curves
    for rows, name, color in cells_of(shown, theme):
        with_average(axis, rows, "epoch", metric, color, thin, label=name, factor=factor)
    drop = rate_drop(curves)
    if drop is not None:
        axis.axvline(drop, color=theme.muted, linewidth=1.0, linestyle=DOTTED)


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


@drawing(
    "Under-training: one pass, AdamW",
    "Top right: the loss with decay minus the loss without, at the same step and seed; below zero, "
    "decay is ahead. The effective learning rate is the learning rate over the norm of the weights, "
    "both of which change as the run goes on.",
    "Four panels against iterations for each weight decay: validation loss, loss difference to no decay, "
    "effective learning rate and weight norm.",
)
def under_training(results: Path, tables: Tables, theme: Theme) -> Figure:
    """Validation loss, its difference to λ = 0, effective LR and ‖w‖ against iterations (Figs 6 and 7)."""
    curves = tables.main_curves
    figure, (loss, difference, rate, norm) = new_figure(2, 2, tables.band_stamp, width=4.6)
    strengths = sorted(curves[DECAY].unique())
    colors = decay_colors(theme, strengths)
    gaps: list[tuple[pd.DataFrame, str]] = []
    for decay in strengths:
        rows = curves[curves[DECAY] == decay]
        with_average(loss, rows, "step", "val/loss", colors[decay], 1.5, label=f"λ = {decay:g}")
        curve(rate, rows[rows["step"] > 0], "step", "effective_lr/adamw", colors[decay], geometric=True)
        curve(norm, rows, "step", "weights/norm", colors[decay], geometric=True)
        if decay != strengths[0]:
            for metric, line in (("val/loss", "-"), ("ema/val/loss", DASHED)):
                gap = paired_difference(curves, metric, decay, strengths[0])
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


DEMO = {"demo_over_training": over_training, "demo_under_training": under_training}
"""The demo's own figures, which `demo-report` draws."""


def demo_figures(results: Path, scale: str = "micro") -> list[DrawnFigure]:
    """Draw both demo figures from `results`/tables into `results`/figures (PNG, dark PNG, PDF).

    Raises UserError when a table is absent.
    """
    return [draw(results, tables_of(results, name, scale)) for name, draw in DEMO.items()]


def paired_difference(curves: pd.DataFrame, metric: str, ours: float, theirs: float) -> pd.DataFrame:
    """Per seed and step, `metric` where λ is `ours` minus where it is `theirs`."""
    one, other = (curves[curves[DECAY] == decay].set_index(["seed", "step"])[metric] for decay in (ours, theirs))
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
