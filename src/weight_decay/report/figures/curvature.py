"""Figures of what lies under the others: curvature, gradient noise and ensembles (Figs 13, 16-18, Tables 2, 3)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from weight_decay.report.figures.demo import cells_of, drawing
from weight_decay.report.figures.style import DASHED, LineStyle, Theme, curve, legend, new_figure, panel_grid, plain_log
from weight_decay.report.tables.cells import spectra_rows
from weight_decay.report.tables.read import LEARNING_RATE, Tables

PAIRS = {
    "similarity/hessian_noise": "Hessian and\ngradient noise",
    "similarity/gauss_newton_noise": "Gauss-Newton and\ngradient noise",
    "similarity/hessian_gauss_newton": "Hessian and\nGauss-Newton",
}
SPECTRA: dict[str, LineStyle] = {"noise": "-", "decoupled": DASHED}
SMALLEST = 1e-5
"""Eigenvalues below this share of the largest are rounding."""


@drawing(
    "Curvature and gradient noise",
    "E cos(A v, B v) over Gaussian v: 1 where two matrices agree up to a factor. A point for each seed, with "
    "two standard errors over the random vectors.",
    "Cosine similarity of Hessian, Gauss-Newton part and gradient-noise covariance.",
)
def similarity(results: Path, tables: Tables, theme: Theme) -> Figure:
    """Cosine similarity of Hessian, Gauss-Newton part and gradient-noise covariance, a point for each seed (Fig 13)."""
    figure, (axis,) = new_figure(1, 1, tables.stamp, width=6.0, height=3.6)
    for position, metric in enumerate(PAIRS):
        values, errors = tables.runs[metric].to_numpy(), tables.runs[f"{metric}_error"].to_numpy()
        spread = position + np.linspace(-0.12, 0.12, len(values))
        axis.errorbar(spread, values, yerr=2 * errors, fmt="o", color=theme.series[position], markersize=5)
    axis.set_xticks(range(len(PAIRS)), list(PAIRS.values()))
    axis.set_xlim(-0.5, len(PAIRS) - 0.5)
    axis.set_ylim(min(0.0, axis.get_ylim()[0]), 1.05)
    axis.set(ylabel="cosine similarity", xlabel="pair of matrices", title="At the end of the run")
    return figure


@drawing(
    "Spectra of the gradient noise",
    "Share of the eigenvalues that are larger than the one on the axis, at the end of the large-rate phase: the "
    "noise covariance (solid) and its decoupled approximation (dashed). Quadrature nodes of all seeds together.",
    "Complementary cumulative spectra of the gradient-noise covariance and of its decoupled approximation.",
)
def spectra(results: Path, tables: Tables, theme: Theme) -> Figure:
    """Eigenvalues of the gradient noise with and without decoupling, for every (η, λ) (Figs 16-18)."""
    rows = spectra_rows(tables)
    cells = cells_of(rows, theme)
    figure, axes = panel_grid(len(cells), min(2, len(cells)), tables.stamp, width=4.6)
    for axis, (of_cell, name, color) in zip(axes, cells, strict=True):
        for kind, line in SPECTRA.items():
            values, above = survival(of_cell, kind)
            axis.step(values, above, where="post", color=color, linestyle=line, linewidth=1.6)
        axis.set(title=name, xlabel="eigenvalue", ylabel="share of larger eigenvalues")
        plain_log(axis, "x")
        plain_log(axis)
    legend(figure, axes[0], columns=2, lines={"gradient noise": "-", "decoupled": DASHED})
    return figure


def survival(rows: pd.DataFrame, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues in ascending order and the share of the spectrum at or above each, over all `rows`."""
    nodes = sorted(str(name) for name in rows if str(name).startswith(f"spectrum/{kind}/node_"))
    weights = [name.replace("node_", "weight_") for name in nodes]
    values, shares = rows[nodes].to_numpy(float).ravel(), rows[weights].to_numpy(float).ravel() / len(rows)
    kept = values > SMALLEST * np.nanmax(values)
    order = np.argsort(values[kept])
    values, shares = values[kept][order], shares[kept][order]
    return values, shares[::-1].cumsum()[::-1]


@drawing(
    "Ensemble of snapshots or average of weights",
    "Left: final test error of the last iterate, of the moving average of the weights and of the ensemble that "
    "averages the predictions of snapshots. Right: how far the predictions of the latter two are apart.",
    "Test error of iterate, average and ensemble against the learning rate, and their total variation.",
)
def ensemble(results: Path, tables: Tables, theme: Theme) -> Figure:
    """Error of iterate, EMA and snapshot ensemble, and total variation between the latter two (Tables 2, 3)."""
    figure, (error, distance) = new_figure(1, 2, tables.band_stamp, width=4.6)
    lines = {"iterate": "test/error", "moving average (EMA)": "ema/test/error", "ensemble": "ensemble/test/error"}
    for (name, metric), color in zip(lines.items(), theme.series, strict=False):
        curve(error, tables.runs, LEARNING_RATE, metric, color, label=name, factor=100, marker="o")
    curve(distance, tables.runs, LEARNING_RATE, "ensemble/total_variation", theme.series[2], marker="o")
    error.set(ylabel="test error (%)", title="Test error")
    distance.set(ylabel="total variation", title="Ensemble against EMA")
    for axis in (error, distance):
        axis.set_xlabel("learning rate η")
        axis.set_ylim(bottom=0)
    legend(figure, error, columns=3)
    return figure
