"""How the claims about a grid of η and λ are measured: slopes over its cells, seed by seed (Figs 3-5).

A slope has no ceiling, unlike the correlation of a handful of cells.
"""

from __future__ import annotations

from functools import partial
from itertools import combinations

import numpy as np
import pandas as pd

from weight_decay.report.claims.pairs import Measured, measured, nothing
from weight_decay.report.tables.cells import EMA_ERROR, EMA_JACOBIAN, branch_ends
from weight_decay.report.tables.read import DECAY, LEARNING_RATE, Tables, missing_metrics


def constant_along_product(tables: Tables) -> Measured:
    """How much more EMA error differs between neighbouring products η·λ than between cells of the same product.

    Mean |difference| over pairs of cells whose products have a ratio from 1.5 to 3 (with some slack), minus the same
    over pairs with the same product (within 1 %) and different η; λ > 0 only, seed by seed.
    """
    runs = tables.runs[tables.runs[DECAY] > 0]
    effects = {}
    for seed, rows in runs.groupby("seed"):
        products, errors = (rows[LEARNING_RATE] * rows[DECAY]).to_numpy(), rows[EMA_ERROR].to_numpy(dtype=float)
        same, neighbours = [], []
        for one, other in combinations(range(len(rows)), 2):
            ratio = max(products[one], products[other]) / min(products[one], products[other])
            gap = abs(errors[one] - errors[other])
            if ratio < 1.01:
                same.append(gap)
            elif 1.45 <= ratio <= 3.05:
                neighbours.append(gap)
        effects[seed] = (np.mean(neighbours), np.mean(same)) if same and neighbours else (np.nan, np.nan)
    across_along = pd.DataFrame(effects, index=["across", "along"]).T
    across, along = across_along["across"], across_along["along"]
    words = f"{100 * across.mean():.1f} points between neighbouring products, {100 * along.mean():.1f} points along one"
    return measured(across - along, [runs], words)


def jacobian_falls(tables: Tables) -> Measured:
    """Minus the slope of ln ‖J‖² of the EMA in ln(η·λ) over the cells with λ > 0, seed by seed."""
    runs = tables.runs[tables.runs[DECAY] > 0]
    product: pd.Series = runs[LEARNING_RATE] * runs[DECAY]
    return _slope(runs, np.log(product), _logarithm(runs, EMA_JACOBIAN), sign=-1.0)


def noise_follows_the_loss(tables: Tables) -> Measured:
    """Slope of ln σ in ln of the level of the training loss over the grid, seed by seed."""
    runs = tables.runs
    if missing_metrics(runs, ["train/stabilisation"]):
        return nothing("the level of the training loss was not measured")
    return _slope(runs, np.log(runs["train/stabilisation"]), _logarithm(runs, "noise/scale"))


def _within_products(tables: Tables, metric: str, *, logarithm: bool) -> Measured:
    """Slope of `metric`, or of its ln, in ln η within products η·λ, seed by seed."""
    runs = tables.runs[tables.runs[DECAY] > 0]
    if missing_metrics(runs, [metric]):
        return nothing(f"{metric} was not measured")
    # Products that differ by rounding alone are one.
    product = ((runs[LEARNING_RATE] * runs[DECAY]).map(np.log) / 0.01).round()
    shared = product.groupby([runs["seed"], product]).transform("size") > 1
    runs, product = runs[shared], product[shared]
    if runs.empty:
        return nothing("no product η·λ has two learning rates")
    y = runs[metric].map(np.log) if logarithm else runs[metric]
    x, y = (
        column - column.groupby([runs["seed"], product]).transform("mean")
        for column in (runs[LEARNING_RATE].map(np.log), y)
    )
    return _slope(runs, x, y)


error_at_fixed_product = partial(_within_products, metric=EMA_ERROR, logarithm=False)
jacobian_at_fixed_product = partial(_within_products, metric=EMA_JACOBIAN, logarithm=True)


def _logarithm(runs: pd.DataFrame, metric: str) -> pd.Series:
    return np.log(runs[metric]) if metric in runs else pd.Series(np.nan, runs.index)


def _slope(runs: pd.DataFrame, x: pd.Series, y: pd.Series, sign: float = 1.0) -> Measured:
    """Slope of a least-squares line of `y` in `x`, for each seed; nan where a cell has no value."""
    effects = {}
    for seed, rows in runs.assign(x=x, y=y).groupby("seed"):
        whole = len(rows) > 1 and rows[["x", "y"]].notna().all(axis=None) and np.ptp(rows["x"]) > 0
        effects[seed] = sign * float(np.polyfit(rows["x"], rows["y"], 1)[0]) if whole else np.nan
    cells = runs[[name for name in (LEARNING_RATE, DECAY) if name in runs]].drop_duplicates()
    return measured(pd.Series(effects, dtype=float), [runs], f"slope over {len(cells)} cells")


def finetuned_order(tables: Tables) -> Measured:
    """Fig 5: slope in ln η of ln ‖J‖² of the iterate fine-tuned from the last snapshot."""
    ends = branch_ends(tables)
    if ends.empty or missing_metrics(ends, ["jacobian/mean_square"]):
        return nothing("no fine-tuned branches in these runs")
    last = ends[ends["start_step"] == ends["start_step"].max()]
    return _slope(last, np.log(last[LEARNING_RATE]), _logarithm(last, "jacobian/mean_square"))


def average_order(tables: Tables) -> Measured:
    """Fig 5: minus the slope in ln η of ln ‖J‖² of the EMA at the end."""
    runs = tables.runs
    return _slope(runs, np.log(runs[LEARNING_RATE]), _logarithm(runs, EMA_JACOBIAN), sign=-1.0)
