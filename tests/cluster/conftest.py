"""Many tiny cells as a declared experiment, and the tools to disturb and compare them."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]


def declare(folder: Path, cells: int, steps: int) -> dict[str, str]:
    """Copy the config groups to `folder`, add the experiment `dozen` to them; returns the environment for a command."""
    configs = folder / "configs"
    shutil.copytree(REPOSITORY / "configs", configs)
    chosen = {
        "data": "python_text",
        "model": "gpt_micro",
        "optimizer": "adamw",
        "decay": "decoupled_except_norms",
        "schedule": "warmup_cosine",
        "averaging": "language",
        "probes": "language",
        "precision": "float32",
    }
    experiment = {
        "defaults": [*({f"override /{group}": option} for group, option in chosen.items()), "_self_"],
        "about": {"title": "Many tiny cells", "figure": None, "regime": "under_training"},
        "schedule": {"warmup": "3%"},
        "data": {"context": 16, "evaluation_windows": 32},
        "model": {"layers": 2, "width": 16, "heads": 2},
        "batch_size": 4,
        "duration": f"{steps} steps",
        "probes": {
            "log_every": "20 steps",
            "evaluate_every": "200 steps",
            "evaluation_batch": 16,
            "evaluation_train_samples": 32,
        },
        "grid": [{"decay.strength": [0.0, 0.1], "seed": list(range(cells // 2))}],
    }
    (configs / "experiment" / "dozen.yaml").write_text("# @package _global_\n" + yaml.safe_dump(experiment))
    return {
        **os.environ,
        "WEIGHT_DECAY_CONFIGS": str(configs),
        "PYTHONPATH": str(REPOSITORY / "src"),
        "OMP_NUM_THREADS": "1",
    }


def command(results: Path, *words: str) -> list[str]:
    """The command line of the experiment `dozen`."""
    line = [sys.executable, "-m", "weight_decay", *words, "experiment=dozen", "scale=micro", "tracking=disabled"]
    quiet = ["checkpoint.every_seconds=0.3", "execution.device=cpu", "execution.progress=false"]
    return [*line, *quiet, f"execution.results={results}", f"data.root={results.parent / 'data'}"]


def summary(folder: Path) -> dict[str, Any]:
    """summary.json of a run, empty if it has none."""
    try:
        return json.loads((folder / "summary.json").read_text())
    except FileNotFoundError:
        return {}


def numbers(folder: Path) -> tuple[Any, ...]:
    """Everything that an undisturbed run must agree with: weights, record and summary without measured times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in line.items() if not k.startswith(("time/", "throughput/"))} for line in lines]
    told = summary(folder)
    return told["status"], told["weights_sha256"], told["step"], told["data"], kept


def same_numbers(results: Path, undisturbed: Path) -> int:
    """Assert that both results hold the same runs with the same numbers, and the same tables; returns how many."""
    names = sorted(folder.name for folder in (undisturbed / "runs").iterdir())
    assert sorted(folder.name for folder in (results / "runs").iterdir()) == names
    for name in names:
        assert numbers(results / "runs" / name) == numbers(undisturbed / "runs" / name), name
    return len(names)
