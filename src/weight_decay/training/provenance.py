"""Where a number comes from: commit, code, versions, machine."""

from __future__ import annotations

import functools
import platform
import subprocess
from importlib.metadata import version
from typing import Any

import torch

from weight_decay.device.choose import device_description
from weight_decay.runs.fingerprint import PACKAGE, code_fingerprint


@functools.cache
def git_commit() -> str | None:
    """The commit of the checkout, with "+changes" if the working tree differs; None outside a checkout."""
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + ("+changes" if _git("status", "--porcelain", "--", "src", "configs") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=PACKAGE, check=True, capture_output=True, text=True).stdout.strip()


@functools.cache
def versions() -> dict[str, str]:
    """Versions of what computes."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "numpy")},
    }


def provenance(device: torch.device) -> dict[str, Any]:
    """What summary.json says about where its numbers come from."""
    return {
        "git_commit": git_commit(),
        "code_fingerprint": code_fingerprint(),
        "versions": versions(),
        "device": device_description(device),
        "threads": torch.get_num_threads(),
    }
