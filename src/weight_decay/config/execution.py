"""The group that says where a run is computed, and that no number of it depends on."""

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
