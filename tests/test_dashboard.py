"""The W&B dashboard as code, and offline runs on their way to W&B, both as far as they go without an account."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import folder_of, read_summary
from weight_decay.cli import main
from weight_decay.config.plain import to_dict
from weight_decay.config.run import RunConfig, folder_name, run_id
from weight_decay.errors import UserError
from weight_decay.report.wandb.dashboard import build_workspace
from weight_decay.report.wandb.offline import offline_runs, sync, sync_commands
from weight_decay.runs.folder import Labels
from weight_decay.training.run import run

Tiny = Callable[..., RunConfig]
LABELS = Labels("test", "micro", "test")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # W&B's own, many


@pytest.fixture
def logged_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))


def command(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    told = capsys.readouterr()
    return stopped.value.code, told.err + told.out


def test_every_panel_shows_what_a_run_really_logs(tiny: Tiny) -> None:
    workspace = build_workspace("somebody", "why-weight-decay")
    sections = {section.name: section.panels for section in workspace.sections}
    assert len(sections) == 5
    text = json.dumps(json.loads(workspace._to_model().model_dump_json(by_alias=True)))
    for wanted in ("config:optimizer.value.lr", "config:decay.value.strength", "summary:ema/test/error"):
        assert wanted in text
    logged: set[str] = set()
    for regime in ("vision", "text"):
        config = tiny(regime)
        assert run(config, LABELS) == "completed"
        folder = folder_of(config)
        for line in (folder / "metrics.jsonl").read_text().splitlines():
            logged |= json.loads(line).keys()
        assert {"lr"} <= to_dict(config)["optimizer"].keys() and {"strength"} <= to_dict(config)["decay"].keys()
    curves = [panel.y for panels in sections.values() for panel in panels if type(panel).__name__ == "LinePlot"]
    shown = {metric for drawn in curves for metric in drawn}
    assert len(shown) >= 15
    assert shown - {"grad/clipped"} <= logged


@pytest.mark.usefixtures("logged_out")
def test_without_a_login_both_commands_say_so_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, told = command(["dashboard", "entity=somebody"], capsys)
    assert code == 2
    assert "dashboard: nobody is logged in to W&B here; run `wandb login`" in told
    assert command(["dashboard"], capsys)[1].startswith("weight-decay: dashboard: say whose it is: entity=NAME")
    assert "colour=red is not known here" in command(["dashboard", "colour=red"], capsys)[1]
    (tmp_path / "runs").mkdir()
    assert command(["sync", f"results={tmp_path}"], capsys) == (
        0, f"There is no offline W&B run under {tmp_path} that is not uploaded yet.\n",
    )  # fmt: skip
    (tmp_path / "runs" / "a-0123456789ab" / "wandb" / "offline-run-20260101_000000-0123456789ab").mkdir(parents=True)
    code, told = command(["sync", f"results={tmp_path}"], capsys)
    assert code == 2 and "sync: nobody is logged in" in told


def test_a_resumed_offline_run_is_uploaded_as_one_run(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny("text", "tracking=offline")
    assert run(config, LABELS) == "completed"
    results = Path(config.execution.results)
    folder = results / "runs" / folder_name(config)
    assert read_summary(folder)["status"] == "completed"
    (first,) = (folder / "wandb").glob("offline-run-*")
    second = first.with_name(first.name.replace("offline-run-2", "offline-run-3"))
    shutil.copytree(first, second)
    waiting = offline_runs(results, None)
    assert waiting == {folder: [first, second]}
    (line,) = sync_commands(waiting)
    assert line[-4:] == ["--id", run_id(config), str(first), str(second)]
    (second / "run.wandb.synced").touch()
    assert offline_runs(results, None) == {folder: [first]}
    with pytest.raises(UserError, match="after 1 were uploaded"):
        sync([[sys.executable, "-c", ""], [sys.executable, "-c", "import sys; sys.exit('no')", *"abcdef"]])
