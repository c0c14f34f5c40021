"""The comparison that is claimed: training loss minus that of the run without decay, with its paired interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from scipy import stats

from weight_decay.report.figures.style import Theme
from weight_decay.report.tables.read import DECAY, LEARNING_RATE, missing_metrics

DIFFERENCE_METRIC = "difference/batch/loss"


def smoothed(rows: pd.DataFrame) -> pd.DataFrame:
    """Losses of single batches are noise; a running mean over a fiftieth of the log shows the level."""
    rows = rows.dropna(subset=["batch/loss"]).sort_values("step")
    window = max(1, rows["step"].nunique() // 50)
    means = rows.groupby("run_id")["batch/loss"].transform(lambda losses: losses.rolling(window).mean())
    return rows.assign(**{"batch/loss": means})


def with_differences(curves: pd.DataFrame, coordinates: Sequence[str]) -> pd.DataFrame:
    """A column `difference/batch/loss`: smoothed batch loss minus that of the plain run without decay, paired by seed.

    The plain run is the one at λ = 0 that sets no other of `coordinates`; where there is none, nothing is added.
    """
    others = [name for name in coordinates if name in curves and name not in (DECAY, LEARNING_RATE, "precision")]
    base = curves[(curves[DECAY] == 0) & curves[others].isna().all(axis=1)] if DECAY in curves else curves.iloc[:0]
    if missing_metrics(curves, ["batch/loss"]) or base.empty or base["run_id"].nunique() != base["seed"].nunique():
        return curves
    smooth = smoothed(curves).set_index(["run_id", "step"])["batch/loss"]
    keys = pd.MultiIndex.from_frame(curves[["run_id", "step"]])
    own = pd.Series(smooth.reindex(keys).to_numpy(), curves.index)
    reference_run = base.drop_duplicates("seed").set_index("seed")["run_id"]
    base_keys = pd.MultiIndex.from_arrays([curves["seed"].map(reference_run), curves["step"]])
    theirs = pd.Series(smooth.reindex(base_keys).to_numpy(), curves.index)
    return curves.assign(**{DIFFERENCE_METRIC: (own - theirs).where(~curves["run_id"].isin(base["run_id"]))})


def paired_line(
    axis: Axes, rows: pd.DataFrame, metric: str, color: str, *, band: bool = True, **style: Any
) -> pd.Series:
    """Draw the mean over seeds of a difference in pairs, with its 95 % interval where all steps have two seeds.

    rows: `step` and `metric`, one row for each seed and step. Returns the mean by step.
    """
    grouped = rows.groupby("step")[metric]
    mean, count = grouped.mean(), grouped.count()
    axis.plot(mean.index, mean, color=color, linewidth=1.6, **style)
    if band and (count > 1).all():
        half = grouped.std(ddof=1) / count**0.5 * stats.t.ppf(0.975, count - 1)
        axis.fill_between(mean.index, mean - half, mean + half, color=color, alpha=0.18, linewidth=0)
    return mean


def differences(axis: Axes, lines: list[tuple[pd.DataFrame, str, str]], theme: Theme) -> None:
    """Mean difference over seeds with its paired 95 % interval."""
    axis.axhline(0, color=theme.series[1], linewidth=1.4)
    drawn = []
    for part, _, color in lines:
        rows = part.dropna(subset=[DIFFERENCE_METRIC])
        rows = rows[rows["step"] >= 0.1 * rows["step"].max()] if len(rows) else rows
        if rows.empty:
            continue
        drawn.append(paired_line(axis, rows, DIFFERENCE_METRIC, color))
    axis.set_title("Ours, 95 % intervals of the pairs")
    if drawn:
        values = pd.concat(drawn)
        margin = 0.25 * (max(values.max(), 0) - min(values.min(), 0))
        axis.set_ylim(min(values.min(), 0) - margin, max(values.max(), 0) + margin)
