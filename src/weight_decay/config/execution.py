"""The groups that no number of a run depends on: where it is computed, what is kept of it, who is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from weight_decay.config.schema import require


@dataclass(frozen=True)
class ExecutionConfig:
    """Where and how a run is computed; its results may differ from another machine's only in rounding.

    compile: whether forward and backward are compiled; auto: on an accelerator, at the scales small and paper, image
        nets without branches as CUDA graphs; graphs: compiled and replayed as CUDA graphs, for nets so small that a
        GPU waits for the host.
    """

    device: Literal["auto", "cpu", "cuda", "mps", "xpu"]
    threads: int
    compile: Literal["auto", True, False, "graphs"]
    results: str
    progress: bool

    def __post_init__(self) -> None:
        # Torch takes the process down where it cannot start as many as it was told.
        require(
            0 <= self.threads <= 4096,
            f"threads: must be from 1 to 4096, or 0 for torch's own choice, got {self.threads}",
        )


@dataclass(frozen=True)
class CheckpointConfig:
    """How often to save the full state, and how many to keep; `final`: keep the weights of a finished run.

    Never changes a number of the run.
    """

    every_seconds: float
    keep: int
    final: bool

    def __post_init__(self) -> None:
        require(self.every_seconds >= 0, f"every_seconds: must not be negative, got {self.every_seconds:g}")
        require(self.keep >= 1, f"keep: at least one checkpoint must be kept, got {self.keep}")


@dataclass(frozen=True)
class TrackingConfig:
    """W&B as a mirror of the run's own files. `offline` needs no account and no network."""

    mode: Literal["offline", "online", "disabled"]
    project: str
    entity: str | None


_GROUPS = {"checkpoint", "tracking", "execution"}
"""Of a RunConfig: those that it marks with EXECUTION."""


def is_execution_setting(key: str) -> bool:
    """Whether the dotted setting (or group) says where or how to compute, and cannot change a run's identity."""
    return key.partition(".")[0] in _GROUPS or key == "data.root"
