"""The learning rate of every step: the paper's schedules, and the one that matches a reference run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from weight_decay.config.groups import PrecisionConfig
from weight_decay.config.schema import check_size, require
from weight_decay.config.span import Span


@dataclass(frozen=True)
class ConstantSchedule:
    """The same learning rate throughout."""

    kind: Literal["constant"]


@dataclass(frozen=True)
class TwoPhaseSchedule:
    """The paper's vision schedule: η until `drop_at`, then `final_lr` (Fig 2)."""

    kind: Literal["two_phase"]
    drop_at: Span
    final_lr: float

    def __post_init__(self) -> None:
        check_size("final_lr", self.final_lr)


@dataclass(frozen=True)
class WarmupCosineSchedule:
    """Linear warm-up, then a cosine to `final_fraction` × η at `decay_until` (Fig 6)."""

    kind: Literal["warmup_cosine"]
    warmup: Span
    decay_until: Span
    final_fraction: float

    def __post_init__(self) -> None:
        require(0 <= self.final_fraction <= 1, f"final_fraction: must be in [0, 1], got {self.final_fraction:g}")


@dataclass(frozen=True)
class MatchedSchedule:
    """The learning rate that gives this run the effective learning rate of a reference run (Fig 7).

    The reference is the run that differs from this one only in its decay, `reference_strength`, in its precision (null:
    the same), and in its schedule, warm-up and cosine with the three settings below; or, if `reference` is given, the
    finished run of that id in the same results, or of that folder.
    norm, power: match η/‖w‖^power with one norm of all weights or one for each.
    """

    kind: Literal["matched_effective_lr"]
    reference: str | None
    reference_strength: float | None
    reference_precision: PrecisionConfig | None
    warmup: Span
    decay_until: Span
    final_fraction: float
    norm: Literal["whole", "per_matrix"]
    power: Literal[1, 2]

    def __post_init__(self) -> None:
        require(
            (self.reference is None) != (self.reference_strength is None),
            "reference: give either the id or folder of a finished run, or the reference_strength of one like this",
        )
        check_size("reference_strength", self.reference_strength, zero=True)
