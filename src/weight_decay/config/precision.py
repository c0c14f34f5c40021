"""Number formats of weights and products."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from weight_decay.config.schema import off, require


@dataclass(frozen=True)
class PrecisionConfig:
    """Number formats. "Autocast" keeps float32 weights; `bfloat16` stores the weights themselves in bfloat16.

    rounding, of bfloat16 weights only: `kernel` leaves it to torch's own kernel, whose moments are bfloat16 too;
    the others keep float32 moments and round once per step, to nearest, stochastically or Kahan-compensated.
    """

    kind: Literal["float32", "tf32", "bfloat16_autocast", "float16_autocast", "bfloat16"]
    rounding: Literal["kernel", "nearest", "stochastic", "kahan"] = field(metadata=off("kernel"))

    def __post_init__(self) -> None:
        require(
            self.rounding == "kernel" or self.kind == "bfloat16",
            f"rounding: {self.rounding} is for bfloat16 weights; with {self.kind} it must be kernel",
        )
