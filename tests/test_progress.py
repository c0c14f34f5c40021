"""What is shown of running cells: whole lines in a log, one display of all workers in a terminal of 80 columns."""

from __future__ import annotations

import os
import pty
import select
import sys
import time

import pytest

from weight_decay import cli
from weight_decay.experiments.demo import AHEAD, settings_of
from weight_decay.runs import progress
from weight_decay.runs.progress import Display, Progress, Slot, clock, line_of, shorter

LONG = "lr=0.3 strength=0.015 schedule.norm=per_matrix duration=4000 steps seed=0"


def test_a_title_is_cut_in_its_middle() -> None:
    cut = shorter(LONG, 26)
    assert len(cut) == 26 and cut.startswith("lr=0.3") and cut.endswith("seed=0") and "…" in cut
    assert shorter("seed=0", 26) == "seed=0"


def test_a_run_in_one_line() -> None:
    assert line_of("seed=0", 240, 960, 21.0, "loss 0.4") == "seed=0: step 240 of 960, 0:21, 1:03 left, loss 0.4"
    assert line_of("seed=0", 960, 960, 84.2, "") == "seed=0: step 960 of 960, 1:24"
    assert clock(3723.0) == "1:02:03"


def test_a_log_gets_whole_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    bar = Progress(960, LONG, True)
    bar.show(480, {"batch/loss": 0.25, "test/error": 0.5, "time/step": 0.1})
    bar.show(960, {"batch/loss": 0.125})
    monkeypatch.setattr(progress, "EVERY", 30.0)
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [LONG] * 3
    assert "step 480 of 960" in lines[0] and lines[0].endswith("loss 0.25, test error 0.5")
    assert "\r" not in "".join(lines) and "step 960 of 960" in lines[2]


def test_nothing_is_shown_where_nothing_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Progress(960, LONG, False)
    bar.show(480, {"batch/loss": 0.25})
    bar.close()
    with Display([Slot()], 4, False) as display:
        display.draw(2)
    assert capsys.readouterr().err == ""


def test_a_worker_fills_its_slot_and_sends_its_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    slot, sent = Slot(), list[str]()
    monkeypatch.setattr(progress._Place, "slot", None)
    monkeypatch.setattr(progress._Place, "send", None)
    progress.draw_elsewhere(slot, sent.append)
    bar = Progress(960, LONG, True)
    bar.show(480, {"batch/loss": 0.25, "val/loss": 1.5})
    progress.tell("seed=0: diverged at step 481")
    assert (slot.title, slot.step, slot.total, slot.told) == (LONG, 480, 960, "loss 0.25, val loss 1.5")
    assert sent == ["seed=0: diverged at step 481"]
    bar.close()
    assert slot.title == ""


def test_the_workers_share_one_log(capsys: pytest.CaptureFixture[str]) -> None:
    slots = [_slot(0), _slot(1)]
    with Display(slots, 4, True) as display:
        display.draw(0)
        display.tell("seed=0: diverged at step 481")
        display.draw(1)
        display.draw(1)  # nothing new, and 30 seconds are not over
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "seed=0: diverged at step 481" and len(lines) == 4
    assert lines[1].startswith("seed=0: step 480 of 960") and lines[2].startswith("seed=1: step 480 of 960")
    assert lines[3] == "1 of 4 cell(s) done"


def test_at_80_columns_every_line_has_its_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = pty.openpty()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", os.fdopen(writer, "w"))
    with Display([_slot(0, LONG), _slot(1, LONG)], 4, True) as display:
        display.draw(1)
        display._live.refresh()
    sys.stderr.flush()
    shown = b""
    while select.select([reader], [], [], 0.2)[0]:  # one read gives 4 KiB at most, and a slow machine draws more often
        shown += os.read(reader, 65536)
    text = shown.decode().replace("\r", "\n")
    lines = [line for line in text.splitlines() if "lr=0.3" in line or "cells" in line]
    plain = [_plain(line) for line in lines][-3:]
    assert all(len(line) <= 80 and line.count("━") >= 10 for line in plain), plain
    assert "50%" in plain[0] and "left" in plain[0] and "val loss 1.5" in plain[0] and "1 of 4" in plain[2]


def _slot(seed: int, title: str = "") -> Slot:
    slot = Slot()
    slot.title, slot.told = title or f"seed={seed}", "loss 0.25, val loss 1.5"
    slot.step, slot.total, slot.began = 480, 960, time.time() - 20
    return slot


def _plain(line: str) -> str:
    import re

    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line)


def test_the_demo_says_first_what_will_happen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # what is said comes before anything that takes time
    for name in [name for name in sys.modules if name.startswith("weight_decay.report.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SystemExit) as left:
        cli.main(["demo", "results=somewhere"])
    told = capsys.readouterr()
    assert left.value.code == 2 and "matplotlib is not installed" in told.err
    assert told.out == AHEAD.format(results="somewhere") + "\n" and "about 4 minutes" in told.out
    assert settings_of(["jobs=3"]) == {"results": "results/demo", "jobs": "3"}
