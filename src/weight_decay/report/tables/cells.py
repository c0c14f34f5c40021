"""Rows of a table that claims and figures both speak of: ends of branches, the second phase, spectra, one λ for all."""

from __future__ import annotations

import pandas as pd

from weight_decay.report.tables.read import DECAY, Tables, large_rate_phase_end

EMA_ERROR, EMA_JACOBIAN = "ema/test/error", "ema/jacobian/mean_square"
TRAIN_SIZE = "data.train_size"


def branch_ends(tables: Tables) -> pd.DataFrame:
    """The final row of every branch, with the epoch of the snapshot that it started from as `epoch`.

    Computed from the step: a snapshot need not fall on a step at which its run recorded something.
    """
    branches = tables.summary[tables.summary["branch"] != "main"]
    curves = tables.main_curves
    last = curves[curves["step"] > 0].groupby("run_id")[["step", "epoch"]].last()
    epochs = last["epoch"] / last["step"]
    return branches.assign(epoch=branches["start_step"] * branches["run_id"].map(epochs))


def one_decay_for_all(runs: pd.DataFrame) -> float:
    """The λ > 0, tried at every size, with the lowest test error averaged over sizes and seeds."""
    sizes = runs[TRAIN_SIZE].nunique()
    tried = runs[runs[DECAY] > 0].groupby([DECAY, TRAIN_SIZE])["test/error"].mean().unstack()
    complete = tried.dropna() if tried.shape[1] == sizes else tried.iloc[:0]
    return float(str((complete if len(complete) else tried).mean(axis=1).idxmin()))


def second_phase(tables: Tables) -> pd.DataFrame:
    """The ends of the small-rate phase: each run's branch from its last snapshot, or the runs if there is none."""
    branches = branch_ends(tables)
    if branches.empty:
        return tables.runs
    return branches[branches["start_step"] == branches.groupby("run_id")["start_step"].transform("max")]


def spectra_rows(tables: Tables) -> pd.DataFrame:
    """For each run its last measured spectrum at the largest learning rate, or at all if there is none there."""
    curves = tables.main_curves
    measured = curves[curves["spectrum/noise/node_000"].notna()]
    steps = large_rate_phase_end(curves[["run_id", "step", "lr"]].assign(at=curves["step"]), "at")
    in_phase = measured[measured["step"] <= measured["run_id"].map(steps)]
    chosen = in_phase if len(in_phase) else measured
    return chosen.sort_values("step").groupby("run_id").tail(1)
