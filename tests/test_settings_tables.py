"""The tables of docs/over-training.md and docs/under-training.md: every setting at scale paper, none forgotten."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from declared import plan
from parity import LANGUAGE, VISION
from settings_tables import Row, rows, settings

DOCS = Path(__file__).resolve().parents[1] / "docs"
DOCUMENTS = {"over-training.md": tuple(VISION), "under-training.md": tuple(LANGUAGE)}


def row_of(table: list[Row], experiment: str, setting: str) -> Row:
    """The row of an experiment's own, or that of all."""
    alike = [row for row in table if row.setting == setting]
    own = [row for row in alike if experiment in row.experiments]
    found = own or [row for row in alike if not row.experiments]
    assert len(found) == 1, f"{experiment}: {len(found)} rows for {setting}"
    return found[0]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_setting_at_scale_paper_has_its_row(document: str) -> None:
    table, needed = rows(DOCS / document), set()
    for experiment in DOCUMENTS[document]:
        for setting, values in settings(experiment).items():
            row = row_of(table, experiment, setting)
            assert row.ours == values, f"{experiment}: {setting}"
            needed.add(row)
    assert [row for row in table if row not in needed] == []
    named = {name for row in table for name in row.experiments}
    assert named <= set(DOCUMENTS[document])


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_row_that_differs_says_why(document: str) -> None:
    for row in rows(DOCS / document):
        assert row.paper and (row.paper == row.ours or row.remark), row


@pytest.mark.parametrize("experiment", [*VISION, *LANGUAGE])
def test_learning_rates_and_strengths_are_crossed_for_three_seeds(experiment: str) -> None:
    """So that the lists in the tables say which cells there are."""
    cells = {
        (cell.config.optimizer.lr, cell.config.decay.strength, cell.config.seed)
        for cell in plan(experiment, "paper").cells
    }
    assert cells == set(itertools.product(*(set(values) for values in zip(*cells, strict=True))))
    assert {seed for _, _, seed in cells} == {0, 1, 2}
