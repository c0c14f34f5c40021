"""docs/extending.md works as written: the files of each example are made and trained for three steps."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from weight_decay.cli import main
from weight_decay.config.own import OWN_CONFIGS
from weight_decay.config.plain import build_dataclass
from weight_decay.config.registry import OPTIMIZERS
from weight_decay.optim.decay import ParameterGroup
from weight_decay.optim.optimizers import DecayedOptimizer, Method

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = (ROOT / "docs" / "extending.md").read_text()
QUIET = "tracking=disabled execution.progress=false execution.device=cpu jobs=1"
VISION = (
    "batch_size=32 'duration=3 steps' schedule.drop_at=50% averaging.reestimate_samples=64 probes.evaluation_batch=64 "
    "probes.evaluation_train_samples=64 'probes.log_every=1 steps' 'probes.jacobian_every=3 steps' "
    "probes.jacobian_per_class=2"
)
TEXT = (
    "batch_size=4 'duration=3 steps' 'schedule.warmup=1 step' data.context=16 data.evaluation_windows=8 "
    "probes.evaluation_batch=8 probes.evaluation_train_samples=8 model.width=16 model.heads=2 "
    "'probes.log_every=1 steps' 'probes.evaluate_every=3 steps'"
)


def section(title: str) -> str:
    return DOCUMENT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def command(title: str) -> list[str]:
    """The first command of a section, as it is written there."""
    return shlex.split(re.findall(r"^    \.venv/bin/weight-decay (.*)$", section(title), re.MULTILINE)[0])


def apply(title: str, target: Path) -> None:
    """Make the files of a section."""
    created = re.findall(r"^New file `([^`]+)`[^\n]*:\n\n```\w+\n(.*?)```$", section(title), re.MULTILINE | re.DOTALL)
    assert len(created) == 2
    for name, content in created:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text(content)


Done = Callable[[list[str]], None]


@pytest.fixture
def done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Done]:
    """The command in `tmp_path`, in this process; what it imports of one's own goes with the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(OWN_CONFIGS, "")

    def done(words: list[str]) -> None:
        # What lies in a folder is read once a process, and `ideas` is another one in each test.
        words = [str(tmp_path / word) if word == "ideas" else word for word in words]
        with pytest.raises(SystemExit) as left:
            main(words)
        assert not left.value.code

    yield done
    for name in [name for name in sys.modules if name.startswith("weight_decay.config.own.")]:
        del sys.modules[name]


def run(words: list[str], done: Done) -> dict[str, Any]:
    """Describe a run, then do it; the summary, with the lines of metrics.jsonl under "rows"."""
    done(["--dry-run", *words])
    done(words)
    (folder,) = Path("results/runs").iterdir()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return json.loads((folder / "summary.json").read_text()) | {"rows": rows}


def with_settings(words: list[str], settings: str) -> list[str]:
    """What the document says, shorter."""
    more = shlex.split(settings)
    given = {word.partition("=")[0] for word in more}
    return [*(word for word in words if word.partition("=")[0] not in given), *more]


def test_a_model_of_your_own_trains_and_a_probe_of_your_own_measures_it(
    done: Done, tmp_path: Path, data_root: Path
) -> None:
    apply("A model", tmp_path)
    apply("A probe", tmp_path)
    both = with_settings(command("A model"), shlex.join(command("A probe")[2:]))
    small = f"{VISION} {QUIET} data.train_size=256 data.test_size=128 data.root={data_root} model.width=16"
    often = "'probes.more=[{kind: confidence, every: 3 steps, per_class: 2}]'"
    summary = run(with_settings(both, f"{small} {often}"), done)
    assert summary["status"] == "completed" and summary["rows"][-1]["step"] == 3
    assert summary["parameters"] == (3 * 16**2 + 1) * 16 + (16 + 1) * 16 + (16 + 1) * 10
    # The probes that know only some layers know these.
    assert summary["final"]["ema/jacobian/mean_square"] > 0
    assert [row["step"] for row in summary["rows"] if "confidence/mean" in row] == [0, 3]
    assert 0.1 < summary["final"]["ema/confidence/mean"] < 1
    (file,) = (tmp_path / "results" / "runs").glob("*/config.yaml")
    assert "kind: confidence" in file.read_text()
    assert summary["folder"].startswith("procedural-mlp-")


def test_an_optimizer_of_your_own_trains(done: Done, tmp_path: Path, data_root: Path) -> None:
    apply("An optimizer", tmp_path)
    small = f"{VISION} {QUIET} data.train_size=256 data.test_size=128 data.root={data_root} model.width=4"
    summary = run(with_settings(command("An optimizer"), small), done)
    assert summary["status"] == "completed" and summary["rows"][-1]["step"] == 3
    assert (
        summary["identity"]["optimizer"]["betas"] == [0.9, 0.99] and "momentum" not in summary["identity"]["optimizer"]
    )


def test_an_optimizer_of_your_own_is_its_formula(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apply("An optimizer", tmp_path)
    monkeypatch.setenv(OWN_CONFIGS, str(tmp_path / "ideas"))
    settings = {"kind": "lion", "kernel": "foreach", "lr": 0.1, "betas": [0.5, 0.9], "clip_norm": None}
    lion = build_dataclass(OPTIMIZERS["lion"], settings)

    def optimizer(start: torch.Tensor) -> DecayedOptimizer:
        return DecayedOptimizer([ParameterGroup(("w",), [nn.Parameter(start.clone())], 0.3)], Method(lion, "decoupled"))

    w, m = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    ours = optimizer(w)
    for step, g in enumerate(torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))):
        ours.parameters[0].grad = g.clone()
        ours.step()
        w, m = w - 0.1 * 0.3 * w - 0.1 * torch.sign(0.5 * m + 0.5 * g), 0.9 * m + 0.1 * g
        torch.testing.assert_close(ours.parameters[0].detach(), w, rtol=1e-12, atol=1e-12)
        if step == 1:  # a restart
            resumed = optimizer(ours.parameters[0].detach())
            resumed.load_state_dict(ours.state_dict())
            ours = resumed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("decay=torch_except_norms", "torch is for sgd and adamw and muon, not for lion"),
        ("optimizer.betas=[1,0]", "optimizer.betas: both must be in"),
        ("optimizer.momentum=0.9", "optimizer.momentum: there is no such setting"),
    ],
)
def test_what_an_optimizer_of_your_own_cannot_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, said: str
) -> None:
    apply("An optimizer", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(OWN_CONFIGS, "")
    with pytest.raises(SystemExit) as left:
        main(["--dry-run", "--config-dir", str(tmp_path / "ideas"), "optimizer=lion", words])
    assert left.value.code == 2 and said in capsys.readouterr().err


def test_images_of_your_own_train(done: Done, tmp_path: Path) -> None:
    apply("Images", tmp_path)
    generator = np.random.default_rng(0)
    for split, count in (("train", 30), ("test", 10)):
        for label, name in enumerate(("bird", "cat", "dog")):
            folder = tmp_path / "data" / "image_folders" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(80 * label, 80 * label + 90, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    words = with_settings(command("Images"), f"{VISION} {QUIET} model.width=4")
    summary = run(words, done)
    assert summary["status"] == "completed" and summary["rows"][-1]["step"] == 3
    assert summary["data"]["name"] == "image_folders"
    assert (summary["data"]["train_samples"], summary["data"]["test_samples"]) == (90, 30)


def test_tokens_of_your_own_train(done: Done, tmp_path: Path) -> None:
    (tmp_path / "my_text.txt").write_text("to be or not to be, that is the question: " * 200)
    (code,) = re.findall(r"```python\n(.*?)```", section("Tokens"), re.DOTALL)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    summary = run(with_settings(command("Tokens"), f"{TEXT} {QUIET} cell=0"), done)
    assert summary["status"] == "completed" and summary["data"]["name"] == "nanogpt"
    assert summary["data"]["train_tokens"] == 42 * 200 * 9 // 10


def test_the_second_command_of_the_model_is_understood(
    done: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In an experiment: its choice of a model gives way to the user's, and so do its settings."""
    apply("A model", tmp_path)
    second = re.findall(r"^    \.venv/bin/weight-decay (.*)$", section("A model"), re.MULTILINE)[1]
    done(["--dry-run", *shlex.split(second)])
    said = capsys.readouterr().out
    assert "  model=mlp\n" in said and "  model.width=512\n" in said
