"""Settings of tiny runs of both regimes, and what such a run left behind; without the test runner."""

from __future__ import annotations

import gzip
import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from weight_decay.config.run import RunConfig, folder_name

# Images of each file in `write_fashion_mnist`, where the published set has 60,000 and 10,000.
FASHION_MNIST = {"train": 300, "t10k": 140}

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


def folder_of(config: RunConfig) -> Path:
    """Where a run lies."""
    return Path(config.execution.results) / "runs" / folder_name(config)


def until(what: str, condition: Callable[[], Any], seconds: float = 120) -> Any:
    """Wait for the condition to give something true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds:.0f} s in vain for {what}")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without the measured times, which differ between any two runs."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("time/", "throughput/"))} for line in lines]


def read_summary(folder: Path) -> dict[str, Any]:
    """summary.json."""
    return json.loads((folder / "summary.json").read_text())


def idx(array: np.ndarray) -> bytes:
    """An array of bytes in the idx format of MNIST and its relatives."""
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_fashion_mnist(
    folder: Path, style: str = "{}-{}-idx{}-ubyte", counts: dict[str, int] | None = None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The four files with random pixels; a name that ends in .gz is compressed."""
    folder.mkdir(parents=True, exist_ok=True)
    generator, arrays = np.random.default_rng(5), {}
    for prefix, count in (counts or FASHION_MNIST).items():
        pixels = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        arrays[prefix] = pixels, labels
        for what, array in (("images", pixels), ("labels", labels)):
            name = style.format(prefix, what, array.ndim)
            (folder / name).write_bytes(gzip.compress(idx(array)) if name.endswith(".gz") else idx(array))
    return arrays
