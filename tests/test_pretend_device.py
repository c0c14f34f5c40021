"""Everything that runs, on a device made in Python: what would crash on a GPU crashes here.

`pretend_runs.py` makes each run twice, on the CPU and on the pretend device; all recorded numbers, of branches too, and
the final weights must be equal bit for bit. In processes of their own, since a device is registered for a whole one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import forked
import pretend_device

HERE = Path(__file__).resolve().parent
EXPERIMENTS = {folder.name for folder in (HERE.parent / "configs" / "experiment").iterdir() if folder.is_dir()}

pytestmark = pytest.mark.skipif(pretend_device.MISSING is not None, reason=str(pretend_device.MISSING))


def both_devices(folder: Path, *groups: str) -> dict[str, str | None]:
    """What `pretend_runs.py` finds wrong with each run of the groups; None where nothing is."""
    done = forked.run([str(HERE / "pretend_runs.py"), str(folder), str(folder / "data"), *groups])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def problems(found: dict[str, str | None]) -> dict[str, str]:
    return {title: wrong for title, wrong in found.items() if wrong is not None}


def test_both_regimes_with_all_they_measure_and_after_a_crash(tmp_path: Path) -> None:
    found = both_devices(tmp_path, "main", "resumed")
    assert not problems(found)
    assert len([title for title in found if title.startswith("resumed")]) == 3


def test_every_precision_optimizer_and_decay(tmp_path: Path) -> None:
    found = both_devices(tmp_path, "numerics")
    assert not problems(found)
    for group in ("precision", "optimizer", "decay"):
        for file in (HERE.parent / "configs" / group).glob("*.yaml"):
            assert any(file.stem in title.split() for title in found), file.stem


def test_every_experiment(tmp_path: Path) -> None:
    found = both_devices(tmp_path, "experiments")
    assert not problems(found)
    there = {title.removeprefix("experiments: ").partition(":")[0] for title in found}
    assert there <= EXPERIMENTS and len(there) > 10  # others are of a kind that one of these has


def test_the_device_refuses_what_a_gpu_refuses(tmp_path: Path) -> None:
    mistakes = """
import torch, pretend_device
device = pretend_device.install()
on, off = torch.ones(3, device=device), torch.ones(3)
for mistake in (lambda: on + off, lambda: torch.stack([on, off]), lambda: off.add_(on), lambda: off[on.long()],
                lambda: torch.cat([on, torch.tensor([1.0])]), lambda: torch.stack([on.sum(), torch.tensor(1.0)]),
                lambda: on.numpy(), lambda: on.tolist(), lambda: torch.dot(on, off), lambda: off @ on[:, None]):
    try:
        mistake()
    except (RuntimeError, TypeError):
        continue
    raise SystemExit("not refused")
assert torch.equal((on + torch.tensor(2.0)).cpu(), off + 2) and on[off.long()].device == device
"""
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    done = subprocess.run(
        [sys.executable, "-c", mistakes], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
