"""Claims: interval, verdict, power, and that each measure finds the effect that was put into a table."""

from __future__ import annotations

import csv
import fnmatch
import math
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from weight_decay.errors import UserError
from weight_decay.report.claims import language, measures, slopes, vision
from weight_decay.report.claims.measures import CLAIMS, MEASURES, SCALES, judged_claims
from weight_decay.report.claims.pairs import Measured, difference
from weight_decay.report.claims.protocol import FILES, protocol
from weight_decay.report.claims.table import claims_markdown, claims_text, write_claims
from weight_decay.report.claims.verdict import NATS, Claim, Result, Verdict, judged, with_false_discoveries
from weight_decay.report.tables.read import Tables, scales_of, tables_of

ROOT = Path(__file__).resolve().parents[1]


USED = re.compile(
    r"^(test/error|ema/test/error|ema/jacobian/mean_square|jacobian/mean_square|train/loss|val/loss|ema/val/loss"
    r"|unseen/loss|batch/loss|weights/norm|noise/scale|train/stabilisation|ensemble/test/error"
    r"|stability/max_attention_logit|replay/[a-z]+/kept_.*|similarity/gauss_newton_noise|spectrum/.*_000|[a-z]+\.[a-z_]+"
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
    binary = options.get("test") == "share"
    found = Measured(tuple(range(len(effects))), effects, ("r0",), "made up", binary=binary)
    return Claim("made_up", "It is so.", "1", "made_up", lambda tables: found, NATS, **options)  # type: ignore[arg-type]


def verdict(effects: tuple[float, ...], **options: object) -> Verdict:
    return judged(claim_of(effects, **options), table([{"seed": 0}])).verdict


UP = (1.0, 1.1, 0.9, 1.05, 0.95, 1.0, 1.1, 0.9, 1.05, 0.95)
DOWN = tuple(-value for value in UP)
MIXED = (1.0, -1.0, 0.5, -0.4, 0.9, -0.8, 0.1, 0.3, -0.6, 0.2)
TINY = tuple(0.001 * value for value in MIXED)


def test_verdicts_of_a_claim_with_a_direction() -> None:
    assert verdict(UP) is Verdict.HOLDS
    assert verdict(DOWN) is Verdict.FAILS
    assert verdict(MIXED) is Verdict.INCONCLUSIVE
    assert verdict(UP, threshold=2.0) is Verdict.FAILS
    # What is too small to be worth having is none, although its sign may be certain.
    assert verdict(TINY, smallest=0.01) is Verdict.NO_EFFECT
    assert verdict(tuple(0.001 * value for value in UP), smallest=0.01) is Verdict.NO_EFFECT
    assert verdict(UP, smallest=0.01) is Verdict.HOLDS


def test_equality_needs_the_mean_within_the_margin() -> None:
    assert verdict(TINY, test="equivalent", margin=0.02) is Verdict.HOLDS
    assert verdict(UP, test="equivalent", margin=0.02) is Verdict.FAILS
    assert verdict(DOWN, test="equivalent", margin=0.02) is Verdict.FAILS
    assert verdict(MIXED, test="equivalent", margin=0.02) is Verdict.INCONCLUSIVE


def test_runs_of_one_seed_on_other_data_are_no_pair() -> None:
    rows = {"run_id": ["a", "b"], "seed": [0, 1], "status": "completed", "val/loss": [2.0, 2.5]}
    one, other = (pd.DataFrame({**rows, "data_fingerprint": found}) for found in (["x", "y"], ["x", "z"]))
    assert difference(one, one, "val/loss", str).effects == (0.0, 0.0)
    assert difference(one, other, "val/loss", str).unless.startswith("runs of one seed that it compares")
    assert difference(one, other.drop(columns="data_fingerprint"), "val/loss", str).effects == (0.0, 0.0)


def test_a_difference_of_either_sign_is_a_difference() -> None:
    assert verdict(UP, test="different", smallest=0.02) is Verdict.HOLDS
    assert verdict(DOWN, test="different", smallest=0.02) is Verdict.HOLDS
    assert verdict(TINY, test="different", smallest=0.02) is Verdict.FAILS
    assert verdict(MIXED, test="different", smallest=0.02) is Verdict.INCONCLUSIVE


def test_three_of_three_outcomes_do_not_show_that_most_are_so() -> None:
    assert verdict((1.0,) * 3, test="share") is Verdict.INCONCLUSIVE
    assert verdict((1.0,) * 10, test="share") is Verdict.HOLDS
    assert verdict((0.0,) * 10, test="share") is Verdict.FAILS
    assert verdict((1.0, 0.0) * 5, test="share") is Verdict.INCONCLUSIVE


def test_claims_are_judged_at_the_planned_stages_and_on_the_seeds_of_the_stage() -> None:
    first, last = protocol().stages
    assert (first.seeds, last.seeds) == (3, 10) and first.level + last.level <= 0.05 + 1e-12
    assert verdict(UP[:2]) is Verdict.INCONCLUSIVE
    assert verdict((1.0, 1.3, 0.8)) is Verdict.INCONCLUSIVE  # p = .02 would do if there were no second look
    assert verdict((1.0, 1.01, 0.99)) is Verdict.HOLDS
    # Seeds beyond a stage wait for the next: nobody can stop when the numbers please.
    seven = judged(claim_of((1.0, 1.01, 0.99, *DOWN[:4])), table([{"seed": 0}]))
    assert seven.verdict is Verdict.HOLDS and seven.seeds == 3
    assert "3 of 10 seeds" in judged(claim_of((1.0, 1.3, 0.8)), table([{"seed": 0}])).reason


def test_verdicts_are_corrected_for_the_number_of_claims() -> None:
    near = (1.0, 0.2, 0.6, -0.1, 0.9, 0.5, -0.2, 0.7, 0.3, -0.3)
    alone = judged(claim_of(near), table([{"seed": 0}]))
    assert 0.01 < alone.p < 0.04 and alone.verdict is Verdict.HOLDS
    among = [alone, *(judged(claim_of(MIXED), table([{"seed": 0}])) for _ in range(20))]
    named = [replace(one, claim=replace(one.claim, key=f"claim {index}")) for index, one in enumerate(among)]
    corrected = with_false_discoveries(named)[0]
    assert corrected.q > corrected.p == alone.p and corrected.verdict is Verdict.INCONCLUSIVE


def test_a_verdict_that_hangs_on_one_seed_says_so() -> None:
    firm = judged(claim_of(UP), table([{"seed": 0}]))
    assert firm.sensitivity == 0 and firm.improvement == 1
    barely = judged(claim_of((0.9, 1.3, 0.2, 0.1, 1.2, 0.0, 0.8, 0.1, -0.4, 0.3)), table([{"seed": 0}]))
    assert barely.verdict is Verdict.HOLDS and barely.sensitivity == 6
    assert barely.improvement == pytest.approx(0.85)  # eight above 0, and the tie counts half


def test_survivors_decide_nothing() -> None:
    rows = [
        {"seed": seed, "decay.strength": decay, "val/loss": 1.5 - decay} for seed in range(3) for decay in (0.0, 0.1)
    ]
    found = Measured((0, 1, 2), (0.1, 0.101, 0.099), tuple(f"r{index}" for index in range(6)), "made up")
    claim = Claim("made_up", "It is so.", "1", "made_up", lambda tables: found, NATS)
    assert judged(claim, table(rows)).verdict is Verdict.HOLDS
    rows[3]["status"] = "diverged"
    assert "1 of the 6 runs it rests on diverged" in judged(claim, table(rows)).reason
    del rows[5]
    rows[3]["status"] = "completed"
    assert "not every seed has every cell" in judged(claim, table(rows)).reason


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
            few = [rows[rows["seed"] < 3] for rows in (read.summary[[*(fixed & set(read.summary)), *used]], curves)]
            whole = Tables(claim.experiment, scale, *few)
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
    assert "1 seed(s) without a value" in result.reason


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

    found = slopes.constant_along_product(table(grid(ema__test__error=by_product)))
    assert all(effect > 0.02 for effect in found.effects)
    by_rate = slopes.constant_along_product(table(grid(ema__test__error=lambda rate, decay, seed: rate)))
    assert all(effect < 0 for effect in by_rate.effects)


def test_slopes_are_those_that_were_put_in() -> None:
    tables = table(
        grid(
            train__stabilisation=lambda rate, decay, seed: rate,
            noise__scale=lambda rate, decay, seed: rate**2,
            ema__test__error=lambda rate, decay, seed: 0.2 + 0.03 * math.log(rate * decay + 1e-9),
        )
    )
    runs = tables.summary
    runs["ema/jacobian/mean_square"] = (runs["optimizer.lr"] * runs["decay.strength"] + 1e-9) ** -0.7
    assert slopes.jacobian_falls(tables).effects == pytest.approx((0.7,) * 3, rel=1e-4)
    assert slopes.noise_follows_the_loss(tables).effects == pytest.approx((2.0,) * 3)
    # What depends on the product alone has no slope within it; what depends on η too has that one.
    assert slopes.jacobian_at_fixed_product(tables).effects == pytest.approx((0.0,) * 3, abs=1e-5)
    assert slopes.error_at_fixed_product(tables).effects == pytest.approx((0.0,) * 3, abs=1e-5)
    runs["ema/jacobian/mean_square"] *= runs["optimizer.lr"] ** -0.4
    assert slopes.jacobian_at_fixed_product(tables).effects == pytest.approx((-0.4,) * 3, abs=1e-4)


def test_decay_wins_only_against_the_best_of_the_others() -> None:
    def error(rate: float, decay: float, seed: int) -> float:
        best = 0.2 if (rate, decay) == (0.4, 0.02) else 0.3
        return best + 0.01 * seed + (0.05 if decay == 0 else 0.0)

    found = vision.decay_wins(table(grid(test__error=error)))
    assert found.effects == pytest.approx((0.1, 0.1, 0.1))  # 0.1 with decay is the best of the others: the smallest η
    assert len(found.runs) == 6


def test_cells_are_chosen_on_the_other_seeds() -> None:
    """Pure noise: the best cell on the same runs would look better than it is, on other runs it does not."""
    random = np.random.default_rng(0)
    gains: list[float] = []
    for _ in range(60):
        noise = {(rate, decay, seed): random.normal(0.3, 0.01) for rate in (0.1, 0.2, 0.4)
                 for decay in (0.0, 0.01, 0.02, 0.04) for seed in range(3)}  # fmt: skip
        gains += vision.decay_wins(table(grid(test__error=lambda *cell, noise=noise: noise[cell]))).effects
    assert abs(np.mean(gains)) < 3 * 0.01 * math.sqrt(2 / 180)


def test_a_smaller_norm_with_a_larger_error_is_found() -> None:
    def error(rate: float, decay: float, seed: int) -> float:
        return 0.1 / rate + decay

    norms = grid(test__error=error, weights__norm=lambda rate, decay, seed: 10 * rate)
    assert vision.norm_is_not_all(table(norms)).effects == pytest.approx((0.1 / 0.1 - 0.1 / 0.4,) * 3)
    same = grid(test__error=error, weights__norm=error)
    assert all(effect < 0 for effect in vision.norm_is_not_all(table(same)).effects)


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


def test_matching_is_a_signed_gap_at_the_end() -> None:
    matched = {
        "schedule": "matched_effective_lr", "schedule.norm": "whole", "schedule.power": 1.0,
        "schedule.reference_strength": 0.1, "decay.strength": 0.0,
    }  # fmt: skip
    runs = {"without": {"decay.strength": 0.0}, "with": {"decay.strength": 0.1}, "matched": matched}
    measure = language.matching({}, {"schedule__norm": "whole", "schedule__power": 1.0})
    found = measure(losses(runs, {"without": 1.5, "with": 1.7, "matched": 1.65}))
    assert found.effects == pytest.approx((-0.05,) * 3)
    assert not measure(losses({key: runs[key] for key in ("without", "with")}, {"without": 1.5, "with": 1.7})).effects


def test_a_diverged_run_is_not_averaged_away() -> None:
    tables = losses(
        {"without": {"decay.strength": 0.0}, "with": {"decay.strength": 0.1}}, {"without": 1.5, "with": 1.7}
    )
    tables.summary.loc[tables.summary["run_id"] == "without-1", "status"] = "diverged"
    found = language.higher_at_the_end(tables)
    assert math.isnan(found.effects[1]) and found.effects[0] == pytest.approx(0.2)


def test_what_bfloat16_costs_is_compared_with_and_without_decay() -> None:
    runs = {
        f"{precision}-{decay}": {"optimizer.lr": 0.04, "decay.strength": decay, "precision": precision}
        for precision in ("bfloat16_autocast", "float32") for decay in (0.0, 0.05)
    }  # fmt: skip
    levels = {"bfloat16_autocast-0.0": 1.9, "float32-0.0": 1.6, "bfloat16_autocast-0.05": 1.65, "float32-0.05": 1.6}
    assert language.bfloat16_costs_more(losses(runs, levels)).effects == pytest.approx((0.25,) * 3)


def test_the_share_of_decay_that_a_replay_keeps() -> None:
    rows = [{"seed": seed, "replay/foreach/kept_0.05": 0.0, "replay/fused/kept_0.05": 0.97} for seed in range(3)]
    assert language.decay_is_lost("foreach")(table(rows)).effects == pytest.approx((1.0,) * 3)
    assert language.decay_is_lost("fused", kept=True)(table(rows)).effects == pytest.approx((0.97,) * 3)
    assert not language.decay_is_lost("kahan")(table(rows)).effects


def commits() -> set[tuple[str, str]]:
    """The experiments of all committed tables, each with every commit that a row of it was made by."""
    found = set()
    for path in sorted((ROOT / "results" / "tables").glob("*.summary.csv")):
        with path.open(encoding="utf-8") as stream:
            found |= {(row["experiment"], row["git_commit"]) for row in csv.DictReader(stream)}
    return found


def test_runs_that_decide_are_younger_than_the_protocol() -> None:
    """A row of a table was made by a commit that has the protocol, with the same claims in it, or is named a pilot."""
    git = ["git", "-C", str(ROOT)]
    if subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True).returncode:
        pytest.skip("no git history here")
    for experiment, commit in commits():
        plain = commit.removesuffix("+changes")
        if protocol().is_pilot(commit):
            continue
        if subprocess.run([*git, "cat-file", "-e", f"{plain}^{{commit}}"], capture_output=True).returncode:
            continue  # made in a clone whose commits are not here
        files = [
            subprocess.run([*git, "show", f"{plain}:configs/claims/{name}.yaml"], capture_output=True) for name in FILES
        ]
        assert all(file.returncode == 0 for file in files), f"{commit} has no protocol, and is no pilot"
        then = {key: decides(entry) for file in files for key, entry in yaml.safe_load(file.stdout).items()}
        for key, entry in protocol().entries.items():
            if entry["experiment"] == experiment and key in then:
                assert then[key] == decides(entry), f"{commit} was run under another protocol of {key}"


def decides(entry: dict[str, object]) -> dict[str, object]:
    """What of an entry decides; statement, the paper's number and what is read may be put better later."""
    return {key: value for key, value in entry.items() if key not in ("statement", "paper", "figure", "reads")}


def test_what_a_claim_is_said_to_read_is_in_its_tables() -> None:
    for key, entry in protocol().entries.items():
        tables = tables_of(ROOT / "results", entry["experiment"], "micro")
        there = [*tables.summary, *tables.curves]
        named = re.findall(r"`([^`]+)`", entry["reads"])
        assert named or entry["reads"].startswith("as "), key
        for name in named:
            assert fnmatch.filter(there, name), f"{key}: no table has {name}"


def test_an_entry_without_a_measure_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(MEASURES, "decoupling")
    with pytest.raises(UserError, match=r"decoupling has no measure in .*measures\.py; write it there"):
        measures._claims()


def test_every_claim_has_a_protocol_and_every_entry_a_measure() -> None:
    assert set(MEASURES) == set(protocol().entries) == {claim.key for claim in CLAIMS}
    for claim in CLAIMS:
        assert claim.endpoint and (claim.smallest > 0 or claim.margin > 0 or claim.test == "share"), claim.key


def test_claims_name_experiments_that_exist_and_are_complete() -> None:
    assert len({claim.key for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        assert (ROOT / "configs" / "experiment" / claim.experiment / "micro.yaml").is_file(), claim.key
        assert claim.statement.endswith(".")


@pytest.fixture(scope="module")
def results() -> list[Result]:
    return judged_claims(ROOT / "results")


def test_claims_rest_on_runs_that_are_in_the_tables(results: list[Result], tmp_path: Path) -> None:
    assert len(results) == len(CLAIMS) * len(SCALES)
    write_claims(results, tmp_path / "claims.csv")
    with (tmp_path / "claims.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        if row["verdict"] in ("holds", "fails"):
            summary = ROOT / "results" / "tables" / f"{row['experiment']}-{row['scale']}.summary.csv"
            known = set(pd.read_csv(summary, dtype={"run_id": str})["run_id"])
            assert set(row["runs"].split()) <= known and row["runs"]


def test_a_reader_recomputes_the_verdicts_from_the_csv(results: list[Result], tmp_path: Path) -> None:
    """With scipy and the committed files alone, nothing of ours."""
    from scipy import stats

    write_claims(results, tmp_path / "claims.csv")
    with (tmp_path / "claims.csv").open(encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["p"] and row["test"] == "above"]
    assert len(rows) >= 10
    for row in rows:
        effects = [float(value) for value in row["effects"].split()]
        if np.ptp(effects) == 0:
            continue
        test = stats.ttest_1samp(effects, float(row["threshold"]))
        low, high = test.confidence_interval(0.95)
        assert float(row["p"]) == pytest.approx(test.pvalue, rel=0.01)
        assert (float(row["low"]), float(row["high"])) == pytest.approx((low, high), rel=1e-3, abs=1e-4)
        if row["verdict"] in ("holds", "fails"):
            assert float(row["q"]) <= float(row["level"])


def test_the_table_names_what_was_run_and_fits_a_terminal(results: list[Result]) -> None:
    ran = [result for result in results if result.verdict is not Verdict.NOT_RUN]
    markdown, text = claims_markdown(results), claims_text(results)
    assert max(map(len, text.splitlines())) <= 80
    assert "would need" not in text
    flat = " ".join(text.split())
    for result in ran:
        assert result.claim.statement in markdown and result.claim.statement in flat
        assert result.claim.criterion in flat
    header, *body = [line for line in markdown.splitlines() if line.startswith("| ")]
    for column in range(1, header.count("|")):
        assert any(row.split("|")[column].strip() not in ("", "–") for row in body)
