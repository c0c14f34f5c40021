"""Figures over the grid of learning rate and decay, and on the sphere: Figs 3, 4, 10, 15 of the paper."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from weight_decay.report.figures.demo import JACOBIAN_LABEL, drawing
from weight_decay.report.figures.reference import paper_title, reference
from weight_decay.report.figures.style import COLORMAP, Theme, curve, faded, legend, new_figure, plain_log, shades
from weight_decay.report.tables.cells import EMA_ERROR, EMA_JACOBIAN, second_phase
from weight_decay.report.tables.read import DECAY, LEARNING_RATE, Tables, missing_metrics

_QUANTITIES = (
    (EMA_ERROR, "test_error", "test error of the EMA (%)", 100.0),
    (EMA_JACOBIAN, "jacobian_norm", r"Jacobian norm of the EMA $\|J\|_F^2$", 1.0),
)


@drawing(
    "Error and Jacobian norm over the grid",
    "Each cell is a mean over seeds; a cross marks a cell in which a run diverged. "
    "Along an anti-diagonal the product η·λ is constant.",
    "Heatmaps of test error and Jacobian norm of the averaged weights over learning rate and decay.",
    part="-heatmaps",
)
def heatmaps(results: Path, tables: Tables, theme: Theme, paper_figure: str | None = None) -> Figure:
    """EMA test error and EMA ‖J‖² over η and λ (Figs 3 and 10), above the paper's where digitised."""
    runs = tables.runs
    measured = [item for item in _QUANTITIES if not missing_metrics(runs, [item[0]])]
    rows = 1 if paper_figure is None else 2
    figure, axes = new_figure(rows, len(measured), tables.stamp, width=5.4, height=4.0)
    for column, (metric, paper_metric, label, factor) in enumerate(measured):
        means = runs.assign(value=runs[metric] * factor).pivot_table("value", LEARNING_RATE, DECAY, dropna=False)
        diverged = runs[runs["status"] == "diverged"][[LEARNING_RATE, DECAY]].drop_duplicates()
        _heatmap(axes[column], means, label, theme, metric == EMA_JACOBIAN)
        for rate, decay in diverged.to_numpy():
            x, y = list(means.columns).index(decay), list(means.index).index(rate)
            axes[column].plot(x, y, "x", color=theme.ink, markersize=9, markeredgewidth=2)
        axes[column].set_title("Ours")
        if paper_figure is not None:
            below = axes[len(measured) + column]
            points = reference(results, paper_figure, paper_metric)
            if points.empty:
                below.set_axis_off()
                continue
            points = points.assign(value=points["y"] * factor)
            _heatmap(below, points.pivot_table("value", "lr", "decay"), label, theme, metric == EMA_JACOBIAN)
            below.set_title(paper_title(paper_figure), color=theme.muted)
    return figure


def _heatmap(axis: Axes, table: pd.DataFrame, label: str, theme: Theme, logarithmic: bool) -> None:
    """Rows η (large on top), columns λ, the value written in each cell."""
    values = table.to_numpy(dtype=float)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    norm = LogNorm(low, max(high, low * 1.001)) if logarithmic and low > 0 else Normalize(low, high)
    image = axis.imshow(values, origin="lower", aspect="auto", cmap=COLORMAP, norm=norm)
    axis.grid(False)
    axis.set_xticks(range(len(table.columns)), [f"{decay:g}" for decay in table.columns], rotation=45)
    axis.set_yticks(range(len(table.index)), [f"{rate:g}" for rate in table.index])
    axis.set(xlabel="weight decay λ", ylabel="learning rate η")
    colors = colormaps[COLORMAP]
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            red, green, blue, _ = colors(norm(value))
            bright = 0.299 * red + 0.587 * green + 0.114 * blue > 0.55
            text = f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}"
            axis.text(
                column, row, text, ha="center", va="center", fontsize=7.5 if abs(value) < 1e4 else 6,
                color="#111111" if bright else "#ffffff",
            )  # fmt: skip
    bar = axis.figure.colorbar(image, ax=axis, fraction=0.05, pad=0.02)
    bar.set_label(label)
    bar.outline.set_visible(False)


@drawing(
    "The product η·λ",
    "If only the product matters, the lines of different learning rates fall on one another. λ = 0 is left out.",
    "Test error, Jacobian norm and noise scale against the product of learning rate and decay.",
    part="-product",
)
def against_product(results: Path, tables: Tables, theme: Theme, paper_figure: str | None = None) -> Figure:
    """EMA error, EMA ‖J‖² and σ against η·λ, and error against training loss, a line for each η (Fig 4)."""
    runs = tables.runs[tables.runs[DECAY] > 0]
    # Rounded, so that 0.1 × 0.003 and 0.3 × 0.001 are one point of the axis.
    runs = runs.assign(product=(runs[LEARNING_RATE] * runs[DECAY]).map(lambda value: float(f"{value:.6g}")))
    panels: list[tuple[str, str, str, float]] = [
        *((metric, "product", label, factor) for metric, _, label, factor in _QUANTITIES),
        ("noise/scale", "product", r"noise scale $\sigma_{\eta,\lambda}$", 1.0),
        (EMA_ERROR, "train/loss", "test error of the EMA (%)", 100.0),
    ]
    panels = [panel for panel in panels if not missing_metrics(runs, [panel[0], panel[1]])]
    papers = [] if paper_figure is None else [item for item in _QUANTITIES if not missing_metrics(runs, [item[0]])]
    columns = max(2, len(panels))
    figure, axes = new_figure(2 if papers else 1, columns, tables.band_stamp, width=3.9)
    rates = sorted(runs[LEARNING_RATE].unique())
    for axis, (metric, against, label, factor) in zip(axes, panels, strict=False):
        for rate, color in zip(rates, shades(theme, len(rates)), strict=True):
            rows = runs[runs[LEARNING_RATE] == rate]
            if against == "product":
                curve(
                    axis, rows, against, metric, color, label=f"η = {rate:g}", factor=factor, marker="o",
                    geometric=metric != EMA_ERROR,
                )  # fmt: skip
            else:
                axis.scatter(rows[against], rows[metric] * factor, s=22, color=color)
        axis.set(xlabel="η · λ" if against == "product" else "training cross-entropy", ylabel=label)
        axis.set_title("Ours")
        plain_log(axis, "x")
        if metric != EMA_ERROR:
            plain_log(axis)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, (metric, paper_metric, label, factor) in zip(axes[columns:], papers, strict=False):
        points = reference(results, str(paper_figure), paper_metric)
        if points.empty:
            continue
        points = points.assign(product=points["lr"] * points["decay"]).sort_values("product")
        axis.set_axis_on()
        groups = points[points["decay"] > 0].groupby("lr")
        for (_, part), color in zip(groups, shades(theme, len(groups)), strict=True):
            axis.plot(part["product"], part["y"] * factor, "-o", color=faded(color, theme), markersize=3, linewidth=1)
        axis.set(xlabel="η · λ", ylabel=label)
        axis.set_title("Paper (digitised)", color=theme.muted)
        plain_log(axis, "x")
        if metric != EMA_ERROR:
            plain_log(axis)
    legend(figure, axes[0], columns=min(len(rates), 8))
    return figure


@drawing(
    "On the sphere",
    "Scale-invariant network projected on the sphere after every step, so that the learning rate is the "
    "effective one. Measured after a second phase at the smallest rate.",
    "Final test error and Jacobian norm against the learning rate, ours and the paper's.",
)
def sphere(results: Path, tables: Tables, theme: Theme) -> Figure:
    """Final test error against η for SGD on the unit sphere (Fig 15): is the best η inside?"""
    runs = second_phase(tables)
    panels = [
        ("test/error", "final test error (%)", 100.0),
        ("jacobian/mean_square", JACOBIAN_LABEL, 1.0),
        ("hessian/trace", "trace of the Hessian", 1.0),
    ]
    panels = [panel for panel in panels if not missing_metrics(runs, [panel[0]])]
    figure, axes = new_figure(1, len(panels) + 1, tables.band_stamp, width=3.9)
    for axis, (metric, label, factor) in zip(axes, panels, strict=False):
        curve(axis, runs, LEARNING_RATE, metric, theme.series[0], factor=factor, marker="o", geometric=factor == 1)
        axis.set(ylabel=label, title="Ours")
        if factor == 1:
            plain_log(axis)
    points = reference(results, "15a", "test_error").sort_values("lr")
    axes[-1].plot(points["lr"], 100 * points["y"], "-o", color=faded(theme.series[0], theme), markersize=4)
    axes[-1].set_ylabel("final test error (%)")
    axes[-1].set_title("Paper, Fig. 15a (printed values)", color=theme.muted)
    for axis in axes:
        axis.set_xlabel("learning rate η")
        plain_log(axis, "x")
    return figure
