from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from synthetic_runs import over_training_run, under_training_run, write_demo, write_experiment, write_run
from weight_decay.errors import UserError
from weight_decay.report.live.status import status_table
from weight_decay.runs.fingerprint import code_fingerprint


def _one_of_each(results: Path) -> list[dict]:
    cells = [
        write_run(results, under_training_run(0.0, seed=0)),
        write_run(results, under_training_run(0.0, seed=1, status="diverged")),
        write_run(results, under_training_run(0.0, seed=2, status="failed", extra={"error": "a\nout of memory"})),
        write_run(results, under_training_run(0.0, seed=3, status="interrupted", extra={"step": 1200})),
        {
            "run_id": "0" * 12,
            "folder": "absent-000000000000",
            "coordinates": {"decay.strength": 0.0, "seed": 4},
        },
        write_run(results, over_training_run(0.3, 0.015, seed=5, status="running", extra={"total_steps": 1920})),
        write_run(results, under_training_run(0.0, seed=6)),
    ]
    (results / "runs" / cells[6]["folder"] / "summary.json").write_text('{"stat')
    write_experiment(results, "all", cells, "under_training")
    return cells


def test_every_state_is_told_with_what_matters(tmp_path: Path) -> None:
    cells = _one_of_each(tmp_path)
    text = status_table(tmp_path, "all")
    lines = {line.split("seed=")[1].split()[0]: line for line in text.splitlines() if "seed=" in line}
    assert "completed" in lines["0"] and "0:00:42" in lines["0"]
    assert "diverged" in lines["1"] and "step 2000" in lines["1"]
    assert lines["2"].rstrip().endswith("out of memory") and "failed" in lines["2"]
    assert "interrupted" in lines["3"] and "step 1200" in lines["3"]
    assert "waiting" in lines["4"]
    # 960 steps took 38.4 s (25 steps/s), so the other 960 take as long.
    assert "step 960 of 1920, 25 steps/s, 0:00:38 left" in lines["5"] and "silent" not in lines["5"]
    assert "damaged" in lines["6"] and "summary.json" in lines["6"]
    assert text.splitlines()[-1].startswith("7 cells: 1 running, 1 waiting, 1 interrupted, 1 failed, 1 damaged")
    metrics = tmp_path / "runs" / cells[5]["folder"] / "metrics.jsonl"
    os.utime(metrics, (time.time() - 600, time.time() - 600))
    assert "silent for 0:10:0" in status_table(tmp_path, "all")


def test_a_line_still_in_writing_does_not_disturb(tmp_path: Path) -> None:
    cell = _one_of_each(tmp_path)[5]
    with (tmp_path / "runs" / cell["folder"] / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 1000, "time/sec')
    assert "step 960 of 1920" in status_table(tmp_path, "all")


def test_the_overview_counts_each_experiment(tmp_path: Path) -> None:
    write_demo(tmp_path)
    _one_of_each(tmp_path)
    lines = status_table(tmp_path, None).splitlines()
    states = "running waiting interrupted failed damaged stale diverged completed"
    assert lines[0].split() == f"experiment scale cells {states}".split()
    assert lines[2].split() == ["all", "micro", "7", *["1"] * 5, "·", *["1"] * 2]
    assert ["demo_over_training", "micro", "4", *["·"] * 7, "4"] in [line.split() for line in lines[3:]]


def test_a_name_shows_its_variants_with_settings_of_ones_own(tmp_path: Path) -> None:
    write_demo(tmp_path)
    path = next((tmp_path / "experiments").glob("demo_over_training-*.json"))
    record = json.loads(path.read_text())
    record["experiment"] = "demo_over_training+3f2a1c"
    (tmp_path / "experiments" / "demo_over_training+3f2a1c-micro.json").write_text(json.dumps(record))
    both = status_table(tmp_path, "demo_over_training")
    assert both.count("demo_over_training+3f2a1c: ") == 4
    assert both.count("demo_over_training: ") == 4
    assert "demo_over_training: " not in status_table(tmp_path, "demo_over_training+3f2a1c")


def test_nothing_started_and_unknown_names_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No experiment was started"):
        status_table(tmp_path, None)
    write_demo(tmp_path)
    with pytest.raises(UserError, match=r"'fig03_grid'.*demo_over_training"):
        status_table(tmp_path, "fig03_grid")


def test_a_thousand_runs_in_under_a_second(tmp_path: Path) -> None:
    cells = []
    for seed in range(1000):
        run = under_training_run(0.05, seed=seed, steps=100, status="running" if seed % 10 == 0 else "completed")
        run.rows = run.rows[:3]
        cells.append(write_run(tmp_path, run))
    write_experiment(tmp_path, "many", cells, "under_training")
    started = time.process_time()
    assert "1000 cells: 100 running, 900 completed" in status_table(tmp_path, None)
    assert time.process_time() - started < 1.0
    assert json.loads((tmp_path / "experiments" / "many-micro.json").read_text())["cells"]


def test_a_run_whose_process_is_gone_is_told_apart_from_one_at_work(tmp_path: Path) -> None:
    cell = write_run(tmp_path, over_training_run(0.3, 0.015, status="running", extra={"total_steps": 1920}))
    write_experiment(tmp_path, "one", [cell], "over_training")
    lock = tmp_path / "runs" / cell["folder"] / "run.lock"
    with lock.open("a") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        assert "1 cells: 1 running" in status_table(tmp_path, "one")
    text = status_table(tmp_path, "one")
    assert "1 cells: 1 interrupted" in text
    assert "at step 960 of 1920; its process is gone" in text


def test_finished_runs_of_other_code_are_stale(tmp_path: Path) -> None:
    kinds = {"model": {"kind": "gpt"}, "data": {"kind": "nanogpt"}, "decay": {"kind": "decoupled"}}
    same, other = code_fingerprint(kinds, "under_training"), "0" * 12

    def made(code: str | None) -> dict[str, Any]:
        return {"code_fingerprint": code, "identity": kinds}

    cells = [
        write_run(tmp_path, under_training_run(0.0, seed=seed, status=status, extra=made(code)))
        for seed, (status, code) in enumerate(
            [("completed", same), ("completed", other), ("diverged", other), ("failed", other)]
        )
    ]
    write_experiment(tmp_path, "mixed", cells, "under_training")
    text = status_table(tmp_path, "mixed")
    assert "4 cells: 1 failed, 2 stale, 1 completed" in text
    assert f"diverged with other code ({other}); stale=rerun or stale=keep" in text


def test_a_clock_that_jumped_back_gives_no_negative_times(tmp_path: Path) -> None:
    cell = write_run(tmp_path, over_training_run(0.3, 0.015, status="running", extra={"total_steps": 1920}))
    write_experiment(tmp_path, "one", [cell], "over_training")
    metrics = tmp_path / "runs" / cell["folder"] / "metrics.jsonl"
    os.utime(metrics, (time.time() + 7200, time.time() + 7200))
    text = status_table(tmp_path, "one")
    assert "0:00:38 left" in text
    assert "silent" not in text and "-" not in text.splitlines()[2]
