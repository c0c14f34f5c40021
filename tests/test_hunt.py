"""The short form of `make hunt`, and that the hunt finds what there is to find."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from hunt import folders, preparation, words
from hunt.laboratory import laboratory
from hunt.ledger import Ledger, in_a_child
from weight_decay.errors import UserError

SHORT = (
    (folders.after, 40), (folders.before, 6), (folders.during, 4), (preparation.sources, 56),
    (words.command_lines, 60),
)  # fmt: skip


@pytest.mark.parametrize(("area", "cases"), SHORT, ids=lambda value: getattr(value, "__name__", None))
def test_a_short_hunt_finds_nothing(area, cases: int, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(Path.cwd())
    ledger = Ledger()
    with laboratory() as place:
        area(place, ledger, cases, 2)
    assert ledger.tried == cases
    assert not ledger.failures, ledger.table()


def test_the_hunt_sees_a_number_that_changes_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the judge asleep, faults in records must come out as silent, or the table's zero would mean nothing."""
    monkeypatch.setattr("weight_decay.runs.judge.digest", lambda content: _whatever)
    monkeypatch.setattr("weight_decay.runs.read.is_sealed", lambda summary: True)
    monkeypatch.setattr("weight_decay.runs.judge.is_sealed", lambda summary: True)
    monkeypatch.setattr("weight_decay.runs.judge.read_record", lambda path, sealed: path.read_bytes())
    ledger = Ledger()
    with laboratory() as place:
        folders.after(place, ledger, 60, 3)
    assert ledger.counts["folders, after the run"]["silent"] > 0


class _Whatever(dict[str, int]):
    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]


_whatever = _Whatever(bytes=0)


def test_tracebacks_hangs_crashes_and_sentences_are_told_apart() -> None:
    def refused() -> str:
        raise UserError("a sentence")

    def crashes() -> str:
        raise KeyError("x")

    def hangs() -> str:
        time.sleep(60)
        return "survived"

    def dies() -> str:
        os._exit(9)

    ledger = Ledger()
    cases = [("refused", refused), ("crashes", crashes), ("hangs", hangs), ("dies", dies), ("fine", lambda: "survived")]
    in_a_child(cases, ledger, "all", seconds=0.2)
    assert ledger.counts["all"] == {"refused": 1, "traceback": 1, "hang": 2, "survived": 1}
    assert ledger.failures == 3
    assert "KeyError" in ledger.table()
