"""Under what each part of a run was computed is said, kept and told to the tables."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import weight_decay.device.compiling
import weight_decay.training.provenance
from conftest import read_summary
from test_run import folder_of, stop_after
from weight_decay.cli import make_plan
from weight_decay.config.run import RunConfig, run_id
from weight_decay.errors import UserError
from weight_decay.experiments.plan import write_plan
from weight_decay.report.tables.collect import collect
from weight_decay.runs.folder import Labels
from weight_decay.runs.judge import judge, read_run
from weight_decay.runs.read import Cell, DamagedRunError
from weight_decay.runs.seal import digest, sealed
from weight_decay.training.provenance import differences
from weight_decay.training.run import run

LABELS = Labels("test", "micro", "test")
Tiny = Callable[..., RunConfig]
Words = Callable[..., list[str]]


def changed_column(results: Path) -> str | None:
    collect(results)
    (path,) = (results / "tables").glob("*.summary.csv")
    with path.open(newline="") as file:
        return next(csv.DictReader(file)).get("provenance/changed")


def test_a_run_that_goes_on_under_other_conditions_says_so_and_keeps_where(
    words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan(words("text"))[0]
    config = plan.cells[0].config
    write_plan(tmp_path / "results", plan)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert run(config, LABELS) == "interrupted"
    before = torch.get_num_threads()
    with monkeypatch.context() as patch:
        patch.setattr(weight_decay.training.provenance, "versions", lambda: {"python": "3.11.9", "torch": "9.9.9"})
        patch.setattr(weight_decay.training.provenance, "git_commit", lambda: "f" * 40)
        patch.setattr(weight_decay.device.compiling, "BACKEND", "eager")
        patch.setenv("MKL_CBWR", "COMPATIBLE")
        other = make_plan(words("text", "execution.threads=2 execution.compile=true"))[0].cells[0].config
        try:
            assert run(other, LABELS) == "completed"
        finally:
            torch.set_num_threads(before)
    said = capsys.readouterr().err
    assert f"threads {before}, now 2" in said
    assert "now 9.9.9" in said
    assert "now ffffffffffff;" in said
    assert "compiled False, now True" in said
    assert "computes under MKL_CBWR=COMPATIBLE of the environment" in said
    summary = read_summary(folder_of(config))
    assert [(one["from_step"], one["threads"]) for one in summary["stretches"]] == [(0, before), (3, 2)]
    assert changed_column(tmp_path / "results") == "compiled device environment git_commit python threads torch"


def test_a_run_from_start_to_end_under_the_same_conditions_has_one_stretch_and_no_column(
    words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan(words("text"))[0]
    write_plan(tmp_path / "results", plan)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        run(plan.cells[0].config, LABELS)
    run(plan.cells[0].config, LABELS)
    assert "other conditions" not in capsys.readouterr().err
    (only,) = read_summary(folder_of(plan.cells[0].config))["stretches"]
    assert only["from_step"] == 0
    assert {"git_commit", "code_fingerprint", "versions", "device", "threads", "processes"} <= only.keys()
    assert changed_column(tmp_path / "results") is None


def test_what_an_older_checkpoint_does_not_tell_is_not_called_a_difference() -> None:
    assert differences({"from_step": 0, "code_fingerprint": "a"}, {"code_fingerprint": "b", "threads": 1}) == [
        "code a, now b"
    ]


MATCHED = "schedule=matched_effective_lr schedule.reference_strength=0.2 schedule.warmup='2 steps' decay.strength=0"


def test_a_matched_run_follows_one_reference_on_the_same_data_to_its_end(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, config = tiny("text", "decay.strength=0.2"), tiny("text", MATCHED)
    assert run(reference, LABELS) == "completed"
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        run(config, LABELS)
    path = folder_of(reference) / "summary.json"
    kept, record = path.read_bytes(), (folder_of(reference) / "metrics.jsonl").read_bytes()
    # Other data: the schedule would be another model's.
    summary = read_summary(path.parent)
    path.write_text(json.dumps(sealed({**summary, "data": {**summary["data"], "fingerprint": "0" * 64}})))
    with pytest.raises(UserError, match="was computed on other data"):
        run(config, LABELS)
    # Computed again, with other numbers, while this run was interrupted.
    path.write_bytes(kept)
    lines = [json.loads(line) for line in record.splitlines()]
    for line in lines:
        line.update({name: 1.01 * value for name, value in line.items() if name == "lr"})
    other = "".join(json.dumps(line) + "\n" for line in lines).encode()
    (path.parent / "metrics.jsonl").write_bytes(other)
    with pytest.raises(UserError, match="is damaged"):
        run(config, LABELS)
    path.write_text(json.dumps(sealed({**summary, "record": digest(other)})))
    with pytest.raises(UserError, match="was computed again since it began"):
        run(config, LABELS)
    # The same numbers at other times are the same reference.
    for line, told in zip(lines, record.splitlines(), strict=True):
        line.update({**json.loads(told), "time/seconds": 9.0})
    same = "".join(json.dumps(line) + "\n" for line in lines).encode()
    (path.parent / "metrics.jsonl").write_bytes(same)
    path.write_text(json.dumps(sealed({**summary, "record": digest(same)})))
    assert run(config, LABELS) == "completed"
    assert read_summary(folder_of(config))["reference"]["run_id"] == summary["run_id"]
    # Computed again, with other numbers, after this run had finished: every command says so.
    identity = run_id(config)
    assert judge(folder_of(config), identity)["status"] == "completed"
    (path.parent / "metrics.jsonl").write_bytes(other)
    path.write_text(json.dumps(sealed({**summary, "record": digest(other)})))
    for look in (judge, lambda folder, run: read_run(Cell(run, folder, {}))):
        with pytest.raises(DamagedRunError, match=r"is matched to, .*, was computed again since"):
            look(folder_of(config), identity)
