"""Small runs of both regimes, shared by the tests of the loop, the run folder and the command line."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from weight_decay.cli import make_plan
from weight_decay.config.run import RunConfig

# One thread: results do not depend on how the tests are spread over cores, and two workers fit on two cores.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

TINY_VISION = (
    "data=procedural data.train_size=256 data.test_size=128 model=resnet18 model.width=4 batch_size=32 "
    "duration='6 steps' schedule.drop_at='4 steps' optimizer.lr=0.1 decay.strength=0.01 averaging.ema=[0.9,0.5] "
    "averaging.reestimate_samples=64 probes.log_every='2 steps' probes.evaluate_every='3 steps' "
    "probes.evaluation_batch=64 probes.evaluation_train_samples=128 probes.jacobian_every='6 steps' "
    "probes.jacobian_per_class=1"
)
TINY_TEXT = (
    "data=python_text data.context=16 data.evaluation_windows=32 model=gpt_micro model.width=16 model.heads=2 "
    "optimizer=adamw optimizer.lr=0.01 decay=decoupled_except_norms decay.strength=0.1 schedule=warmup_cosine "
    "schedule.warmup='2 steps' averaging=language probes=language batch_size=4 duration='6 steps' "
    "probes.log_every='2 steps' probes.evaluate_every='3 steps' probes.evaluation_batch=16 "
    "probes.evaluation_train_samples=32"
)
QUIET = "tracking=disabled execution.progress=false execution.device=cpu"


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of embedded data for all workers of a test session."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "embedded-data"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def words(tmp_path: Path, data_root: Path) -> Callable[[str], list[str]]:
    """Command-line words of a tiny run, "vision" or "text", with further settings after it."""

    def make(regime: str, more: str = "") -> list[str]:
        text = f"{TINY_VISION if regime == 'vision' else TINY_TEXT} {QUIET} {more}"
        split = shlex.split(text)
        folders = [f"data.root={data_root}", f"execution.results={tmp_path / 'results'}"]
        given = {word.partition("=")[0] for word in shlex.split(more)}
        kept = [word for i, word in enumerate(split) if _last(split, i)]
        return kept + [word for word in folders if word.partition("=")[0] not in given]

    return make


def _last(words: list[str], index: int) -> bool:
    key = words[index].partition("=")[0]
    return all(word.partition("=")[0] != key for word in words[index + 1 :])


@pytest.fixture
def tiny(words: Callable[[str], list[str]]) -> Callable[..., RunConfig]:
    """The config of a tiny run."""

    def make(regime: str, more: str = "") -> RunConfig:
        return make_plan(words(regime, more))[0].cells[0].config

    return make


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without the measured times, which differ between any two runs."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("time/", "throughput/"))} for line in lines]


def read_summary(folder: Path) -> dict[str, Any]:
    """summary.json."""
    return json.loads((folder / "summary.json").read_text())
