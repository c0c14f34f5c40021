"""How the claims about many passes over little data are measured (Figs 1-5, 10-15, Tables 2 and 3)."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd

from weight_decay.report.claims.demo import percent, three_digits
from weight_decay.report.claims.pairs import by_seed, difference, measured, nothing, pick
from weight_decay.report.claims.verdict import Measured
from weight_decay.report.figures.curvature import SPECTRA, spectra_rows
from weight_decay.report.figures.grid import EMA_ERROR, EMA_JACOBIAN, second_phase
from weight_decay.report.figures.vision import TRAIN_SIZE, branch_ends, one_decay_for_all
from weight_decay.report.tables.read import DECAY, LEARNING_RATE, Tables, large_rate_phase_end, missing_metrics

ERROR = "test/error"
SAME_NORM = 1.25
"""Two norms within this factor count as the same; a test error that differs all the same is not due to them."""


def _cell(runs: pd.DataFrame, rate: float, decay: float) -> pd.DataFrame:
    return pick(runs, **{"optimizer__lr": rate, "decay__strength": decay})


def large_rate_with_decay(runs: pd.DataFrame) -> tuple[float, float]:
    """(η, λ) of the cell with λ > 0 and not the smallest η that ends with the lowest mean test error."""
    smallest = runs[LEARNING_RATE].min()
    candidates = runs[(runs[DECAY] > 0) & (runs[LEARNING_RATE] > smallest)]
    return _lowest(candidates)


def _lowest(runs: pd.DataFrame) -> tuple[float, float]:
    means = runs.groupby([LEARNING_RATE, DECAY], as_index=False)[ERROR].mean()
    best = means.loc[means[ERROR].idxmin()]
    return float(best[LEARNING_RATE]), float(best[DECAY])


def decay_wins(tables: Tables) -> Measured:
    """Final test error of the best cell without decay or with the smallest η, minus that of large η with decay."""
    runs = tables.runs
    rate, decay = large_rate_with_decay(runs)
    others = runs[(runs[DECAY] == 0) | (runs[LEARNING_RATE] == runs[LEARNING_RATE].min())]
    best = _lowest(others)
    found = difference(_cell(runs, *best), _cell(runs, rate, decay), ERROR, percent)
    named = f"best other cell (η = {best[0]:g}, λ = {best[1]:g}) against η = {rate:g}, λ = {decay:g}"
    return Measured(found.seeds, found.effects, found.runs, f"{found.words}; {named}", found.unless)


def norm_is_not_all(tables: Tables) -> Measured:
    """Final test error of the smaller η minus that of the larger, in the two cells whose final ‖w‖ are closest."""
    runs = tables.runs
    norms = runs.groupby([LEARNING_RATE, DECAY])["weights/norm"].mean()
    pairs = [pair for pair in combinations(norms.index, 2) if pair[0][0] != pair[1][0]]
    if not pairs:
        return nothing("one learning rate only")
    smaller, larger = min(pairs, key=lambda pair: abs(np.log(norms[pair[0]] / norms[pair[1]])))
    ratio = max(norms[smaller], norms[larger]) / min(norms[smaller], norms[larger])
    found = difference(_cell(runs, *smaller), _cell(runs, *larger), ERROR, percent)
    named = "; ".join(f"η = {key[0]:g}, λ = {key[1]:g} has ‖w‖ {three_digits(norms[key])}" for key in (smaller, larger))
    unless = "" if ratio <= SAME_NORM else f"no two cells of different η have norms within a factor of {SAME_NORM:g}"
    return Measured(found.seeds, found.effects, found.runs, f"{found.words}; {named}", unless)


def average_sees_it(tables: Tables) -> Measured:
    """EMA test error at the end of the large-η phase: without decay minus with, at the large η."""
    return _before_the_drop(tables, "ema/test/error", lower_with_decay=True)


def loss_stabilises(tables: Tables) -> Measured:
    """Level at which the training loss settles in the large-η phase: with decay minus without, at the large η."""
    return _before_the_drop(tables, "train/stabilisation", lower_with_decay=False)


def jacobian_before_the_drop(tables: Tables) -> Measured:
    """ln ‖J‖² of the EMA at the end of the large-η phase: without decay minus with, at the large η."""
    return _before_the_drop(tables, EMA_JACOBIAN, lower_with_decay=True, logarithm=True)


def _before_the_drop(tables: Tables, metric: str, *, lower_with_decay: bool, logarithm: bool = False) -> Measured:
    runs = tables.runs
    if missing_metrics(tables.main_curves, [metric]):
        return nothing(f"{metric} was not measured")
    rate, decay = large_rate_with_decay(runs)
    values = large_rate_phase_end(tables.main_curves, metric)
    values = values.map(np.log) if logarithm else values
    cells = _cell(runs, rate, 0.0), _cell(runs, rate, decay)
    write = (
        (lambda value: three_digits(float(np.exp(value))))
        if logarithm
        else (percent if metric.endswith("/error") else three_digits)
    )
    return difference(*(cells if lower_with_decay else cells[::-1]), metric, write, values)


def constant_along_product(tables: Tables) -> Measured:
    """How much more EMA error differs between neighbouring products η·λ than between cells of the same product.

    Mean |difference| over pairs of cells whose products have a ratio from 1.5 to 3 (with some slack), minus the same
    over pairs with the same product (within 1 %) and different η; λ > 0 only, seed by seed.
    """
    runs = tables.runs[tables.runs[DECAY] > 0]
    effects = {}
    for seed, rows in runs.groupby("seed"):
        products, errors = (rows[LEARNING_RATE] * rows[DECAY]).to_numpy(), rows[EMA_ERROR].to_numpy(dtype=float)
        along, across = [], []
        for one, other in combinations(range(len(rows)), 2):
            ratio = max(products[one], products[other]) / min(products[one], products[other])
            gap = abs(errors[one] - errors[other])
            if ratio < 1.01:
                along.append(gap)
            elif 1.45 <= ratio <= 3.05:
                across.append(gap)
        effects[seed] = (np.mean(across), np.mean(along)) if along and across else (np.nan, np.nan)
    across_along = pd.DataFrame(effects, index=["across", "along"]).T
    words = (
        f"{_points(across_along['across'])} between neighbouring products, {_points(across_along['along'])} along one"
    )
    return measured(across_along["across"] - across_along["along"], [runs], words)


def _points(values: pd.Series) -> str:
    return f"{100 * values.mean():.1f} points"


def jacobian_falls(tables: Tables) -> Measured:
    """Minus the rank correlation of η·λ and the EMA's ‖J‖² over the cells with λ > 0, seed by seed."""
    runs = tables.runs[tables.runs[DECAY] > 0]
    runs = runs.assign(product=runs[LEARNING_RATE] * runs[DECAY])
    return _rank_correlation(runs, "product", EMA_JACOBIAN, sign=-1.0)


def noise_follows_the_loss(tables: Tables) -> Measured:
    """Rank correlation of the level of the training loss and the noise scale σ over the grid, seed by seed."""
    return _rank_correlation(tables.runs, "train/stabilisation", "noise/scale", sign=1.0)


def _rank_correlation(runs: pd.DataFrame, one: str, other: str, sign: float) -> Measured:
    if missing_metrics(runs, [one]) or missing_metrics(runs, [other]):
        return nothing(f"{one} and {other} were not both measured")
    effects = {}
    for seed, rows in runs.groupby("seed"):
        pairs = rows[[one, other]].dropna()
        whole = len(pairs) == len(rows)
        effects[seed] = sign * pairs[one].rank().corr(pairs[other].rank()) if whole else np.nan
    cells = runs[[LEARNING_RATE, DECAY]].drop_duplicates()
    return measured(pd.Series(effects), [runs], f"Spearman's rank correlation over {len(cells)} cells")


def smallest_set(tables: Tables) -> Measured:
    """Fig 1, smallest set: test error without decay minus with the one λ that is best over all sizes."""
    return _at_size(tables, float(tables.runs[TRAIN_SIZE].min()))


def one_pass(tables: Tables) -> Measured:
    """Fig 1, largest set, each image once: test error without decay minus with the one λ for all sizes."""
    return _at_size(tables, float(tables.runs[TRAIN_SIZE].max()))


def _at_size(tables: Tables, size: float) -> Measured:
    runs = tables.runs[tables.runs[TRAIN_SIZE] == size]
    decay = one_decay_for_all(tables.runs)
    found = difference(pick(runs, decay__strength=0.0), pick(runs, decay__strength=decay), ERROR, percent)
    return Measured(
        found.seeds,
        found.effects,
        found.runs,
        f"{found.words} at {size:.0f} images; λ = {decay:g} is best over all sizes",
        found.unless,
    )


def best_rate_inside(tables: Tables) -> Measured:
    """Fig 15: test error at the better end of the list of η minus that at the best η inside it."""
    runs = second_phase(tables)
    rates = sorted(runs[LEARNING_RATE].unique())
    if len(rates) < 3:
        return nothing("fewer than three learning rates")
    means = runs[runs[LEARNING_RATE].isin(rates[1:-1])].groupby(LEARNING_RATE)[ERROR].mean()
    best = float(str(means.idxmin()))
    cells = [runs[runs[LEARNING_RATE] == rate] for rate in (rates[0], best, rates[-1])]
    low, inside, high = (by_seed(rows, ERROR) for rows in cells)
    words = f"{percent(low.mean())} at η = {rates[0]:g}, {percent(inside.mean())} at {best:g}, "
    words += f"{percent(high.mean())} at {rates[-1]:g}"
    return measured(pd.concat([low, high], axis=1).min(axis=1, skipna=False) - inside, cells, words)


def finetuned_jacobian_falls(tables: Tables) -> Measured:
    """Fig 5: ln ‖J‖² of the iterate fine-tuned from the first snapshot minus that from the last, mean over η."""
    ends = branch_ends(tables)
    if ends.empty or missing_metrics(ends, ["jacobian/mean_square"]):
        return nothing("no fine-tuned branches in these runs")
    first, last = ends["start_step"].min(), ends["start_step"].max()
    if first == last:
        return nothing("one snapshot only")
    ends = ends.assign(log=np.log(ends["jacobian/mean_square"]))
    table = ends.pivot_table("log", ["seed", LEARNING_RATE], "start_step")
    effects = (table[first] - table[last]).groupby("seed").mean()
    means = table.groupby(LEARNING_RATE).mean().map(np.exp)
    words = ", ".join(
        f"η = {rate:g}: {three_digits(row[first])} → {three_digits(row[last])}" for rate, row in means.iterrows()
    )
    return measured(effects, [ends], words)


def ensemble_is_average(tables: Tables) -> Measured:
    """Test error of the snapshot ensemble minus that of the EMA, mean over η."""
    runs = tables.runs
    if missing_metrics(runs, ["ensemble/test/error"]):
        return nothing("no ensemble in these runs")
    gap = (runs["ensemble/test/error"] - runs[EMA_ERROR]).groupby(runs["seed"]).mean()
    ensemble, average = runs["ensemble/test/error"].mean(), runs[EMA_ERROR].mean()
    return measured(
        gap, [runs], f"ensemble {percent(ensemble)}, EMA {percent(average)}, iterate {percent(runs[ERROR].mean())}"
    )


def noise_follows_curvature(tables: Tables) -> Measured:
    """Fig 13: E cos(G v, S v) of Gauss-Newton part G and gradient-noise covariance S, at the end of the run."""
    metric = "similarity/gauss_newton_noise"
    runs = tables.runs
    if missing_metrics(runs, [metric]):
        return nothing("the similarity was not measured")
    words = ", ".join(
        f"{name} {runs[f'similarity/{key}'].mean():.2f}"
        for key, name in (("gauss_newton_noise", "Gauss-Newton and noise"), ("hessian_noise", "Hessian and noise"))
        if f"similarity/{key}" in runs
    )
    return measured(by_seed(runs, metric), [runs], words)


def decoupling_keeps_the_spectrum(tables: Tables) -> Measured:
    """Figs 16-18: mean over cells of |ln| of the ratio of the largest eigenvalues, decoupled and true noise."""
    if missing_metrics(tables.main_curves, ["spectrum/noise/node_000"]):
        return nothing("no spectra in these runs")
    rows = spectra_rows(tables)
    largest = {
        kind: rows[[name for name in rows if str(name).startswith(f"spectrum/{kind}/node_")]].max(axis=1)
        for kind in SPECTRA
    }
    ratios = (largest["decoupled"] / largest["noise"]).map(np.log)
    cells = rows[[LEARNING_RATE, DECAY]].assign(ratio=ratios).groupby([LEARNING_RATE, DECAY], as_index=False).mean()
    words = ", ".join(f"η = {rate:g}, λ = {decay:g}: ×{np.exp(ratio):.2g}" for rate, decay, ratio in cells.to_numpy())
    return measured(ratios.abs().groupby(rows["seed"]).mean(), [rows], words)
