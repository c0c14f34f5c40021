"""When decay acts: only early, only late, ramped, or on a schedule of its own; any kind can have a window."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from weight_decay.config.schema import check_size, require
from weight_decay.config.span import Clock, Span

Factor = Callable[[int], float]
"""What the strength is multiplied with at a step, counted from 0."""


@dataclass(frozen=True)
class OnlyEarly:
    """Decay at the steps before `until`, none from then on (Golatkar et al., 1905.13277)."""

    kind: Literal["only_early"]
    until: Span

    def factor(self, clock: Clock) -> Factor:
        """1, then 0; ValueError if it never falls to 0."""
        until = self.until.steps(clock)
        require(until < clock.total_steps, f"until: {self.until} is step {until} of {clock.total_steps}, so no end")
        return lambda step: 1.0 if step < until else 0.0


@dataclass(frozen=True)
class OnlyLate:
    """No decay before step `start` (Golatkar et al., 1905.13277)."""

    kind: Literal["only_late"]
    start: Span

    def factor(self, clock: Clock) -> Factor:
        """0, then 1; ValueError if it never rises to 1."""
        start = self.start.steps(clock)
        require(start < clock.total_steps, f"start: {self.start} is step {start} of {clock.total_steps}, so never")
        return lambda step: 0.0 if step < start else 1.0


@dataclass(frozen=True)
class Points:
    """The factor goes straight from one of `factors` to the next at the steps `at`; before and after it is held.

    A ramp up over the first tenth: `{kind: points, at: [0%, 10%], factors: [0, 1]}`. Two points at one step are a jump.
    """

    kind: Literal["points"]
    at: tuple[Span, ...]
    factors: tuple[float, ...]

    def __post_init__(self) -> None:
        require(len(self.at) == len(self.factors), f"at: {len(self.at)} lengths for {len(self.factors)} factors")
        require(len(self.at) > 0, "at: needs at least one point")
        for factor in self.factors:
            check_size("factors", factor, zero=True)

    def factor(self, clock: Clock) -> Factor:
        """Linear between the points; ValueError if they are out of order."""
        steps, factors = [span.steps(clock) for span in self.at], self.factors
        require(steps == sorted(steps), f"at: must be in order, got steps {steps}")

        def value(step: int) -> float:
            right = bisect_right(steps, step)
            if right in (0, len(steps)):
                return factors[0] if right == 0 else factors[-1]
            share = (step - steps[right - 1]) / (steps[right] - steps[right - 1])
            return factors[right - 1] + share * (factors[right] - factors[right - 1])

        return value


Window = OnlyEarly | OnlyLate | Points
