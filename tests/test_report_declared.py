"""No claim is decided on a sweep that was not finished: its largest η or λ would be another one without a trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from weight_decay.report.claims.declared import cells_missing
from weight_decay.report.claims.measures import on_all_cells
from weight_decay.report.claims.pairs import Measured
from weight_decay.report.claims.verdict import POINTS, Claim, Result, Verdict, judged
from weight_decay.report.tables.read import DECAY, LEARNING_RATE, Tables, tables_of

RESULTS = Path(__file__).resolve().parents[1] / "results"


def result_of(experiment: str, keep: Callable[[pd.DataFrame], pd.Series]) -> tuple[Result, Result]:
    """A claim that is decided, on some of the runs of the committed tables: as measured, and as it is told."""
    whole = tables_of(RESULTS, experiment, "micro")
    runs = set(whole.summary[keep(whole.summary)]["run_id"])
    frames = [frame[frame["run_id"].isin(runs)] for frame in (whole.summary, whole.curves)]
    tables = Tables(experiment, "micro", *frames)
    claim = Claim("one", "One.", "1", experiment, lambda _: Measured((0, 1, 2), (1.0, 1.01, 0.99), (), "words"), POINTS)
    result = judged(claim, tables)
    return result, on_all_cells(result, tables)


def everything(rows: pd.DataFrame) -> pd.Series:
    return rows["seed"] >= 0


def test_a_whole_sweep_is_judged_as_before() -> None:
    before, after = result_of("fig15_sphere", everything)
    assert after == before and before.verdict is Verdict.HOLDS


@pytest.mark.parametrize(
    ("experiment", "keep"),
    [
        # Stopped before the largest η: the best one is then at the end of the list, and the claim reads "fails".
        ("fig15_sphere", lambda rows: rows[LEARNING_RATE] < rows[LEARNING_RATE].max()),
        # Without the λ that stands for the paper's, the claims would speak of another.
        ("fig06_language_model", lambda rows: rows[DECAY] != 0.05),
        ("fig15_sphere", lambda rows: (rows[LEARNING_RATE] != 0.001) | (rows["seed"] != 2)),
    ],
    ids=["largest_rate", "standard_decay", "one_seed"],
)
def test_a_sweep_that_was_stopped_decides_nothing(experiment: str, keep: Callable[[pd.DataFrame], pd.Series]) -> None:
    before, after = result_of(experiment, keep)
    assert before.verdict is Verdict.HOLDS and after.verdict is Verdict.INCONCLUSIVE
    assert "cells were not run at every seed" in after.reason


def test_experiments_of_ones_own_declare_nothing() -> None:
    tables = tables_of(RESULTS, "fig15_sphere", "micro")
    assert cells_missing(Tables("mine", "micro", tables.summary, tables.curves), [0, 1]) == ""
    assert cells_missing(tables, [0, 1, 2]) == "" and cells_missing(tables, [10**6]) != ""
