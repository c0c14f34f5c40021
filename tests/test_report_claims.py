"""Claims: interval, verdict, power, and that each measure finds the effect that was put into a table."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from weight_decay.report.claims import language, vision
from weight_decay.report.claims.paper import CLAIMS, SCALES, judged_claims
from weight_decay.report.claims.table import claims_markdown, write_claims
from weight_decay.report.claims.verdict import (
    NATS,
    Claim,
    Measured,
    Verdict,
    interval,
    judged,
    outcomes_needed,
    seeds_needed,
    share_interval,
)
from weight_decay.report.tables.read import Tables, scales_of, tables_of

ROOT = Path(__file__).resolve().parents[1]


USED = re.compile(
    r"^(test/error|ema/test/error|ema/jacobian/mean_square|jacobian/mean_square|train/loss|val/loss|ema/val/loss"
    r"|unseen/loss|batch/loss|weights/norm|noise/scale|train/stabilisation|ensemble/test/error"
    r"|stability/max_attention_logit|similarity/gauss_newton_noise|spectrum/.*_000|[a-z]+\.[a-z_]+"
    r"|precision|schedule|decay|model)$"
)
"""Columns of a summary that some claim reads, coordinates included."""


def table(rows: list[dict[str, object]], curves: list[dict[str, object]] | None = None) -> Tables:
    """Tables of made-up runs; `status`, `branch` and run ids are filled in."""
    filled = [
        {"run_id": f"r{index}", "branch": "main", "status": "completed", "data": "made up", "start_step": 0, **row}
        for index, row in enumerate(rows)
    ]
    measured = [{"branch": "main", **row} for row in curves or []]
    frame = pd.DataFrame(measured, columns=None if measured else ["run_id", "branch", "step", "epoch"])
    return Tables("made_up", "micro", pd.DataFrame(filled), frame)


def claim_of(effects: tuple[float, ...], **options: object) -> Claim:
    found = Measured(tuple(range(len(effects))), effects, ("r0",), "made up", binary=bool(options.pop("binary", False)))
    return Claim("made_up", "It is so.", "1", "made_up", lambda tables: found, NATS, **options)  # type: ignore[arg-type]


def verdict(effects: tuple[float, ...], **options: object) -> Verdict:
    return judged(claim_of(effects, **options), table([{"seed": 0}])).verdict


def test_the_interval_is_that_of_a_paired_t_test() -> None:
    with_decay, without = np.array([1.0, 1.3, 0.9, 1.1]), np.array([1.4, 1.5, 1.6, 1.3])
    found = interval(list(without - with_decay))
    expected = stats.ttest_rel(without, with_decay).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx(0.375)


def test_verdicts_follow_the_interval() -> None:
    assert verdict((1.0, 1.1, 0.9)) is Verdict.HOLDS
    assert verdict((-1.0, -1.1, -0.9)) is Verdict.FAILS
    assert verdict((1.0, -1.0, 0.5)) is Verdict.INCONCLUSIVE
    assert verdict((5.0,)) is Verdict.INCONCLUSIVE
    assert verdict((1.0, 1.1, 0.9), threshold=2.0) is Verdict.FAILS


def test_equality_needs_the_whole_interval_within_the_margin() -> None:
    assert verdict((0.001, -0.001, 0.0), margin=0.02) is Verdict.HOLDS
    assert verdict((0.5, 0.51, 0.49), margin=0.02) is Verdict.FAILS
    assert verdict((-0.5, -0.51, -0.49), margin=0.02) is Verdict.FAILS
    assert verdict((0.01, 0.03, -0.02), margin=0.02) is Verdict.INCONCLUSIVE


def test_three_of_three_outcomes_do_not_show_that_most_are_so() -> None:
    assert verdict((1.0,) * 3, binary=True, threshold=0.5) is Verdict.INCONCLUSIVE
    assert verdict((1.0,) * 6, binary=True, threshold=0.5) is Verdict.HOLDS
    assert verdict((0.0,) * 6, binary=True, threshold=0.5) is Verdict.FAILS
    assert share_interval([1.0] * 3).low == pytest.approx(0.025 ** (1 / 3))
    assert outcomes_needed(claim_of((1.0,) * 3, threshold=0.5), share_interval([1.0] * 3)) == 6


def test_a_difference_of_either_sign_is_a_difference() -> None:
    for effects in ((1.0, 1.1, 0.9), (-1.0, -1.1, -0.9)):
        assert verdict(effects, margin=0.02, different=True) is Verdict.HOLDS
    assert verdict((0.001, -0.001, 0.0), margin=0.02, different=True) is Verdict.FAILS
    assert verdict((1.0, -1.0, 0.5), margin=0.02, different=True) is Verdict.INCONCLUSIVE


def test_survivors_decide_nothing() -> None:
    rows = [
        {"seed": seed, "decay.strength": decay, "val/loss": 1.5 - decay} for seed in range(3) for decay in (0.0, 0.1)
    ]
    found = Measured((0, 1, 2), (0.1, 0.11, 0.09), tuple(f"r{index}" for index in range(6)), "made up")
    claim = Claim("made_up", "It is so.", "1", "made_up", lambda tables: found, NATS)
    assert judged(claim, table(rows)).verdict is Verdict.HOLDS
    rows[3]["status"] = "diverged"
    assert "1 of the 6 runs it rests on diverged" in judged(claim, table(rows)).power
    del rows[5]
    rows[3]["status"] = "completed"
    assert "not every seed has every cell" in judged(claim, table(rows)).power


def test_tables_that_lack_a_column_or_a_cell_stop_no_other_claim() -> None:
    """As while a sweep is running: every coordinate and metric taken away in turn, and every group of cells."""
    for claim in CLAIMS:
        for scale in scales_of(ROOT / "results", claim.experiment):
            read = tables_of(ROOT / "results", claim.experiment, scale)
            fixed = {"run_id", "seed", "branch", "status", "data", "start_step"}
            used = [name for name in read.summary if name not in fixed and USED.search(name)]
            kept = ["run_id", "seed", "branch", "step", "epoch", "samples", "lr", *used]
            # Without the hundreds of columns that no claim reads, which would only take time.
            curves = read.curves[[name for name in kept if name in read.curves]]
            whole = Tables(claim.experiment, scale, read.summary[[*(fixed & set(read.summary)), *used]], curves)
            for name in used:
                curves = whole.curves.drop(columns=[name], errors="ignore")
                judged(claim, Tables(claim.experiment, scale, whole.summary.drop(columns=[name]), curves))
            for name in [name for name in used if "/" not in name]:
                for value in whole.summary[name].dropna().unique():
                    rows = whole.summary[whole.summary[name] != value]
                    if len(rows):
                        result = judged(claim, Tables(claim.experiment, scale, rows, whole.curves))
                        assert result.verdict in set(Verdict)


def test_a_seed_without_a_value_leaves_a_claim_undecided() -> None:
    result = judged(claim_of((1.0, 1.1, math.nan)), table([{"seed": 0}]))
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "1 seed(s) without a value" in result.power


def test_seeds_needed_give_the_power_they_promise() -> None:
    effects = [0.8, -0.4, 0.6]
    found = interval(effects)
    count = seeds_needed(claim_of(tuple(effects)), found)
    assert count is not None and count > 3
    generator = np.random.default_rng(0)
    samples = generator.normal(found.mean, found.deviation, (4000, count))
    half = stats.t.ppf(0.975, count - 1) * samples.std(axis=1, ddof=1) / math.sqrt(count)
    resolved = float(np.mean(samples.mean(axis=1) > half))
    assert 0.72 < resolved < 0.88
    assert seeds_needed(claim_of((0.0, 1e-9, -1e-9)), interval([1e-3, 1.0, -1.0])) is None


def grid(**metrics: object) -> list[dict[str, object]]:
    """Runs over η, λ and three seeds; each metric is a function of (η, λ, seed)."""
    return [
        {
            "seed": seed,
            "optimizer.lr": rate,
            "decay.strength": decay,
            **{name.replace("__", "/"): value(rate, decay, seed) for name, value in metrics.items()},  # type: ignore[operator]
        }
        for rate in (0.1, 0.2, 0.4)
        for decay in (0.0, 0.01, 0.02, 0.04)
        for seed in range(3)
    ]


def test_error_that_depends_on_the_product_alone_is_found_constant_along_it() -> None:
    def by_product(rate: float, decay: float, seed: int) -> float:
        return abs(math.log(rate * decay + 1e-9) - math.log(0.004)) * 0.05 + 0.001 * seed

    found = vision.constant_along_product(table(grid(ema__test__error=by_product)))
    assert all(effect > 0.02 for effect in found.effects)
    by_rate = vision.constant_along_product(table(grid(ema__test__error=lambda rate, decay, seed: rate)))
    assert all(effect < 0 for effect in by_rate.effects)


def test_jacobian_and_noise_are_rank_correlations() -> None:
    tables = table(
        grid(train__stabilisation=lambda rate, decay, seed: rate, noise__scale=lambda rate, decay, seed: rate**2)
    )
    runs = tables.summary
    runs["ema/jacobian/mean_square"] = 1 / (1 + runs["optimizer.lr"] * runs["decay.strength"])
    assert vision.jacobian_falls(tables).effects == pytest.approx((1.0, 1.0, 1.0))
    assert vision.noise_follows_the_loss(tables).effects == pytest.approx((1.0, 1.0, 1.0))


def test_decay_wins_only_against_the_best_of_the_others() -> None:
    def error(rate: float, decay: float, seed: int) -> float:
        best = 0.2 if (rate, decay) == (0.4, 0.02) else 0.3
        return best + 0.01 * seed + (0.05 if decay == 0 else 0.0)

    found = vision.decay_wins(table(grid(test__error=error)))
    assert found.effects == pytest.approx((0.1, 0.1, 0.1))  # 0.1 with decay is the best of the others: the smallest η
    assert len(found.runs) == 6


def test_same_norm_different_error_needs_two_norms_that_are_the_same() -> None:
    def error(rate: float, decay: float, seed: int) -> float:
        return 0.1 * rate

    same = table(grid(test__error=error, weights__norm=lambda rate, decay, seed: 20.0 + decay))
    assert vision.norm_is_not_all(same).unless == ""
    assert vision.norm_is_not_all(same).effects == pytest.approx((-0.01,) * 3)  # smaller η minus larger, same λ
    apart = table(grid(test__error=error, weights__norm=lambda rate, decay, seed: 10 * rate**2 * (1 + decay)))
    assert "factor" in vision.norm_is_not_all(apart).unless


def test_a_u_shape_needs_both_ends_to_be_worse() -> None:
    def shaped(error: dict[float, float]) -> Tables:
        return table(
            [{"seed": seed, "optimizer.lr": rate, "test/error": error[rate]} for rate in error for seed in range(3)]
        )

    assert vision.best_rate_inside(shaped({0.1: 0.3, 0.2: 0.2, 0.4: 0.5})).effects == pytest.approx([0.1] * 3)
    assert vision.best_rate_inside(shaped({0.1: 0.1, 0.2: 0.2, 0.4: 0.5})).effects == pytest.approx([-0.1] * 3)


def losses(runs: dict[str, dict[str, object]], levels: dict[str, float]) -> Tables:
    """Language-model runs of three seeds with constant batch losses, one level per kind of run."""
    rows, curves = [], []
    for name, coordinates in runs.items():
        for seed in range(3):
            run_id = f"{name}-{seed}"
            rows.append({"run_id": run_id, "seed": seed, **coordinates, "val/loss": levels[name] + 0.1 * seed})
            curves += [
                {"run_id": run_id, "seed": seed, "step": step, "batch/loss": levels[name] + 0.1 * seed + 0.001 * step}
                for step in range(0, 100, 10)
            ]
    return table(rows, curves)


def test_matching_is_the_share_of_the_distance_that_it_closes() -> None:
    matched = {
        "schedule": "matched_effective_lr", "schedule.norm": "whole", "schedule.power": 1.0,
        "schedule.reference_strength": 0.1, "decay.strength": 0.0,
    }  # fmt: skip
    runs = {"without": {"decay.strength": 0.0}, "with": {"decay.strength": 0.1}, "matched": matched}
    measure = language.matching({}, {"schedule__norm": "whole", "schedule__power": 1.0})
    close = measure(losses(runs, {"without": 1.5, "with": 1.7, "matched": 1.65}))
    assert close.effects == pytest.approx((0.75, 0.75, 0.75))
    worse = measure(losses(runs, {"without": 1.5, "with": 1.7, "matched": 1.2}))
    assert worse.effects == pytest.approx((-1.5, -1.5, -1.5))
    assert not measure(losses({key: runs[key] for key in ("without", "with")}, {"without": 1.5, "with": 1.7})).effects


def test_a_diverged_run_is_not_averaged_away() -> None:
    tables = losses(
        {"without": {"decay.strength": 0.0}, "with": {"decay.strength": 0.1}}, {"without": 1.5, "with": 1.7}
    )
    tables.summary.loc[tables.summary["run_id"] == "without-1", "status"] = "diverged"
    found = language.higher_at_the_end(tables)
    assert math.isnan(found.effects[1]) and found.effects[0] == pytest.approx(0.2)


def test_divergence_is_counted_where_only_the_run_without_decay_diverges() -> None:
    rows = [
        {
            "seed": seed, "optimizer.lr": rate, "decay.strength": decay, "precision": "bfloat16_autocast",
            "status": "diverged" if rate == 0.04 and (decay == 0 or seed == 2) else "completed",
        }
        for seed in range(3) for rate in (0.01, 0.04) for decay in (0.0, 0.1)
    ]  # fmt: skip
    assert language.only_without_decay_diverges(table(rows)).effects == (1.0, 1.0, 0.0)


def test_claims_name_experiments_that_exist_and_are_complete() -> None:
    assert len({claim.key for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        assert (ROOT / "configs" / "experiment" / f"{claim.experiment}.yaml").is_file(), claim.key
        assert claim.statement.endswith(".")


def test_claims_rest_on_runs_that_are_in_the_tables(tmp_path: Path) -> None:
    results = judged_claims(ROOT / "results")
    assert len(results) == len(CLAIMS) * len(SCALES)
    write_claims(results, tmp_path / "claims.csv")
    with (tmp_path / "claims.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        if row["verdict"] in ("holds", "fails"):
            summary = ROOT / "results" / "tables" / f"{row['experiment']}-{row['scale']}.summary.csv"
            known = set(pd.read_csv(summary, dtype={"run_id": str})["run_id"])
            assert set(row["runs"].split()) <= known and row["runs"]


def test_the_markdown_names_every_claim_and_says_what_was_not_run() -> None:
    results = judged_claims(ROOT / "results")
    text = claims_markdown(results)
    assert "not run" in text or all(result.verdict is not Verdict.NOT_RUN for result in results)
    if any(result.verdict is not Verdict.NOT_RUN for result in results):
        assert all(claim.statement in text for claim in CLAIMS)
