"""Real runs, logged offline, uploaded by wandb's own `sync` and read back by its own API client: nothing is lost.

W&B itself is a server on this machine that answers with what it was sent (wandb_server.py).
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from test_run import BRANCH, folder_of, stop_after
from tiny_runs import QUIET, TINY_TEXT, TINY_VISION
from wandb_server import ENTITY, WandbServer, serving
from weight_decay.cli import make_plan
from weight_decay.experiments.plan import write_plan
from weight_decay.report.tables.collect import collect
from weight_decay.runs.folder import Labels
from weight_decay.training.run import run

PROJECT = f"{ENTITY}/why-weight-decay"
RUNS = {
    "branched": f'{TINY_VISION} "{BRANCH}keep_optimizer_state: false}}]"',
    # Its loss is soon not a number.
    "diverged": f"{TINY_TEXT} optimizer.lr=1e6 optimizer.clip_norm=null",
    "resumed": f"{TINY_TEXT} seed=1",
}


def command(server: WandbServer, home: Path, *words: str) -> str:
    """Run `weight-decay` as somebody who is logged in to that server; what it prints."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    folders = {"HOME": str(home), "WANDB_DIR": str(home), "WANDB_CACHE_DIR": str(home / "cache")}
    ran = subprocess.run(
        [sys.executable, "-m", "weight_decay", *words],
        env={**kept, **folders, **server.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def uploaded(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Iterator[tuple[WandbServer, Path, Path]]:
    """The server with the runs, the folder they were made in with its tables, and somebody's home."""
    results, home = tmp_path_factory.mktemp("results"), tmp_path_factory.mktemp("home")
    for name, settings in RUNS.items():
        words = shlex.split(f"{settings} {QUIET} data.root={data_root} execution.results={results}")
        plan, _ = make_plan([*(word for word in words if word != "tracking=disabled"), "tracking=offline"])
        write_plan(results, plan)
        config, labels = plan.cells[0].config, Labels(plan.experiment, plan.scale, name)
        if name == "resumed":
            with pytest.MonkeyPatch.context() as patch:
                stop_after(patch, 3)
                assert run(config, labels) == "interrupted"
            assert len(list(folder_of(config).glob("wandb/offline-run-*"))) == 1
        assert run(config, labels) == ("diverged" if name == "diverged" else "completed")
    collect(results)
    with serving() as server:
        assert command(server, home, "sync", f"results={results}") == "3 run(s) uploaded.\n"
        assert "no offline W&B run" in command(server, home, "sync", f"results={results}")
        yield server, results, home


def tables(results: Path) -> dict[str, pd.DataFrame]:
    """Every table by its file's name, columns in one order; of curves without branches, which W&B has the end of."""
    files = sorted((results / "tables").glob("*.csv*"))
    assert len(files) == 2 * len(RUNS)
    read = {file.name: pd.read_csv(file).sort_index(axis=1) for file in files}
    return {name: t[t["branch"] == "main"] if "curves" in name else t for name, t in read.items()}


def assert_pulled(server: WandbServer, results: Path, home: Path, there: Path) -> dict[str, pd.DataFrame]:
    told = command(server, home, "pull", PROJECT, f"results={there}")
    assert "tables from 3 finished runs; 0 not finished" in told and "damaged" not in told
    ours, theirs = tables(results), tables(there)
    assert list(ours) == list(theirs)
    for name, table in ours.items():
        pd.testing.assert_frame_equal(table, theirs[name], obj=name)
    return theirs


def test_the_tables_come_back_through_wandbs_own_client(
    uploaded: tuple[WandbServer, Path, Path], tmp_path: Path
) -> None:
    server, results, home = uploaded
    pulled = assert_pulled(server, results, home, tmp_path)
    curves = [table for name, table in pulled.items() if "curves" in name]
    lines = [file.read_text().splitlines() for file in (results / "runs").glob("*/metrics.jsonl")]
    assert sum(map(len, curves)) == sum(len({json.loads(line)["step"] for line in made}) for made in lines) > 10
    assert sum("null" in "".join(made) for made in lines) == 1  # the diverged one
    assert any(table["branch"].nunique() > 1 for name, table in pulled.items() if "summary" in name)
    assert {"Runs", "RunHistoryKeys", "RunParquetHistory", "HistoryPage"} <= set(server.asked)


def test_an_exported_history_is_read_too_and_never_from_a_stale_cache(
    uploaded: tuple[WandbServer, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """wandb's client keeps the files of a run by its name, and a run made again has the same."""
    server, results, home = uploaded
    monkeypatch.setattr(server, "exported", True)
    asked = len(server.asked)
    assert_pulled(server, results, home, tmp_path / "first")
    assert "RunParquetHistory" in server.asked[asked:] and "HistoryPage" not in server.asked[asked:]
    (folder,) = [f for f in (results / "runs").iterdir() if (f / "branches").is_dir()]
    stored = server.runs[folder.name.rpartition("-")[2]]
    rows = [json.loads(line) for line in stored["history"]]
    rows[-1]["test/error"] = 0.125
    monkeypatch.setitem(stored, "history", [json.dumps(row) for row in rows])
    command(server, home, "pull", PROJECT, f"results={tmp_path / 'second'}")
    summaries = [table for name, table in tables(tmp_path / "second").items() if "summary" in name]
    assert any((table["test/error"] == 0.125).any() for table in summaries if "test/error" in table)
