"""The pieces of the check: each gives rows, and none takes more than ten minutes on a data-centre GPU."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import correctness
import speed
import torch
from sizes import REAL, TINY, Sizes
from table import Row

from weight_decay.device import compiling

__all__ = ["PIECES", "REAL", "TINY", "run_piece"]

Piece = Callable[[torch.device, Sizes, Path], list[Row]]
PIECES: dict[str, Piece] = {
    "environment": speed.environment,
    "runs": correctness.runs,
    "resume": correctness.resume,
    "main-jobs": correctness.main_jobs,
    "steps-language": speed.steps_language,
    "steps-vision": speed.steps_vision,
    "jacobian": speed.jacobian,
    "together": speed.together,
}


def run_piece(name: str, device: torch.device, sizes: Sizes) -> list[Row]:
    """The rows of a piece; where it crashes, a row that says so, and the other pieces go on."""
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        compiling.BACKEND = sizes.backend
        try:
            return PIECES[name](device, sizes, Path(folder))
        except Exception as error:
            reason: Any = (str(error).splitlines() or [type(error).__name__])[0]
            return [Row(f"ended with {type(error).__name__}: {reason[:120]}", float("nan"), "", "it ends", False)]
