"""How the claims about many passes over little data are measured (Figs 1-5, 10-15, Tables 2 and 3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from weight_decay.report.claims.pairs import (
    Measured,
    by_seed,
    chosen_on_others,
    difference,
    measured,
    nothing,
    pick,
    with_lowest,
)
from weight_decay.report.tables.cells import (
    EMA_ERROR,
    EMA_JACOBIAN,
    TRAIN_SIZE,
    branch_ends,
    one_decay_for_all,
    second_phase,
    spectra_rows,
)
from weight_decay.report.tables.numbers import percent, three_digits
from weight_decay.report.tables.read import DECAY, LEARNING_RATE, Tables, large_rate_phase_end, missing_metrics

ERROR = "test/error"


def _cell(runs: pd.DataFrame, rate: float, decay: float) -> pd.DataFrame:
    return pick(runs, **{"optimizer__lr": rate, "decay__strength": decay})


def large_rate_with_decay(runs: pd.DataFrame) -> tuple[float, float]:
    """(η, λ) of the cell with λ > 0 and not the smallest η that ends with the lowest mean test error."""
    smallest = runs[LEARNING_RATE].min()
    candidates = runs[(runs[DECAY] > 0) & (runs[LEARNING_RATE] > smallest)]
    return _lowest(candidates)


def _lowest(runs: pd.DataFrame, metric: str = ERROR) -> tuple[float, float]:
    best: Any = runs.groupby([LEARNING_RATE, DECAY])[metric].mean().idxmin()
    return float(best[0]), float(best[1])


def decay_wins(tables: Tables) -> Measured:
    """Final test error of the best cell without decay or with the smallest η, minus that of large η with decay.

    Both cells are chosen for each seed on the other seeds.
    """
    runs = tables.runs
    ours = chosen_on_others(runs, large_rate_with_decay)
    weak = runs[(runs[DECAY] == 0) | (runs[LEARNING_RATE] == runs[LEARNING_RATE].min())]
    best = chosen_on_others(weak, _lowest)
    found = difference(_picked(runs, best), _picked(runs, ours), ERROR, percent)
    return replace(found, words=f"{found.words}; best other cell {_named(best)} against {_named(ours)}")


def _picked(runs: pd.DataFrame, cells: dict[int, tuple[float, float]]) -> pd.DataFrame:
    """Of each seed the run in the cell (η, λ) that was chosen for it."""
    kept = [(_cell(runs[runs["seed"] == seed], *cell)) for seed, cell in cells.items()]
    return pd.concat(kept) if kept else runs.iloc[:0]


def _named(cells: dict[int, tuple[float, float]]) -> str:
    return " or ".join(f"η = {rate:g}, λ = {decay:g}" for rate, decay in sorted(set(cells.values())))


def norm_is_not_all(tables: Tables) -> Measured:
    """Final test error in the cell of the smallest final ‖w‖ minus the lowest in a cell of larger norm.

    Above 0: the smaller norm has the larger error, so the norm does not decide. Chosen on the other seeds.
    """
    runs = tables.runs
    smallest = partial(_lowest, metric="weights/norm")

    def better(seen: pd.DataFrame) -> tuple[float, float]:
        rate, decay = smallest(seen)
        return _lowest(seen[(seen[LEARNING_RATE] != rate) | (seen[DECAY] != decay)])

    small, large = chosen_on_others(runs, smallest), chosen_on_others(runs, better)
    found = difference(_picked(runs, small), _picked(runs, large), ERROR, percent)
    norms = runs.groupby([LEARNING_RATE, DECAY])["weights/norm"].mean()
    named = "; ".join(
        f"η = {rate:g}, λ = {decay:g} has ‖w‖ {three_digits(norms[rate, decay])}"
        for rate, decay in sorted({*small.values(), *large.values()})
    )
    return replace(found, words=f"{found.words}; {named}")


def _before_the_drop(tables: Tables, metric: str, *, lower_with_decay: bool, logarithm: bool = False) -> Measured:
    """`metric` at the end of the large-η phase, at the large η: without decay minus with, or the other way round."""
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


average_sees_it = partial(_before_the_drop, metric=EMA_ERROR, lower_with_decay=True)
loss_stabilises = partial(_before_the_drop, metric="train/stabilisation", lower_with_decay=False)
jacobian_before_the_drop = partial(_before_the_drop, metric=EMA_JACOBIAN, lower_with_decay=True, logarithm=True)


def _at_size(tables: Tables, which: Callable[[pd.Series], float]) -> Measured:
    """Fig 1: test error without decay minus with the one λ that is best over all sizes, at one of them."""
    size = float(which(tables.runs[TRAIN_SIZE]))
    runs = tables.runs[tables.runs[TRAIN_SIZE] == size]
    decays = chosen_on_others(tables.runs, one_decay_for_all)
    picked = runs[runs[DECAY] == runs["seed"].map(decays)]
    found = difference(pick(runs, decay__strength=0.0), picked, ERROR, percent)
    names = " or ".join(f"{value:g}" for value in sorted(set(decays.values())))
    return replace(found, words=f"{found.words} at {size:.0f} images; λ = {names} is best over all sizes")


smallest_set, one_pass = partial(_at_size, which=min), partial(_at_size, which=max)
"""The largest set shows each image once."""


def best_rate_inside(tables: Tables) -> Measured:
    """Fig 15: test error at the better end of the list of η minus that at the best η inside it.

    End and inside are chosen for each seed on the other seeds.
    """
    runs = second_phase(tables)
    rates = sorted(runs[LEARNING_RATE].unique())
    if len(rates) < 3:
        return nothing("fewer than three learning rates")
    ends = runs[LEARNING_RATE].isin([rates[0], rates[-1]])
    picked = [with_lowest(rows, LEARNING_RATE, ERROR)[0] for rows in (runs[ends], runs[~ends])]
    means = runs.groupby(LEARNING_RATE)[ERROR].mean()
    words = ", ".join(f"{percent(value)} at η = {rate:g}" for rate, value in means.items())
    return measured(by_seed(picked[0], ERROR) - by_seed(picked[1], ERROR), picked, words)


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
    """Figs 16-18: ln 2 minus the mean over cells of |ln| of the ratio of the largest eigenvalues (decoupled, true)."""
    if missing_metrics(tables.main_curves, ["spectrum/noise/node_000"]):
        return nothing("no spectra in these runs")
    rows = spectra_rows(tables)
    largest = {
        kind: rows[[name for name in rows if str(name).startswith(f"spectrum/{kind}/node_")]].max(axis=1)
        for kind in ("noise", "decoupled")
    }
    ratios = (largest["decoupled"] / largest["noise"]).map(np.log)
    cells = rows[[LEARNING_RATE, DECAY]].assign(ratio=ratios).groupby([LEARNING_RATE, DECAY], as_index=False).mean()
    words = ", ".join(f"η = {rate:g}, λ = {decay:g}: ×{np.exp(ratio):.2g}" for rate, decay, ratio in cells.to_numpy())
    return measured(np.log(2) - ratios.abs().groupby(rows["seed"]).mean(), [rows], words)
