"""Nothing silently wrong: renamed and changed run folders are found out by every command."""

from __future__ import annotations

import csv
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import read_summary
from hunt.folders import PLAIN, damage
from test_run import BRANCH, folder_of, stop_after
from weight_decay.cli import make_plan
from weight_decay.config.run import RunConfig
from weight_decay.errors import UserError
from weight_decay.experiments.plan import write_plan
from weight_decay.experiments.sweep import unfinished
from weight_decay.report.live.status import cell_state
from weight_decay.report.tables.collect import collect
from weight_decay.runs.folder import ForeignFolderError, Labels
from weight_decay.runs.judge import judge
from weight_decay.runs.read import DamagedRunError, read_experiments
from weight_decay.runs.seal import BrokenSealError, is_sealed, sealed, without_seal
from weight_decay.training.run import run

LABELS = Labels("test", "micro", "test")
Tiny = Callable[..., RunConfig]
Words = Callable[..., list[str]]
WITH_BRANCH = f'"{BRANCH}keep_optimizer_state: true}}]"'


def contents(folder: Path) -> dict[Path, bytes]:
    """All files but the lock, which says who looked last."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "run.lock"}


def believed(results: Path) -> list[str]:
    """Status of each recorded cell, as `status` and `collect` say it; they must agree."""
    words = []
    for experiment in read_experiments(results):
        for cell in experiment.cells:
            try:
                judge(cell.folder, cell.run_id, cell.coordinates)
                words.append("sound")
            except DamagedRunError:
                words.append("damaged")
            assert (cell_state(cell)[0] == "damaged") == (words[-1] == "damaged")
    return words


def test_a_seal_holds_only_for_what_was_sealed() -> None:
    values = sealed({"a": (1, 2.5), "b": {"c": None}})
    assert is_sealed(json.loads(json.dumps(values)))
    assert not is_sealed(without_seal(values))
    for change in ({"a": [1, 2.6]}, {"d": 1}, {"format": 1}, {"seal": "0" * 64}):
        with pytest.raises(BrokenSealError):
            is_sealed({**values, **change})
    with pytest.raises(BrokenSealError):
        is_sealed({name: value for name, value in values.items() if name != "seal"})


@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_under_another_runs_name_is_refused_by_every_command(
    words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    mine = make_plan(words("text", "seed=0"))[0]
    other = make_plan(words("text", "seed=1"))[0]
    config = mine.cells[0].config
    with monkeypatch.context() as patch:
        if not finished:
            stop_after(patch, 3)
        run(config, LABELS)
    wrong = folder_of(other.cells[0].config)
    folder_of(config).rename(wrong)
    before = contents(wrong)
    write_plan(tmp_path / "results", other)
    with pytest.raises(ForeignFolderError, match="belongs to"):
        run(other.cells[0].config, LABELS)
    assert before == contents(wrong)
    assert unfinished(other) == list(other.cells)
    assert believed(tmp_path / "results") == ["damaged"]
    assert "belongs to" in collect(tmp_path / "results").damaged[0].reason


def test_another_runs_checkpoints_alone_are_refused_too(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = tiny("text", "seed=0"), tiny("text", "seed=1")
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        run(mine, LABELS)
    shutil.copytree(folder_of(mine) / "checkpoints", folder_of(other) / "checkpoints")
    shutil.copy(folder_of(mine) / "metrics.jsonl", folder_of(other))
    with pytest.raises(ForeignFolderError, match=r"checkpoint step-000000003\.json belongs to main of run"):
        run(other, LABELS)


def test_a_branch_under_another_branchs_name_is_damaged(words: Words, tmp_path: Path) -> None:
    plan = make_plan(words("text", WITH_BRANCH.strip('"').join('""')))[0]
    run(plan.cells[0].config, LABELS)
    write_plan(tmp_path / "results", plan)
    assert believed(tmp_path / "results") == ["sound"]
    folder = folder_of(plan.cells[0].config) / "branches"
    (folder / "tail-000000002").rename(tmp_path / "elsewhere")
    assert believed(tmp_path / "results") == ["damaged"]
    assert "branch tail-000000002 is missing" in collect(tmp_path / "results").damaged[0].reason
    (folder / "tail-000000004").rename(folder / "tail-000000002")
    assert believed(tmp_path / "results") == ["damaged"]
    assert collect(tmp_path / "results").finished == 0


def test_a_changed_record_before_the_checkpoint_is_refused(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny("text")
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        run(config, LABELS)
    path = folder_of(config) / "metrics.jsonl"
    path.write_text(path.read_text().replace('"step":2', '"step":1'))
    with pytest.raises(UserError, match="was changed after it was written"):
        run(config, LABELS)


def test_a_run_of_an_older_version_is_read_and_called_not_sealed(words: Words, tmp_path: Path) -> None:
    plan = make_plan(words("text"))[0]
    run(plan.cells[0].config, LABELS)
    write_plan(tmp_path / "results", plan)
    assert "not sealed" not in collect(tmp_path / "results").describe()
    path = folder_of(plan.cells[0].config) / "summary.json"
    path.write_text(json.dumps(without_seal(read_summary(path.parent))))
    collected = collect(tmp_path / "results")
    assert collected.finished == 1
    assert "1 of them are not sealed" in collected.describe()


# -- five hundred random changes ---------------------------------------------------------------------------------


def files(results: Path) -> list[Path]:
    kept = ("run.lock", "final.pt")
    found = [path for folder in ("runs", "experiments") for path in (results / folder).rglob("*")]
    return sorted(path for path in found if path.is_file() and path.name not in kept)


def tables(results: Path) -> dict[str, list[Any]]:
    """The tables without the column that differs between any two repetitions of a run."""
    found = {}
    for path in sorted((results / "tables").glob("*.csv")):
        with path.open(newline="") as file:
            found[path.name] = [{**row, "seconds": ""} for row in csv.DictReader(file)]
    return found


def outcome(results: Path, wanted: dict[str, list[Any]]) -> str:
    """ "same", "named" (somebody is told what is wrong) or "silent"."""
    shutil.rmtree(results / "tables", ignore_errors=True)
    try:
        collected = collect(results)
    except UserError:
        return "named"
    if collected.damaged or collected.unfinished or collected.unsealed:
        return "named"
    found = tables(results)
    if any(wanted[name] != table for name, table in found.items()):
        return "silent"
    # A table that is not there is missed by everybody who wants it.
    return "same" if found == wanted else "named"


@pytest.fixture
def two_runs(words: Words, tmp_path: Path) -> tuple[Path, Any]:
    """Results with two finished runs of one experiment, the first with branches."""
    plans = [make_plan(words("text", f'seed={seed} "{WITH_BRANCH[1:-1]}"'))[0] for seed in (0, 1)]
    for plan in plans:
        run(plan.cells[0].config, LABELS)
    results = tmp_path / "results"
    path = write_plan(results, plans[0])
    record = json.loads(path.read_text())
    cells = [cell for plan in plans for cell in json.loads(write_plan(results, plan).read_text())["cells"]]
    for seed, cell in enumerate(cells):
        cell["coordinates"] = {"seed": seed, "decay.strength": 0.1}
    path.write_text(json.dumps(sealed({**record, "cells": cells}), indent=2))
    return results, plans[0].cells[0].config


def test_of_random_changes_to_finished_runs_none_is_silent(two_runs: tuple[Path, Any]) -> None:
    results, _ = two_runs
    collect(results)
    wanted = tables(results)
    assert wanted
    assert outcome(results, wanted) == "same"
    draw, seen = random.Random(16), {"same": 0, "named": 0, "silent": 0}
    kept = {path: path.read_bytes() for path in files(results)}
    for _ in range(200):
        told = damage(draw.choice(list(kept)), draw, list(kept), PLAIN)
        seen[found := outcome(results, wanted)] += 1
        assert found != "silent", told
        for path in set(files(results)) - kept.keys():
            path.unlink()
        for path, content in kept.items():
            if not path.is_file() or path.read_bytes() != content:
                path.write_bytes(content)
    assert seen["named"] > 66


def test_of_random_changes_to_a_half_finished_run_none_is_silent(
    words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(words("text", "checkpoint.every_seconds=0"))[0]
    config, results = plan.cells[0].config, tmp_path / "results"
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        run(config, LABELS)
    write_plan(results, plan)
    shutil.copytree(results, tmp_path / "half")
    run(config, LABELS)
    collect(results)
    wanted = tables(results)
    draw, survived = random.Random(17), 0
    for _ in range(50):
        shutil.rmtree(results)
        shutil.copytree(tmp_path / "half", results)
        told = damage(draw.choice(files(results)), draw, files(results), PLAIN)
        try:
            assert run(config, LABELS) == "completed", told
        except UserError:
            continue
        found = outcome(results, wanted)
        survived += found == "same"
        assert found != "silent", told
    assert survived > 10
