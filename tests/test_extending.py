"""docs/extending.md works as written: the files of each example are made and trained for three steps."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

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


def run(words: list[str], cwd: Path, sources: Path = ROOT / "src") -> dict[str, Any]:
    """Describe a run, then do it; the summary, with the lines of metrics.jsonl under "rows"."""
    code = f"""
import sys, weight_decay, weight_decay.cli
assert weight_decay.__file__.startswith({str(sources)!r}), weight_decay.__file__
for words in (["--dry-run", *sys.argv[1:]], sys.argv[1:]):
    try:
        weight_decay.cli.main(words)
    except SystemExit as left:
        if left.code:
            raise
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WEIGHT_DECAY_CONFIG")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(sources)}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (cwd / "results" / "runs").iterdir()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return json.loads((folder / "summary.json").read_text()) | {"rows": rows}


def with_settings(words: list[str], settings: str) -> list[str]:
    """What the document says, shorter."""
    more = shlex.split(settings)
    given = {word.partition("=")[0] for word in more}
    return [*(word for word in words if word.partition("=")[0] not in given), *more]


def test_a_model_of_your_own_trains(tmp_path: Path, data_root: Path) -> None:
    apply("A model", tmp_path)
    small = f"{VISION} {QUIET} data.train_size=256 data.test_size=128 data.root={data_root} model.width=16"
    summary = run(with_settings(command("A model"), small), tmp_path)
    assert summary["status"] == "completed" and summary["rows"][-1]["step"] == 3
    assert summary["parameters"] == (3 * 16**2 + 1) * 16 + (16 + 1) * 16 + (16 + 1) * 10
    # The probes that know only some layers know these.
    assert summary["final"]["ema/jacobian/mean_square"] > 0
    assert summary["folder"].startswith("procedural-mlp-")


def test_images_of_your_own_train(tmp_path: Path) -> None:
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
    summary = run(words, tmp_path)
    assert summary["status"] == "completed" and summary["rows"][-1]["step"] == 3
    assert summary["data"]["name"] == "image_folders"
    assert (summary["data"]["train_samples"], summary["data"]["test_samples"]) == (90, 30)


def test_tokens_of_your_own_train(tmp_path: Path) -> None:
    (tmp_path / "my_text.txt").write_text("to be or not to be, that is the question: " * 200)
    (code,) = re.findall(r"```python\n(.*?)```", section("Tokens"), re.DOTALL)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    summary = run(with_settings(command("Tokens"), f"{TEXT} {QUIET} cell=0"), tmp_path)
    assert summary["status"] == "completed" and summary["data"]["name"] == "nanogpt"
    assert summary["data"]["train_tokens"] == 42 * 200 * 9 // 10


def test_the_second_command_of_the_model_is_understood(tmp_path: Path) -> None:
    """In an experiment: its choice of a model gives way to the user's, and so do its settings."""
    apply("A model", tmp_path)
    second = re.findall(r"^    \.venv/bin/weight-decay (.*)$", section("A model"), re.MULTILINE)[1]
    done = subprocess.run(
        [sys.executable, "-m", "weight_decay", "--dry-run", *shlex.split(second)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "  model=mlp\n" in done.stdout and "  model.width=512\n" in done.stdout
