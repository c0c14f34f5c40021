"""Lengths of training written the way people say them: "100 epochs", "5M samples", "960 steps", "50%".

One written length means different numbers of steps for different data sets and batch sizes, and the paper states
its settings in epochs, iterations and presentations alike. A `Span` keeps what was written and turns it into steps
when the run's `Clock` is known.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

UNITS = ("steps", "epochs", "samples", "tokens", "%")
_PATTERN = re.compile(r"^\s*([0-9]*\.?[0-9]+(?:[eE][0-9]+)?)\s*([kM]?)\s*(steps?|epochs?|samples?|tokens?|%)\s*$")
_LONGEST = 60
_MULTIPLE = {"": 1.0, "k": 1e3, "M": 1e6}


@dataclass(frozen=True)
class Clock:
    """What turns a written length into steps.

    batch_size: samples (images or sequences) per optimizer step.
    epoch_samples: samples in one pass over the training set.
    tokens_per_sample: the context length of a language model, 1 for images.
    total_steps: length of the whole run, the base of "%"; 0 while it is not known yet.
    """

    batch_size: int
    epoch_samples: int
    tokens_per_sample: int = 1
    total_steps: int = 0


@dataclass(frozen=True)
class Span:
    """A length of training: `value` in one of `UNITS`."""

    value: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> Span:
        """Read "100 epochs", "1 step", "5M samples", "50%"; ValueError says what is accepted."""
        # Matching a pattern of repetitions takes the square of the length.
        found = _PATTERN.match(text) if len(text) <= _LONGEST else None
        if not found:
            raise ValueError(
                f'"{text[:_LONGEST]}" is not a length; write for example "960 steps", "100 epochs", "5M samples" '
                'or "50%"'
            )
        if not math.isfinite(float(found[1]) * _MULTIPLE[found[2]]):
            raise ValueError(f'"{text}" is too long to count')
        unit = found[3] if found[3] == "%" else found[3].rstrip("s") + "s"
        return cls(float(found[1]) * _MULTIPLE[found[2]], unit)

    def __str__(self) -> str:
        value = int(self.value) if self.value == int(self.value) else self.value
        if self.unit == "%":
            return f"{value}%"
        return f"{value} {self.unit if value != 1 else self.unit[:-1]}"

    def check_share(self, name: str) -> None:
        """ValueError if this is more than the whole run."""
        if self.unit == "%" and self.value > 100:
            raise ValueError(f"{name}: must lie within the run, got {self}")

    def steps(self, clock: Clock) -> int:
        """The number of optimizer steps, rounded to the nearest whole step (halves up) and never below 0."""
        scale = {
            "steps": 1.0,
            "epochs": clock.epoch_samples / clock.batch_size,
            "samples": 1.0 / clock.batch_size,
            "tokens": 1.0 / (clock.batch_size * clock.tokens_per_sample),
            "%": clock.total_steps / 100.0,
        }[self.unit]
        return max(0, math.floor(self.value * scale + 0.5))

    def every(self, clock: Clock) -> int:
        """As a cadence: at least one step."""
        return max(1, self.steps(clock))
