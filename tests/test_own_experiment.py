"""docs/own-experiment.md works as written: its file, its commands, and the table at the end."""

from __future__ import annotations

import csv
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

import forked
from weight_decay.cli import main
from weight_decay.experiments.catalog import OWN_CONFIGS, groups
from weight_decay.experiments.launch import plans

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "own-experiment.md").read_text()
SHORT = (
    "duration='4 steps' data.train_size=256 data.test_size=128 model.width=4 averaging.reestimate_samples=64 "
    "probes.log_every='2 steps' probes.evaluate_every='4 steps' probes.evaluation_batch=64 "
    "probes.evaluation_train_samples=128 probes.jacobian_every='4 steps' probes.jacobian_per_class=1 "
    "tracking=disabled execution.progress=false execution.device=cpu"
)


def example() -> str:
    (text,) = re.findall(r"<!-- begin experiment -->\n```yaml\n(.*?)```\n<!-- end experiment -->", PAGE, re.DOTALL)
    return text


def commands() -> list[list[str]]:
    """The example's commands, as the page writes them."""
    section = PAGE.partition("\n## ")[0]
    lines = re.findall(r"^    \.venv/bin/weight-decay (.*)$", section, re.MULTILINE)
    assert len(lines) == 3
    return [shlex.split(line, comments=True) for line in lines]


def run(words: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    done = forked.run(["-m", "weight_decay", *words], cwd)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def ideas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the page's example; its parent is the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(OWN_CONFIGS, "")  # taken back after the test, also when the command sets it
    folder = tmp_path / "ideas" / "experiment"
    folder.mkdir(parents=True)
    (folder / "batch_size.yaml").write_text(example())
    return folder.parent


def here(words: list[str]) -> None:
    """A command in this process."""
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 0


def test_the_example_runs_from_the_file_to_the_table(
    ideas: Path, tmp_path: Path, data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dry, launch, collect = commands()
    here(dry)
    told = capsys.readouterr().out
    assert "8 cell(s)" in told and "'duration=960 steps'" in told and not (tmp_path / "results").exists()

    done = run([*launch[:-1], *shlex.split(SHORT), f"data.root={data_root}"], tmp_path)
    assert launch[-1] == "jobs=2" and "8 completed of 8 cell(s)" in done.stderr
    (plan,) = (tmp_path / "results" / "experiments").glob("batch_size*.json")
    record = json.loads(plan.read_text())
    assert record["command"].startswith("weight-decay --config-dir ideas experiment=batch_size scale=micro ")

    # What was made shorter than declared is recorded under a name of its own.
    assert collect == ["collect", "batch_size"]
    here(["collect", record["experiment"]])
    (table,) = (tmp_path / "results" / "tables").glob("*.summary.csv")
    with table.open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["branch"] == "main"]
    axes = yaml.safe_load(example())["grid"][0]
    assert len(rows) == 8
    for name, values in axes.items():
        assert {float(row[name]) for row in rows} == set(values), name
    assert {row["status"] for row in rows} == {"completed"}
    assert all(0 <= float(row["test/error"]) <= 1 and 0 <= float(row["ema/test/error"]) <= 1 for row in rows)
    here(["watch", "once"])
    assert "8 completed" in capsys.readouterr().out


def test_multirun_finds_it_too(ideas: Path, tmp_path: Path, data_root: Path) -> None:
    more = [*shlex.split(SHORT), f"data.root={data_root}", "cell=0,7"]
    run(["-m", "--config-dir", "ideas", "experiment=batch_size", "scale=micro", *more], tmp_path)
    summaries = [json.loads(path.read_text()) for path in (tmp_path / "results" / "runs").glob("*/summary.json")]
    assert [summary["status"] for summary in summaries] == ["completed"] * 2


def test_other_groups_and_the_information_know_the_folder(
    ideas: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (ideas / "decay").mkdir()
    (ideas / "decay" / "heads_only.yaml").write_text(
        "kind: decoupled\nstrength: 0.5\nrules: [{match: head, scale: 1}, {match: .*, scale: 0}]\n"
    )
    monkeypatch.setenv(OWN_CONFIGS, str(ideas))
    assert "batch_size" in groups()["experiment"] and "heads_only" in groups()["decay"]
    here(["--config-dir", str(ideas), "--dry-run", "experiment=batch_size", "decay=heads_only"])
    assert "scale: 0" in capsys.readouterr().out.replace("'", "")
    here([f"--config-dir={ideas}", "--info", "batch_size"])
    assert "large batches" in capsys.readouterr().out
    monkeypatch.setenv(OWN_CONFIGS, "")
    assert "batch_size" not in groups()["experiment"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--config-dir"], "say which folder"),
        (["--config-dir", "no_such_folder", "--info"], "there is no folder"),
        (["--config-dir", "{ideas}/experiment", "--info"], "put NAME.yaml in"),
        (["--config-dir", "{clash}", "--info"], "give .*constant.yaml another name"),
        (["experiment=batch_size"], "there is no batch_size"),
    ],
)
def test_mistakes_are_one_sentence(
    ideas: Path, tmp_path: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    clash = tmp_path / "clash"
    (clash / "schedule").mkdir(parents=True)
    (clash / "schedule" / "constant.yaml").write_text("kind: constant\n")
    with pytest.raises(SystemExit) as left:
        main([word.format(ideas=ideas, clash=clash) for word in words])
    message = capsys.readouterr().err
    assert left.value.code == 2 and message.count("\n") == 1
    assert re.search(told, message)


GRID = "grid: # 2 · 2 · 2 cells\n  - {batch_size: [32, 128], decay.strength: [0.0, 0.015], seed: [0, 1]}"
DATA = "  - override /data: procedural"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("averaging: {ema", "averaging: {ema: [", r", line \d+: this is not YAML"),
        ("figure: own", "figure:\town", "line 10: this is not YAML"),
        ("figure: own", "figure: own\n  figure: own", "line 11: this is not YAML .figure stands there twice"),
        ("averaging: {ema: [0.98]}", "averaging:", "averaging is empty"),
        ("optimizer: {lr: 0.3}", "optimizer.lr: 0.3", "optimizer.lr must be written as optimizer: {lr: ...}"),
        ("optimizer: {lr: 0.3}", "optimizer: {rl: 0.3}", "optimizer.rl: there is no such setting"),
        ("optimizer: {lr: 0.3}", "optimiser: {lr: 0.3}", "optimiser"),
        ("optimizer: {lr: 0.3}", "optimizer: 3", "optimizer"),
        ("optimizer: {lr: 0.3}", "jobs: 3", "jobs says where or how to compute"),
        ("optimizer: {lr: 0.3}", "execution: {device: cpu}", "execution.* says where or how to compute"),
        ("optimizer: {lr: 0.3}", "optimizer: {lr: '${no.such}'}", "no.such"),
        (DATA, "  - override /data: ", "data"),
        (DATA, "  - override /data: {procedural: 1}", "in defaults : dict"),
        (DATA, "  - override /no_such: group", "no_such"),
        (DATA, "  - override /data: no_such", "no_such"),
        (DATA, f"  - override /data: {'a' * 300}", "aaa"),  # no file can be called so
        (DATA, "  - /experiment/batch_size", "cannot be composed"),  # itself
        ("defaults: # options of the groups", "x: # options of the groups", "x"),
        ("duration: 960 steps", "3: 4", "the key 3 is not text"),
        (GRID, "grid:", "grid must be a list such as .*got None"),
        (GRID, "grid: []", "grid must be a list such as"),
        (GRID, "grid: {seed: [0, 1]}", "grid must be a list such as"),
        (GRID, "grid: [seed]", "grid: an entry must be `key: value` pairs"),
        (GRID, "grid: [{batch_size: 32}]", r"batch_size must be a list of values such as \[1, 2\], got 32"),
        (GRID, "grid: [{batch_size: []}]", r"batch_size must be a list of values such as \[1, 2\], got \[\]"),
        (GRID, "grid: [{jobs: [1]}]", "jobs says where or how to compute"),
        (GRID, "grid: [{about.figure: [1]}]", "about.figure says where or how"),
        (GRID, "grid: [{branches: ['${shared.no_such}']}]", "no_such"),
        ("# @package _global_", "# our own", "the line `# @package _global_` must stand at its top"),
        ("about:", "abaut:", "about is empty"),
        ("  title: ", "  titel: ", "about: title must be there too"),
        ("  regime: over_training", "  regime: overtraining", "regime must be over_training or under_training, got"),
        ("  regime: over_training", "  regime: []", "regime must be"),
        ("  regime: over_training", "  regime: under_training", "is declared for under_training"),
        ("figure: own", "figure: [1]", "figure must be text"),
        ("figure: own", "figure: own\n  figures: own", "there is no figures"),
        (r"(?s).*", "", "is empty"),
        (r"(?s).*", "- name", "is not made of"),
        (r"(?s).*", "# @package _global_\nname: batch_size", "about is empty"),
        (r"(?s).*", "[" * 100_000, "this is not YAML"),
    ],
)
def test_mistakes_in_the_file_are_one_sentence(
    ideas: Path, tmp_path: Path, old: str, new: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = ideas / "experiment" / "batch_size.yaml"
    pattern = old if old.startswith("(?s)") else re.escape(old)
    changed = re.sub(pattern, lambda _: new, example(), count=1)
    assert changed != example()
    file.write_text(changed)
    refused(["--config-dir", str(ideas), "experiment=batch_size", "tracking=disabled"], told, capsys)
    assert not (tmp_path / "results").exists() and not (tmp_path / "evil-micro.json").exists()


def test_a_grid_of_thousands_is_not_copied_for_each_of_its_cells(
    ideas: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else planning takes the square of their number: 3,000 seeds took 12 s."""
    seeds = list(range(50))
    (ideas / "experiment" / "batch_size.yaml").write_text(example().replace(GRID, f"grid: [{{seed: {seeds}}}]"))
    copied: list[dict[str, object]] = []
    composed = plans.composed
    monkeypatch.setattr(plans, "composed", lambda choices: copied.append(made := composed(choices)) or made)
    with pytest.raises(SystemExit) as left:
        main(["--config-dir", str(ideas), "--dry-run", "experiment=batch_size", "scale=micro", "tracking=disabled"])
    assert left.value.code == 0 and "50 cell(s)" in capsys.readouterr().out
    assert len(copied) > 50 and not any(str(seeds) in str(made) for made in copied)


def test_a_file_in_another_encoding_or_of_another_name_is_refused(
    ideas: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = ideas / "experiment" / "batch_size.yaml"
    words = ["--config-dir", str(ideas)]
    file.write_bytes(example().replace("Does", "D\xf6s").encode("latin-1"))
    refused([*words, "experiment=batch_size"], "batch_size.yaml: byte .* is not UTF-8; save", capsys)
    refused([*words, "--info"], "batch_size.yaml: byte .* is not UTF-8; save", capsys)
    file.write_text("")
    refused([*words, "--info"], "batch_size.yaml: is empty", capsys)
    other = ideas.parent / "other"
    (other / "experiment").mkdir(parents=True)
    (other / "decay").mkdir()
    (other / "experiment" / "single.yaml").write_text(example())
    (other / "decay" / "mine.yaml").write_text("kind: [")
    words = ["--config-dir", str(other)]
    refused([*words, "experiment=single"], "cannot be called 'single'; rename the file", capsys)
    refused([*words, "decay=mine"], "mine.yaml, line 1: this is not YAML", capsys)


def test_an_experiment_at_several_scales_is_a_folder(ideas: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its scales share a file, and Hydra's own name for one of them does as well as the two words."""
    folder = ideas / "experiment" / "several"
    folder.mkdir()
    about, rest = example().partition("duration:")[0], "duration: 960 steps\ngrid: [{seed: [0, 1, 2]}]\n"
    (folder / "about.yaml").write_text(about)
    for scale in ("micro", "small"):
        head = f"# @package _global_\ndefaults: [/experiment/several/about, _self_, override /scale: {scale}]\n"
        (folder / f"{scale}.yaml").write_text(head + rest)
    words = ["--config-dir", str(ideas), "--dry-run"]
    told = []
    for more in (["experiment=several", "scale=small"], ["experiment=several/small"]):
        here([*words, *more])
        told.append(capsys.readouterr().out)
    assert told[0] == told[1] and "at scale small" in told[0] and "3 cell(s)" in told[0]
    refused([*words, "experiment=several", "scale=paper"], "is declared at micro, small, not at paper", capsys)
    (folder / "tiny.yaml").write_text("a: 1\n")
    refused([*words, "experiment=several"], "must be called like scales", capsys)


def refused(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(words)
    message = capsys.readouterr().err
    assert left.value.code == 2 and message.count("\n") == 1, message
    assert re.search(told, message), message
