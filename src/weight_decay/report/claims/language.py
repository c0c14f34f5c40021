"""How the claims about one pass over text are measured (Figs 6-8, 19-26 and the studies of our own).

λ is the strength that stands for the paper's 0.1 at its scale, or the smallest positive one where a table has no such
strength.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from weight_decay.report.claims.demo import loss, three_digits
from weight_decay.report.claims.pairs import by_seed, difference, measured, nothing, pick
from weight_decay.report.claims.verdict import Measured
from weight_decay.report.figures.precision import kept_shares
from weight_decay.report.tables.read import DECAY, LEARNING_RATE, Tables, mean_between, missing_metrics

LOSS = "val/loss"
MATCHED = "matched_effective_lr"
HALF_UNIT = 1 / 512
"""η·λ below which a step of decay is less than half a unit in the last place of bfloat16 for every weight."""


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


def higher_in_the_middle(tables: Tables) -> Measured:
    """Loss of the training batches from 40 to 60 % of the run: with λ minus without."""
    with_decay, without = _with_and_without(tables.runs)
    middle = mean_between(tables.main_curves, "batch/loss", 0.4, 0.6)
    return difference(with_decay, without, "batch/loss", loss, middle)


def lower_at_the_end(tables: Tables) -> Measured:
    """Final validation loss: without decay minus with λ."""
    with_decay, without = _with_and_without(tables.runs)
    return difference(without, with_decay, LOSS, loss)


def higher_at_the_end(tables: Tables) -> Measured:
    """Final validation loss: with λ minus without decay."""
    with_decay, without = _with_and_without(tables.runs)
    return difference(with_decay, without, LOSS, loss)


def stronger_decay_at_the_end(tables: Tables) -> Measured:
    """Final validation loss: without decay minus with the largest strength."""
    runs = tables.runs
    return difference(runs[runs[DECAY] == 0], runs[runs[DECAY] == runs[DECAY].max()], LOSS, loss)


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
    return _gap(tables, "unseen/loss", "unseen")


def same_document_gap(tables: Tables) -> Measured:
    """Gap between other documents and seen windows: with λ minus without."""
    runs = tables.runs
    if missing_metrics(runs, ["train/loss", LOSS]):
        return nothing("the losses were not both measured")
    runs = _fig_6_cells(runs.assign(gap=runs[LOSS] - runs["train/loss"]))
    return difference(*_with_and_without(runs), "gap", loss)


def _gap(tables: Tables, metric: str, name: str) -> Measured:
    runs = tables.runs
    if missing_metrics(runs, ["train/loss", metric]):
        return nothing(f"{metric} was not measured")
    runs = _fig_6_cells(runs)
    gaps = (runs[metric] - runs["train/loss"]).groupby(runs["seed"]).mean()
    strengths = ", ".join(f"{value:g}" for value in sorted(runs[DECAY].unique()))
    words = f"{name} {loss(runs[metric].mean())}, seen {loss(runs['train/loss'].mean())}, mean over λ = {strengths}"
    return measured(gaps, [runs], words)


def _fig_6_cells(runs: pd.DataFrame) -> pd.DataFrame:
    """Without the cells of a larger model, which are named by its width or group."""
    return pick(runs, model__width=None, model=None)


def norms_too(tables: Tables) -> Measured:
    """Fig 20: final validation loss without decay minus with decay on LayerNorm too, at λ."""
    runs = tables.runs
    decayed = pick(runs, decay="decoupled")
    if decayed.empty:
        return nothing("no run decays LayerNorm")
    strength = _strength(decayed)
    without = pick(runs, decay__strength=0.0, decay=None)
    found = difference(without, decayed[decayed[DECAY] == strength], LOSS, loss)
    return Measured(found.seeds, found.effects, found.runs, f"{found.words}; λ = {strength:g}", found.unless)


def penalty_too(tables: Tables) -> Measured:
    """Fig 21: final validation loss without decay minus with the ℓ2 penalty that ends lowest."""
    runs = tables.runs
    penalised = pick(runs, decay="penalty_except_norms")
    if penalised.empty:  # tables from before the penalty meant what it means in the paper
        penalised = pick(runs, decay="l2_except_norms")
    if penalised.empty:
        return nothing("no run has a penalty")
    best = float(str(penalised.groupby(DECAY)[LOSS].mean().idxmin()))
    found = difference(pick(runs, decay__strength=0.0, decay=None), penalised[penalised[DECAY] == best], LOSS, loss)
    return Measured(
        found.seeds,
        found.effects,
        found.runs,
        f"{found.words}; the best of {penalised[DECAY].nunique()} penalties, {best:g}",
        found.unless,
    )


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
    wins = []
    for rows in (full, short):
        with_decay, without = _with_and_without(rows)
        wins.append(by_seed(without, LOSS) - by_seed(with_decay, LOSS))
    words = f"gain {loss(wins[0].mean())} with a full cosine, {loss(wins[1].mean())} with one cut short"
    return measured(wins[0] - wins[1], [full, short], words)


def matching(reference: dict[str, Any], matched: dict[str, Any]) -> Callable[[Tables], Measured]:
    """Measure how far a run without decay comes to one with decay when it is given its effective LR.

    `reference` picks the runs with and without decay, `matched` the matched ones. Effect: 1 minus the mean distance of
    the matched run's loss to that with decay over the distance of the unmatched run's, over the batches after the
    first tenth; 1 is a perfect match, 0 none, below 0 worse than doing nothing.
    """

    def measure(tables: Tables) -> Measured:
        runs = tables.runs
        if "schedule" not in runs:
            return nothing("no matched runs")
        with_decay, without = _with_and_without(pick(runs, schedule=None), **reference)
        candidates = pick(runs, schedule=MATCHED, **matched)
        if "precision" in candidates:
            candidates = candidates[candidates["precision"] != "bfloat16_autocast"]
        if with_decay.empty or without.empty or candidates.empty:
            return nothing("the matched run or its reference was not made")
        strength = float(with_decay[DECAY].iloc[0])
        followers = candidates[candidates["schedule.reference_strength"] == strength]
        distances = {}
        for name, rows in (("matched", followers), ("unmatched", without)):
            distances[name] = _distance(tables.main_curves, rows, with_decay)
        near, far = distances["matched"], distances["unmatched"]
        words = f"mean distance of the losses {loss(near.mean())} matched, {loss(far.mean())} unmatched"
        diverged = followers["status"] == "diverged"
        unless = f"{int(diverged.sum())} matched run(s) diverged" if diverged.any() else ""
        return measured(1 - near / far, [with_decay, without, followers], words, unless=unless)

    return measure


def _distance(curves: pd.DataFrame, rows: pd.DataFrame, target: pd.DataFrame) -> pd.Series:
    """Mean |difference| of the batches' loss at the same step and seed, after the first tenth of the run."""
    wide = []
    for chosen in (rows, target):
        part = curves[curves["run_id"].isin(chosen["run_id"])].dropna(subset=["batch/loss"])
        wide.append(part.pivot_table("batch/loss", "step", "seed"))
    gap = (wide[0] - wide[1]).abs()
    return gap[gap.index >= 0.1 * gap.index.max()].mean()


def squared_matching_diverges(tables: Tables) -> Measured:
    """Whether a run matched by η/‖w‖² diverges, or ends more than 1 nat above its reference."""
    runs = tables.runs
    rows = pick(runs, schedule__power=2.0) if "schedule.power" in runs else runs.iloc[:0]
    if rows.empty:
        return nothing("no run was matched by the squared norm")
    with_decay, _ = _with_and_without(pick(runs, schedule=None))
    target = with_decay.set_index("seed")[LOSS]
    lost = (rows["status"] == "diverged") | (rows[LOSS] > rows["seed"].map(target) + 1)
    effects = pd.Series(lost.to_numpy(dtype=float), rows["seed"].to_numpy())
    return measured(effects, [rows], f"{int(lost.sum())} of {len(rows)} runs", binary=True)


def matching_in_bfloat16_diverges(tables: Tables) -> Measured:
    """Whether a run in bfloat16 without decay diverges under the effective LR of the strongest decay."""
    rows = pick(tables.runs, schedule=MATCHED, precision="bfloat16_autocast")
    if rows.empty:
        return nothing("no matched run in bfloat16")
    rows = rows[rows["schedule.reference_strength"] == rows["schedule.reference_strength"].max()]
    lost = (rows["status"] == "diverged").to_numpy(dtype=float)
    words = f"{int(lost.sum())} of {len(rows)} runs"
    return measured(pd.Series(lost, rows["seed"].to_numpy()), [rows], words, binary=True)


def only_without_decay_diverges(tables: Tables) -> Measured:
    """Fig 8: in bfloat16 at the largest LR, whether the run without decay diverges and none with decay does.

    One outcome for each seed, with the attention kernel that torch chooses; the words count all kernels.
    """
    runs = pick(tables.runs, precision="bfloat16_autocast")
    runs = runs[runs[LEARNING_RATE] == runs[LEARNING_RATE].max()]
    if runs.empty:
        return nothing("no bfloat16 runs")
    lost = runs["status"] == "diverged"
    words = f"{int(lost.sum())} of {len(runs)} bfloat16 runs at η = {runs[LEARNING_RATE].max():g} diverged"
    chosen = pick(runs, model__attention="auto") if "model.attention" in runs else runs
    effects = {}
    for seed, rows in chosen.groupby("seed"):
        diverged = rows["status"] == "diverged"
        effects[seed] = float(diverged[rows[DECAY] == 0].any() and not diverged[rows[DECAY] > 0].any())
    return measured(pd.Series(effects), [chosen], words, binary=True)


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


def decay_is_lost(how: str) -> Callable[[Tables], Measured]:
    """Measure the share of float32's decay that bfloat16 weights lose where η·λ < 1/512, mean over such cells.

    `how` as in `kept_shares`: "foreach kernel", "fused kernel", "nearest", "stochastic", "kahan".
    """

    def measure(tables: Tables) -> Measured:
        shares = kept_shares(tables.runs)
        rows = shares[(shares["how"] == how) & (shares["product"] < HALF_UNIT)]
        if rows.empty:
            return nothing("no such runs")
        kept = rows.groupby("seed")["kept"].mean()
        runs = tables.runs[tables.runs["precision"].isin(["bfloat16", "float32"])]
        return measured(1 - kept, [runs], f"{100 * kept.mean():.1f} % of float32's decay is kept")

    return measure
