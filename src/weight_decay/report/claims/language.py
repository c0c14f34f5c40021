"""How the claims about one pass over text are measured (Figs 6-8, 19-26 and the studies of our own).

λ is the strength that stands for the paper's 0.1 at its scale, or the smallest positive one where a table has no such
strength. "The end" is the mean training loss of the last 5 % of the steps: the paper's endpoint, and several times less
noisy than a loss on held-out windows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from weight_decay.report.claims.pairs import Measured, by_seed, difference, measured, nothing, pick, with_lowest
from weight_decay.report.tables.numbers import loss, three_digits
from weight_decay.report.tables.read import DECAY, LEARNING_RATE, Tables, mean_between, missing_metrics

LOSS = "val/loss"
BATCH = "batch/loss"
MATCHED = "matched_effective_lr"
LAST = 0.9501
"""Where the end of a run begins: logs of what lies before 95 % stay out."""
STANDARD = (0.1, 1.5, 0.05)
"""The paper's λ = 0.1, and what stands for it at small and micro: λ · η · steps is the same."""


def _strength(runs: pd.DataFrame) -> float:
    strengths = runs[DECAY][runs[DECAY] > 0]
    return next((value for value in STANDARD if value in set(strengths)), float(strengths.min()))


def _with_and_without(runs: pd.DataFrame, **coordinates: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    runs = pick(runs, **coordinates)
    if not (runs[DECAY] > 0).any():
        return runs.iloc[:0], runs.iloc[:0]
    return runs[runs[DECAY] == _strength(runs)], runs[runs[DECAY] == 0]


def _end(tables: Tables) -> pd.Series:
    """Per run id, the mean training loss at the end."""
    return mean_between(tables.main_curves, BATCH, LAST, 1.0)


def _batches(tables: Tables, start: float, stop: float, *, lower: bool = False) -> Measured:
    """Loss of the training batches between two fractions of the run: with λ minus without, or the other way round."""
    cells = _with_and_without(tables.runs)
    values = mean_between(tables.main_curves, BATCH, start, stop)
    return difference(*(cells[::-1] if lower else cells), BATCH, loss, values)


higher_in_the_middle = partial(_batches, start=0.4, stop=0.6)
higher_at_the_end = partial(_batches, start=LAST, stop=1.0)
lower_at_the_end = partial(_batches, start=LAST, stop=1.0, lower=True)


def lower_on_documents(tables: Tables) -> Measured:
    """Final loss on documents of their own: without decay minus with λ."""
    with_decay, without = _with_and_without(tables.runs)
    return difference(without, with_decay, LOSS, loss)


def stronger_decay_at_the_end(tables: Tables) -> Measured:
    """Training loss at the end: without decay minus with the largest strength."""
    runs = tables.runs
    return difference(runs[runs[DECAY] == 0], runs[runs[DECAY] == runs[DECAY].max()], BATCH, loss, _end(tables))


def best_decay_at_the_end(tables: Tables) -> Measured:
    """Training loss at the end: without decay minus with the λ > 0 that ends lowest, chosen on the other seeds."""
    runs = tables.runs
    return _best(runs[runs[DECAY] == 0], runs[runs[DECAY] > 0], _end(tables))


def _best(without: pd.DataFrame, others: pd.DataFrame, end: pd.Series) -> Measured:
    if without.empty or others.empty:
        return nothing("the runs it compares were not made")
    picked, best = with_lowest(others.assign(end=others["run_id"].map(end)), DECAY, "end")
    found = difference(without, picked, BATCH, loss, end)
    return replace(found, words=f"{found.words}; λ = {', '.join(f'{value:g}' for value in best)}")


def tiny_rate_reveals(tables: Tables) -> Measured:
    """Fall of the validation loss in a tiny-LR branch, mean over snapshots: with λ minus without."""
    ends = tables.summary[tables.summary["branch"] != "main"]
    if ends.empty or missing_metrics(ends, [LOSS]):
        return nothing("no branches in these runs")
    before = tables.main_curves.dropna(subset=[LOSS]).set_index(["run_id", "step"])[LOSS]
    at = pd.MultiIndex.from_arrays([ends["run_id"], ends["start_step"].astype(int)])
    falls = pd.Series(before.reindex(at).to_numpy() - ends[LOSS].to_numpy(), ends["run_id"].to_numpy())
    with_decay, without = _with_and_without(tables.runs)
    return difference(with_decay, without, "fall", loss, falls.groupby(level=0).mean())


def no_gap(tables: Tables) -> Measured:
    """Final loss on unseen windows of the training documents minus that on seen windows, mean over λ."""
    runs, metric = tables.runs, "unseen/loss"
    if missing_metrics(runs, ["train/loss", metric]):
        return nothing(f"{metric} was not measured")
    runs = _fig_6_cells(runs)
    gaps = (runs[metric] - runs["train/loss"]).groupby(runs["seed"]).mean()
    strengths = ", ".join(f"{value:g}" for value in sorted(runs[DECAY].unique()))
    words = f"unseen {loss(runs[metric].mean())}, seen {loss(runs['train/loss'].mean())}, mean over λ = {strengths}"
    return measured(gaps, [runs], words)


def same_document_gap(tables: Tables) -> Measured:
    """Gap between other documents and seen windows: with λ minus without."""
    runs = tables.runs
    if missing_metrics(runs, ["train/loss", LOSS]):
        return nothing("the losses were not both measured")
    runs = _fig_6_cells(runs.assign(gap=runs[LOSS] - runs["train/loss"]))
    return difference(*_with_and_without(runs), "gap", loss)


def _fig_6_cells(runs: pd.DataFrame) -> pd.DataFrame:
    """Without the cells of a larger model, which are named by its width or group."""
    return pick(runs, model__width=None, model=None)


def norms_too(tables: Tables) -> Measured:
    """Fig 20: training loss at the end without decay minus with decay on LayerNorm too, at λ."""
    decayed = pick(tables.runs, decay="decoupled")
    if decayed.empty:
        return nothing("no run decays LayerNorm")
    strength = _strength(decayed)
    without = pick(tables.runs, decay__strength=0.0, decay=None)
    found = difference(without, decayed[decayed[DECAY] == strength], BATCH, loss, _end(tables))
    return replace(found, words=f"{found.words}; λ = {strength:g}")


def penalty_too(tables: Tables) -> Measured:
    """Fig 21: training loss at the end without minus with the better of the penalties, chosen on the other seeds."""
    runs = tables.runs
    penalised = pick(runs, decay="penalty_except_norms")
    if penalised.empty:
        return nothing("no run has a penalty λ‖w‖² as the paper means it")
    return _best(pick(runs, decay__strength=0.0, decay=None), penalised, _end(tables))


def averaging_gains(tables: Tables) -> Measured:
    """What the EMA wins over the iterate from 40 to 80 % of the run: with λ minus without."""
    curves = tables.main_curves
    gains = curves.assign(gain=curves[LOSS] - curves["ema/val/loss"])
    with_decay, without = _with_and_without(tables.runs)
    return difference(with_decay, without, "gain", loss, mean_between(gains, "gain", 0.4, 0.8))


def gain_needs_the_fall(tables: Tables) -> Measured:
    """What decay wins with a full cosine minus what it wins when the cosine is cut short."""
    runs = tables.runs
    full = pick(runs, schedule__decay_until=None)
    if "schedule.decay_until" not in runs:
        return nothing("the two schedules were not both run")
    short = runs[runs["schedule.decay_until"] == runs["schedule.decay_until"].dropna().max()]
    if full.empty or short.empty:
        return nothing("the two schedules were not both run")
    wins, end = [], _end(tables)
    for rows in (full, short):
        with_decay, without = _with_and_without(rows)
        wins.append(by_seed(without, BATCH, end) - by_seed(with_decay, BATCH, end))
    words = f"gain {loss(wins[0].mean())} with a full cosine, {loss(wins[1].mean())} with one cut short"
    return measured(wins[0] - wins[1], [full, short], words)


def matching(reference: dict[str, Any], matched: dict[str, Any]) -> Callable[[Tables], Measured]:
    """Measure where a run without decay ends when it is given the effective LR of one with decay.

    `reference` picks the runs with and without decay, `matched` the matched ones, in float32. Effect: training loss at
    the end, matched minus with decay; signed, so that noise alone does not keep it from 0.
    """

    def measure(tables: Tables) -> Measured:
        runs = tables.runs
        if "schedule" not in runs:
            return nothing("no matched runs")
        with_decay, without = _with_and_without(pick(runs, schedule=None), **reference)
        candidates = pick(runs, schedule=MATCHED, **matched)
        if "precision" in candidates:
            candidates = candidates[candidates["precision"] != "bfloat16_autocast"]
        if with_decay.empty or candidates.empty:
            return nothing("the matched run or its reference was not made")
        strength, end = float(with_decay[DECAY].iloc[0]), _end(tables)
        followers = candidates[candidates["schedule.reference_strength"] == strength]
        found = difference(followers, with_decay, BATCH, loss, end)
        unmatched = without["run_id"].map(end).mean()
        return replace(found, words=f"matched {found.words} with decay, {loss(unmatched)} without")

    return measure


def squared_matching_diverges(tables: Tables) -> Measured:
    """Whether a run matched by η/‖w‖² diverges, or ends more than 1 nat above its reference."""
    runs = tables.runs
    rows = pick(runs, schedule__power=2.0) if "schedule.power" in runs else runs.iloc[:0]
    if rows.empty:
        return nothing("no run was matched by the squared norm")
    with_decay, _ = _with_and_without(pick(runs, schedule=None))
    target = with_decay.set_index("seed")[LOSS]
    return _share(rows, (rows["status"] == "diverged") | (rows[LOSS] > rows["seed"].map(target) + 1))


def matching_in_bfloat16_diverges(tables: Tables) -> Measured:
    """Whether a run in bfloat16 without decay diverges under the effective LR of the strongest decay."""
    rows = pick(tables.runs, schedule=MATCHED, precision="bfloat16_autocast")
    if rows.empty:
        return nothing("no matched run in bfloat16")
    rows = rows[rows["schedule.reference_strength"] == rows["schedule.reference_strength"].max()]
    return _share(rows, rows["status"] == "diverged")


def _share(rows: pd.DataFrame, lost: pd.Series) -> Measured:
    effects = pd.Series(lost.to_numpy(dtype=float), rows["seed"].to_numpy())
    return measured(effects, [rows], f"{int(lost.sum())} of {len(rows)} runs", binary=True)


def bfloat16_costs_more(tables: Tables) -> Measured:
    """Fig 8: training loss at the end in bfloat16 minus in float32, without decay minus with λ, at the largest LR."""
    runs = tables.runs[tables.runs[LEARNING_RATE] == tables.runs[LEARNING_RATE].max()]
    runs = pick(runs, model__attention="auto") if "model.attention" in runs else runs
    costs, end, cells = [], _end(tables), []
    for index in (1, 0):
        wide, narrow = (
            _with_and_without(runs, precision=precision)[index] for precision in ("float32", "bfloat16_autocast")
        )
        if wide.empty or narrow.empty:
            return nothing("not both number formats were run")
        costs.append(by_seed(narrow, BATCH, end) - by_seed(wide, BATCH, end))
        cells += [wide, narrow]
    lost = tables.runs[tables.runs["status"] == "diverged"]
    words = f"bfloat16 costs {loss(costs[0].mean())} without, {loss(costs[1].mean())} with decay; {len(lost)} diverged"
    return measured(costs[0] - costs[1], cells, words)


def logits_grow(tables: Tables) -> Measured:
    """ln of the largest attention logit at the end: without decay minus with λ, in bfloat16 at the largest LR."""
    metric = "stability/max_attention_logit"
    runs = pick(tables.runs, precision="bfloat16_autocast")
    runs = runs[runs[LEARNING_RATE] == runs[LEARNING_RATE].max()]
    runs = runs[runs["model.attention"] == runs["model.attention"].min()] if "model.attention" in runs else runs
    if runs.empty or missing_metrics(runs, [metric]):
        return nothing("the largest attention logit was not measured")
    with_decay, without = _with_and_without(runs)
    logs = np.log(tables.runs.set_index("run_id")[metric])
    return difference(without, with_decay, metric, lambda value: three_digits(float(np.exp(value))), logs)


def decay_is_lost(how: str, *, kept: bool = False) -> Callable[[Tables], Measured]:
    """Measure the share of float32's decay that bfloat16 weights lose (or keep) when one gradient sequence is replayed.

    `how`: foreach, fused, nearest, stochastic or kahan; mean over the strengths λ of the replay.
    """

    def measure(tables: Tables) -> Measured:
        names = [str(name) for name in tables.runs if str(name).startswith(f"replay/{how}/kept_")]
        if not names:
            return nothing("no gradients were replayed in these runs")
        share = tables.runs[names].mean(axis=1, skipna=False)
        effects = pd.Series((share if kept else 1 - share).to_numpy(dtype=float), tables.runs["seed"].to_numpy())
        return measured(effects, [tables.runs], f"{100 * share.mean():.2f} % of float32's decay is kept")

    return measure
