"""Tables from a W&B project: the same as those from the run folders that record.py mirrors to it."""

from __future__ import annotations

import gzip
import inspect
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from synthetic_runs import over_training_run, under_training_run, write_experiment, write_run
from weight_decay.cli import main, make_plan
from weight_decay.config.execution import TrackingConfig
from weight_decay.errors import UserError
from weight_decay.experiments.plan import write_plan
from weight_decay.report.tables.collect import collect
from weight_decay.report.tables.read import Tables, tables_of
from weight_decay.report.wandb.pull import pull
from weight_decay.runs.folder import Labels
from weight_decay.training.record import Mirror
from weight_decay.training.run import run

PROJECT = "somebody/why-weight-decay"
TRACKING = TrackingConfig(mode="online", project="why-weight-decay", entity="somebody")


class Stored:
    """A W&B run, from both sides: what `wandb.init` returns, and then what `wandb.Api` gives of it."""

    def __init__(self, id: str, name: str, config: dict[str, Any]) -> None:
        self.id, self.name = id, name
        self.history: dict[int, dict[str, Any]] = {}
        self.config, self.summary = Kept(_sent(config)), Kept()

    def log(self, row: dict[str, Any], step: int) -> None:
        merged = self.history.setdefault(step, {"_step": step, "_timestamp": 1.5, "never/measured": None})
        merged.update(_sent(row))

    def finish(self, exit_code: int) -> None:
        self.closed = True

    @property
    def summary_metrics(self) -> dict[str, Any]:
        latest: dict[str, Any] = {}
        for row in self.history.values():
            latest.update(row)
        return {**latest, **self.summary}

    def scan_history(self, page_size: int = 1000, use_cache: bool = True) -> Iterator[dict[str, Any]]:
        return iter(self.history.values())


class Kept(dict[str, Any]):
    """A run's config or summary, which W&B keeps as JSON."""

    def update(self, values: dict[str, Any], allow_val_change: bool = False) -> None:  # type: ignore[override]
        super().update(_sent(values))


def _sent(values: dict[str, Any]) -> dict[str, Any]:
    """W&B writes what is not finite as a word."""
    return {k: "NaN" if v != v else json.loads(json.dumps(v)) for k, v in values.items()}


class Project:
    """Stands in for W&B: `init` stores runs, `Api().runs` gives them."""

    def __init__(self) -> None:
        self.stored: dict[str, Stored] = {}

    def init(self, *, id: str, name: str, config: dict[str, Any], **_: Any) -> Stored:
        return self.stored.setdefault(id, Stored(id, name, config))

    def runs(self, path: str, order: str, lazy: bool) -> list[Stored]:
        if path != PROJECT:
            raise ValueError(f"Could not find project {path.rpartition('/')[2]}")
        return list(self.stored.values())


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> Project:
    import wandb

    made = Project()
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "init", made.init)
    monkeypatch.setattr(wandb, "login", lambda **_: True)
    monkeypatch.setattr(wandb, "Api", lambda: made)
    return made


def mirror(results: Path, cell: dict[str, Any]) -> None:
    """Pass a run folder through record.py, as the run that wrote it would have."""
    folder = results / "runs" / cell["folder"]
    summary = json.loads((folder / "summary.json").read_text())
    config = {"seed": summary["seed"], "data": {"kind": summary["data"]["name"]}}
    to = Mirror(TRACKING, cell["run_id"], cell["folder"], "some", config, folder)
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        to.log(json.loads(line))
    to.finish({name: summary[name] for name in ("status", "divergence_step")}, ok=True)


def assert_equal(ours: Tables, theirs: Tables) -> None:
    """The same rows and columns; the order of columns is W&B's own."""
    pd.testing.assert_frame_equal(ours.summary, theirs.summary, check_like=True)
    pd.testing.assert_frame_equal(ours.main_curves, theirs.main_curves, check_like=True)


def test_the_stand_in_has_the_shape_of_wandbs_own_api() -> None:
    from wandb.apis.public import Api
    from wandb.apis.public import Run as ApiRun

    assert {"path", "order", "lazy"} <= set(inspect.signature(Api.runs).parameters)
    assert {"page_size", "use_cache"} <= set(inspect.signature(ApiRun.scan_history).parameters)
    for name in ("id", "config", "summary_metrics"):
        assert isinstance(inspect.getattr_static(ApiRun, name), property)


def test_tables_from_wandb_are_those_from_the_run_folders(tmp_path: Path, project: Project) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    bad = over_training_run(0.3, 0.0, seed=1, status="diverged")
    bad.rows[-1]["train/loss"] = None  # not finite
    del bad.rows[3]["test/error"]  # not measured
    ends = {f"tiny-{start:09d}": [{"step": start + 20, "test/error": 0.01}] for start in (80, 120)}
    runs = [over_training_run(0.3, 0.015), over_training_run(0.02, 0.0, branches=ends), bad]
    cells = [write_run(here, made) for made in runs]
    write_experiment(here, "some", cells, "over_training")
    for cell in cells:
        mirror(here, cell)
    # Shares a cell with the first; its own run is the one that tells W&B of both.
    own = write_run(here, under_training_run(0.05))
    write_experiment(here, "other", [cells[0], own], "over_training", scale="small", figure=None, command="a, b\nc")
    mirror(here, own)
    lines = [collect(here).describe(), pull(PROJECT, there).describe()]
    assert lines[0] == lines[1] and lines[0].startswith("4 tables from 5 finished runs; 0 not finished")
    for name, scale in (("some", "micro"), ("other", "small")):
        assert_equal(tables_of(here, name, scale), tables_of(there, name, scale))
    text = gzip.decompress((there / "tables" / "some-micro.curves.csv.gz").read_bytes()).decode().splitlines()
    assert sum("nan" in line.split(",") for line in text) == 1
    branches = tables_of(there, "some", "micro").curves.query("branch != 'main'")
    assert branches["test/error"].tolist() == [0.01, 0.01]


def test_a_real_run_comes_back_as_it_was_written(
    words: Callable[[str, str], list[str]], tmp_path: Path, project: Project
) -> None:
    plan, _ = make_plan(words("vision", "tracking=online averaging.reestimate_samples=32"))
    results = Path(plan.cells[0].config.execution.results)
    write_plan(results, plan)
    assert run(plan.cells[0].config, Labels(plan.experiment, plan.scale, "one")) == "completed"
    collect(results)
    pull(PROJECT, tmp_path / "there")
    (path,) = (results / "tables").glob("*.summary.csv")
    name = path.name.removesuffix(f"-{plan.scale}.summary.csv")
    ours = tables_of(results, name, plan.scale)
    assert_equal(ours, tables_of(tmp_path / "there", name, plan.scale))
    assert {"git_commit", "data_split", "parameters", "device", "seconds"} <= set(ours.summary.dropna(axis=1))


def test_runs_that_told_less_take_their_cells_from_the_experiment_file(tmp_path: Path, project: Project) -> None:
    cells = [write_run(tmp_path, over_training_run(lr, 0.015)) for lr in (0.3, 0.02)]
    write_experiment(tmp_path, "some", cells, "over_training")
    for cell in cells:
        mirror(tmp_path, cell)
        stored = project.stored[cell["run_id"]]
        del stored.config["experiments"]
        for name in stored.summary.keys() - {"status", "divergence_step"}:
            del stored.summary[name]
    project.stored[cells[1]["run_id"]].summary["status"] = "interrupted"
    collect(tmp_path)
    ours = tables_of(tmp_path, "some", "micro").summary.iloc[:1]
    assert pull(PROJECT, tmp_path).describe().startswith("2 tables from 1 finished runs; 1 not finished")
    # The other row stays as it was collected: a table loses no run because W&B has not its end.
    theirs = tables_of(tmp_path, "some", "micro").summary.iloc[:1]
    same = ["run_id", "scale", "data", "seed", "optimizer.lr", "decay.strength", "test/error", "figure", "command"]
    pd.testing.assert_frame_equal(ours[same], theirs[same])
    assert theirs["git_commit"].tolist() == ["not recorded"] and theirs["seconds"].isna().all()


def test_only_named_experiments_are_pulled_and_what_lies_in_a_project_cannot_leave_its_folder(
    tmp_path: Path, project: Project
) -> None:
    here = tmp_path / "here"
    cell = write_run(here, over_training_run(0.3, 0.015))
    for name in ("some", "other"):
        write_experiment(here, name, [cell], "over_training")
    mirror(here, cell)
    assert len(pull(PROJECT, tmp_path / "there", ["other"]).tables) == 2
    with pytest.raises(UserError, match="has no experiment fig99; there is other, some"):
        pull(PROJECT, tmp_path / "there", ["fig99"])
    stored = project.stored[cell["run_id"]]
    stored.summary["branches"] = {"../../../up": {"status": "completed", "start_step": 1, "final": {}}}
    assert pull(PROJECT, tmp_path / "there").damaged == []
    stored.config["experiments"][0]["experiment"] = "../up"
    with pytest.raises(UserError, match=r"none of the 1 run\(s\).*cannot be one \('../up'"):
        pull(PROJECT, tmp_path / "there")
    project.stored.clear()
    with pytest.raises(UserError, match=r"none of the 0 run\(s\)"):
        pull(PROJECT, tmp_path / "there")


def test_a_project_without_a_finished_run_leaves_the_tables_as_they_are(tmp_path: Path, project: Project) -> None:
    cell = write_run(tmp_path, over_training_run(0.3, 0.015))
    write_experiment(tmp_path, "some", [cell], "over_training")
    mirror(tmp_path, cell)
    before = [path.read_bytes() for path in collect(tmp_path).tables]
    project.stored[cell["run_id"]].summary["status"] = "interrupted"
    pulled = pull(PROJECT, tmp_path)
    assert (
        pulled.tables == [] and "some-micro: no finished run, so no table is written or replaced" in pulled.describe()
    )
    assert [path.read_bytes() for path in sorted((tmp_path / "tables").iterdir(), reverse=True)] == before
    assert pull(PROJECT, tmp_path / "new").tables == [] and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("where", "key", "value", "reason"),
    [
        ("config", "experiments", "some", "experiments are not a list"),
        ("config", "experiments", [{"x": 1}], "cannot be one .KeyError: 'cells'"),
        ("config", "experiments", [None], "cannot be one .TypeError"),
        ("summary", "branches", None, "branches are not an object"),
        ("summary", "branches", [], "branches are not an object"),
        ("summary", "branches", {"tiny-000000080": None}, "branch tiny-000000080"),
        ("summary", "branches", {"tiny-000000080": {"status": "completed", "final": None}}, "branch tiny-000000080"),
        ("summary", "data", None, "data has no name"),
        ("summary", "data", "procedural", "data has no name"),
        ("summary", "data", {"name": 3}, "data has no name"),
    ],
)
def test_a_run_with_odd_content_is_named_and_left_out(
    tmp_path: Path, project: Project, where: str, key: str, value: Any, reason: str
) -> None:
    cells = [write_run(tmp_path, over_training_run(lr, 0.015)) for lr in (0.3, 0.02)]
    write_experiment(tmp_path, "some", cells, "over_training")
    for cell in cells:
        mirror(tmp_path, cell)
    getattr(project.stored[cells[0]["run_id"]], where)[key] = value
    pulled = pull(PROJECT, tmp_path / "there")
    assert (pulled.finished, pulled.unfinished, len(pulled.damaged)) == (1, 0, 1)
    assert cells[0]["run_id"] in pulled.damaged[0].folder.name and re.search(reason, pulled.damaged[0].reason)


def test_a_foreign_run_does_not_stop_the_pull(tmp_path: Path, project: Project) -> None:
    cell = write_run(tmp_path, over_training_run(0.3, 0.015))
    write_experiment(tmp_path, "some", [cell], "over_training")
    mirror(tmp_path, cell)
    experiments: list[Any] = [
        None,
        [],
        [{"x": 1}],
        [{**project.stored[cell["run_id"]].config["experiments"][0], "title": 3}],
    ]
    for number, told in enumerate(experiments):
        project.stored[f"foreign{number}"] = Stored(f"foreign{number}", "", {"experiments": told})
    pulled = pull(PROJECT, tmp_path / "there")
    assert pulled.finished == 1
    assert [item.folder for item in pulled.damaged] == [Path(PROJECT, "foreign2"), Path(PROJECT, "foreign3")]
    assert "title is 3, not text" in pulled.damaged[1].reason


def command(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_what_can_go_wrong_is_one_sentence(
    tmp_path: Path, project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import wandb

    assert "say which W&B project: ENTITY/PROJECT" in command(["pull"], capsys)
    assert "give the project as ENTITY/PROJECT, got some" in command(["pull", "some"], capsys)
    missing = command(["pull", "somebody/else", f"results={tmp_path}"], capsys)
    assert "W&B did not give the runs of somebody/else (Could not find project else)" in missing
    monkeypatch.setattr(wandb, "login", lambda **_: False)
    assert "pull: nobody is logged in to W&B here" in command(["pull", PROJECT], capsys)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert "switched off here by WANDB_MODE=offline" in command(["pull", PROJECT], capsys)
