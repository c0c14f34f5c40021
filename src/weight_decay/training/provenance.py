"""Where a number comes from: commit, code, versions, machine."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import re
import subprocess
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from weight_decay.device.choose import device_description
from weight_decay.device.distributed import current
from weight_decay.places import CHECKOUT


@functools.cache
def git_commit() -> str | None:
    """The commit of the checkout, with "+changes" if the working tree differs; None outside a checkout."""
    if CHECKOUT is None:
        return None  # an installed wheel may lie in a repository, but that is not ours
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + ("+changes" if _git("status", "--porcelain", "--", "src", "configs") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=CHECKOUT, check=True, capture_output=True, text=True).stdout.strip()


@functools.cache
def versions() -> dict[str, str]:
    """Versions of what computes, as far as it is installed: training needs no torchvision."""
    found = {"python": platform.python_version()}
    for name in ("torch", "torchvision", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def provenance(device: torch.device) -> dict[str, Any]:
    """What summary.json says about where its numbers come from."""
    return {
        "git_commit": git_commit(),
        "versions": versions(),
        "device": device_description(device),
        "threads": torch.get_num_threads(),
    }


_ENVIRONMENT = (
    "ATEN_CPU_CAPABILITY", "DNNL_DEFAULT_FPMATH_MODE", "DNNL_MAX_CPU_ISA", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS",
    "NVIDIA_TF32_OVERRIDE", "ONEDNN_DEFAULT_FPMATH_MODE", "ONEDNN_MAX_CPU_ISA", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)  # fmt: skip
"""Variables by which libraries compute in other number formats or instructions than the config says."""


def stretch_provenance(device: torch.device, code: str | None, compiled: bool) -> dict[str, Any]:
    """What must be the same from a run's start to its end for it to end bitwise as if it had never been interrupted."""
    return {
        **provenance(device),
        "code_fingerprint": code,
        "processes": current().count,
        "compiled": compiled,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "environment": environment(),
    }


def environment() -> str:
    """The variables that change how libraries compute, as `NAME=value`; empty where none is set, as it should be."""
    return " ".join(f"{name}={os.environ[name]}" for name in _ENVIRONMENT if os.environ.get(name))


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What a stretch of a run was computed under and the next is not, in words: `threads 1, now 2`."""
    named = {"git_commit": "commit", "code_fingerprint": "code"}
    flat = [{**values, **values.get("versions", {})} for values in (before, now)]
    names = [name for name in flat[1] if name != "versions" and name in flat[0] and flat[0][name] != flat[1][name]]
    return [f"{named.get(name, name)} {_short(flat[0][name])}, now {_short(flat[1][name])}" for name in names]


def _short(value: Any) -> str:
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{28}\b", r"\1", "unknown" if value is None else str(value))


def stretches_after(
    state: Mapping[str, Any], first: int, now: Mapping[str, Any], say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The stretches in a checkpoint, and one more where it goes on under other conditions, which is said."""
    # Checkpoints of older versions tell the code alone.
    older = {"from_step": first, "code_fingerprint": state.get("fingerprint")}
    stretches = list(state.get("stretches") or [older])
    if changed := differences(stretches[-1], now):
        stretches.append({"from_step": state["step"], **now})
        say(
            f"goes on under other conditions than it began ({'; '.join(changed)}), so it need not end bitwise as an "
            "uninterrupted run would; its summary keeps where"
        )
    return stretches
