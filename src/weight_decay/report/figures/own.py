"""Figures of any experiment, for those that have none of their own: everything over steps, and differences in pairs."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from weight_decay.report.figures.demo import JACOBIAN_LABEL, LINES, NORM_LABEL, DrawnFigure, drawn, zoom
from weight_decay.report.figures.differences import paired_line
from weight_decay.report.figures.language import NAMES, colored, said
from weight_decay.report.figures.style import (
    DASHED,
    LineStyle,
    Theme,
    legend,
    new_figure,
    panel_grid,
    plain_log,
    with_average,
)
from weight_decay.report.tables.read import DECAY, Tables, missing_metrics

PANELS = (
    ("val/loss", "validation loss"),
    ("test/loss", "test loss"),
    ("train/loss", "training loss"),
    ("test/error", "test error"),
    ("effective_lr/adamw", r"effective learning rate $\eta / \|w\|_2$"),
    ("effective_lr/sgd", r"effective learning rate $\eta / \|w\|_2^2$"),
    ("weights/norm", NORM_LABEL),
    ("jacobian/mean_square", JACOBIAN_LABEL),
)
"""What is drawn over steps, where it was measured; η/‖w‖ of the optimizer alone that trained."""
OUTCOMES = ("val/loss", "test/error", "test/loss", "train/loss")
"""What differences are taken of: the first that was measured, and that of its average."""

Cell = tuple[pd.DataFrame, str, str]
"""Rows, label and colour of a cell, seeds together."""


def any_figures(results: Path, tables: Tables) -> list[DrawnFigure]:
    """What was measured over steps for each cell, and where cells can be compared, their differences paired by seed."""
    curves, panels = tables.main_curves, _panels(tables)
    figures = [
        drawn(
            results, tables, "Over the steps of each run", "Dashed: the moving average of the weights.",
            f"{', '.join(name for name, _ in panels)} against steps, a line for each cell.",
            lambda theme: _overview(tables, panels, theme),
        )
    ]  # fmt: skip
    metric = next((name for name in OUTCOMES if not missing_metrics(curves, [name])), None)
    if metric and (gaps := differences(tables, metric)):
        against = " and ".join(sorted({reference for _, _, reference in gaps}))
        figures.append(
            drawn(
                results, tables, "Differences in pairs",
                f"{metric} minus that of {against}, at the same step and seed; below zero is better. Bands: 95 % "
                "intervals (Student's t) where there are two seeds or more.",
                f"Difference of {metric} between cells against steps.",
                lambda theme: _differences(tables, metric, theme),
                "-differences",
            )
        )  # fmt: skip
    return figures


def coordinates_of(tables: Tables) -> list[str]:
    """The settings in which the cells of an experiment differ: they stand between `seed` and `branch` in its tables."""
    names = list(tables.summary.columns)
    between = names[names.index("seed") + 1 : names.index("branch")]
    return [name for name in between if tables.summary[name].nunique(dropna=False) > 1]


def label_of(values: pd.Series) -> str:
    """The coordinates of a cell in words: `η = 0.3, λ = 0.015, batch_size 32`."""
    words = []
    for name, value in values.items():
        if pd.isna(value):
            continue
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        words.append(said(name, value) if name in NAMES else f"{str(name).rpartition('.')[2]} {shown}")
    return ", ".join(words) or "all runs"


def differences(tables: Tables, metric: str) -> list[tuple[pd.DataFrame, str, str]]:
    """For each cell but the references: rows with `metric` minus its reference's (by seed and step), label, reference.

    The reference is the cell without decay, or with the least, that agrees in everything else; where decay is no
    coordinate, the first cell.
    """
    names = coordinates_of(tables)
    if not names:
        return []
    of_cell = {
        values: rows.groupby(["seed", "step"])[metric].mean().dropna()
        for values, rows in tables.main_curves.groupby(names, dropna=False, sort=True)
    }
    found = []
    for values, rows in of_cell.items():
        other = _reference(names, values, list(of_cell))
        if _same(other, values):
            continue
        gap = (rows - next(found for key, found in of_cell.items() if _same(key, other))).dropna().reset_index()
        if len(gap):
            told = DECAY in names and f"the run at λ = {other[names.index(DECAY)]:g}"
            reference = told or label_of(pd.Series(other, names))
            found.append((gap, label_of(pd.Series(values, names)), reference))
    return found


def _reference(names: list[str], values: tuple[object, ...], cells: list[tuple[object, ...]]) -> tuple[object, ...]:
    if DECAY not in names:
        return cells[0]
    place = names.index(DECAY)
    rest = (*values[:place], *values[place + 1 :])
    alike = [cell for cell in cells if _same((*cell[:place], *cell[place + 1 :]), rest)]
    return min(alike, key=lambda cell: float(str(cell[place])))


def _same(one: tuple[object, ...], other: tuple[object, ...]) -> bool:
    """Equal, with NaN (a setting that a cell does not have) equal to NaN."""
    return all(a == b or (pd.isna(a) and pd.isna(b)) for a, b in zip(one, other, strict=True))  # type: ignore[call-overload]


def _panels(tables: Tables) -> list[tuple[str, str]]:
    curves = tables.main_curves
    if not missing_metrics(curves, ["effective_lr/adam_coordinate"]):
        unused = "effective_lr/sgd"
    else:
        unused = "effective_lr/adamw" if not missing_metrics(curves, ["effective_lr/sgd"]) else ""
    return [(name, label) for name, label in PANELS if name != unused and not missing_metrics(curves, [name])]


def _cells(tables: Tables, theme: Theme) -> list[Cell]:
    names = coordinates_of(tables)
    curves = tables.main_curves
    if not names:
        return [(curves, "all runs", theme.series[0])]
    return [(rows, label_of(rows.iloc[0][names]), color) for _, rows, color in colored(curves, names, theme)]


def _overview(tables: Tables, panels: list[tuple[str, str]], theme: Theme) -> Figure:
    figure, axes = panel_grid(len(panels), min(3, len(panels)), tables.band_stamp, width=4.4)
    cells = _cells(tables, theme)
    for axis, (metric, label) in zip(axes, panels, strict=True):
        logarithmic = metric.startswith(("effective_lr/", "weights/", "jacobian/"))
        shown = []
        for rows, name, color in cells:
            # Before the first step nothing has an effective rate, and batch-norm statistics are placeholders.
            rows = rows[rows["step"] > 0] if logarithmic else rows
            drawn_metrics = with_average(axis, rows, "step", metric, color, 1.3, label=name, geometric=logarithmic)
            shown += [(rows, one) for one in drawn_metrics]
        if logarithmic and all((rows[name].dropna() > 0).all() for rows, name in shown):
            plain_log(axis)
        elif not logarithmic:
            zoom(axis, shown)
        axis.set(xlabel="step", ylabel=label)
        axis.margins(x=0.01)
    legend(figure, axes[0], columns=3, lines=LINES)
    return figure


def _differences(tables: Tables, metric: str, theme: Theme) -> Figure:
    figure, (axis,) = new_figure(1, 1, tables.stamp, width=7.0, height=3.6)
    lines: dict[str, LineStyle] = {"iterate": "-"}
    gaps: list[tuple[pd.DataFrame, str]] = []
    colors: dict[str, str] = {name: color for _, name, color in _cells(tables, theme)}
    for name, line in ((metric, "-"), (f"ema/{metric}", DASHED)):
        if missing_metrics(tables.main_curves, [name]):
            continue
        lines |= LINES if name != metric else {}
        for gap, label, _ in differences(tables, name):
            own = name == metric
            mean = paired_line(axis, gap, name, colors[label], band=own, linestyle=line, label=label if own else "_")
            gaps.append((mean.reset_index(), name))
    axis.axhline(0, color=theme.muted, linewidth=1.2)
    zoom(axis, gaps, zero=True)
    axis.set(xlabel="step", ylabel=f"difference of {metric}")
    axis.margins(x=0.01)
    legend(figure, axis, columns=3, lines=lines)
    return figure
