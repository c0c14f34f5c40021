"""The groups a run's config is made of, one dataclass for each choice; `run.py` puts them together.

Each checks its own values: the ValueError starts with the name of the field, and `plain.py` adds where it is.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from weight_decay.config.schema import EXECUTION, check_name, check_seed, check_size, off, require
from weight_decay.config.span import Clock, Span


@dataclass(frozen=True)
class ImageData:
    """Labelled images; each kind is a class of its own in `data/images/`, with how it is loaded.

    seed: drives the procedural generator and the nested choice of a subset.
    root: the folder in which all data sets lie; name: this one's folder there, null for the usual one.
    drop_last: an epoch has whole batches only, as in the released code: 390 steps of 128 for 50,000 images. Otherwise
        a batch may straddle epochs, and no image is left out of one.
    order: of the training images: shuffled anew every epoch, one shuffle repeated, or as stored.
    augment: training images are cropped at random from a margin of black, an eighth of their size, and flipped.

    Of a kind: `named`, whether it may have another folder than the usual one; `drawn`, whether the config alone
    determines its content; `home`, where it lies and how it is made, None if it is made on the spot; `sizes`, its
    training and test images where it comes with a split.
    """

    kind: str
    name: str | None = field(metadata=off(None))
    image_size: int
    classes: int
    train_size: int | None
    test_size: int | None
    seed: int
    normalise: bool
    drop_last: bool = field(metadata=off(False))
    order: Literal["shuffled", "repeated", "stored"] = field(metadata=off("shuffled"))
    augment: bool = field(metadata=off(False))
    root: str = field(metadata=EXECUTION)
    regime: ClassVar[str] = "over_training"
    named: ClassVar[bool] = False
    drawn: ClassVar[bool] = False
    home: ClassVar[Any] = None
    sizes: ClassVar[tuple[int, int] | None] = None

    def __post_init__(self) -> None:
        check_seed("seed", self.seed)
        require(8 <= self.image_size <= 4096, f"image_size: must be from 8 to 4096 pixels, got {self.image_size}")
        check_name(self.name, self.kind, self.named)
        require(self.classes >= 2, f"classes: must be at least 2, got {self.classes}")
        for name in ("train_size", "test_size"):
            size = getattr(self, name)
            require(
                size is None or size > 0,
                f"{name}: must be a positive number of images or null for all, got {size}",
            )

    def load(self, split: str) -> Any:
        """The whole split "train" or "test" as an `ImageSet`; UserError if it is missing or damaged."""
        raise NotImplementedError


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


@dataclass(frozen=True)
class ModelConfig:
    """A network: each kind is a class of its own in `models/`, with its settings and how it is built.

    regime: the one whose data it reads.
    """

    kind: str
    regime: ClassVar[str] = "over_training"

    def build(self, data: Any) -> Any:
        """The network for this data, its weights not drawn yet; on the meta device: shapes alone."""
        raise NotImplementedError

    def forward_operations(self, data: Any) -> float | None:
        """Floating-point operations of one forward pass of one sample; None: counted in a pass that is made."""
        return None

    def impossible_on(self, kind: str, precision: PrecisionConfig) -> str | None:
        """Why no device of this kind can compute it, known without trying; None if one may."""
        return None

    def kernels(self, data: Any, precision: PrecisionConfig, device: Any) -> dict[str, Any]:
        """What summary.json says of how the network computes here; UserError if it cannot as the config asks."""
        return {}


@dataclass(frozen=True)
class OptimizerConfig:
    """What moves the weights; each kind is a class of its own in `optim/optimizer_kinds/`, with its settings.

    clip_norm: largest norm of the whole gradient; null means no clipping.
    kernel: torch's fused kernels or its foreach ones; with bfloat16 weights they round at different places, and
    the foreach AdamW then loses weight decay that the fused one keeps.

    Of a kind: `lr_on_device`, whether it can read η from device memory.
    """

    kind: str
    kernel: Literal["fused", "foreach"] = field(metadata=off("fused"))
    lr: float
    clip_norm: float | None
    lr_on_device: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_size("lr", self.lr)
        check_size("clip_norm", self.clip_norm)

    @property
    def decoupled(self) -> bool:
        """Whether it decays its groups decoupled by their "weight_decay"; otherwise that is done beside it."""
        return False

    def unfit(self, regime: str, precision: str) -> str | None:
        """Why no run of this regime in this precision can have it, starting with the setting; None if one can."""
        return None

    def build(self, groups: Any) -> Any:
        """The `torch.optim.Optimizer` of these groups: dicts with "params", their "names" and their "weight_decay"."""
        raise NotImplementedError

    def begin(self, optimizer: Any) -> None:
        """Put into the built optimizer's state what must be there before its first step."""


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


@dataclass(frozen=True)
class DecayRuleConfig:
    """One line of the ordered list: parameters whose name matches the regex decay with `scale` × strength.

    module: a second regex, which must match the class of the module that holds the parameter (`Norm`, `Embedding`): a
        batch norm inside a Sequential is called `1.weight`.
    """

    match: str
    scale: float
    module: str = field(metadata=off(".*"))

    def __post_init__(self) -> None:
        check_size("scale", self.scale, zero=True)


@dataclass(frozen=True)
class DecayConfig:
    """λ and where it acts; each kind is a class of its own in `optim/decay_kinds/`, with its formula and its source.

    window: when it acts; null: always. A branch has its own strength and no window.
    own: the optimizer or the gradient does it, as ever, and not a rule beside the optimizer.
    penalty: it is, without momentum and an adaptive step, the gradient of `penalty` · λ ‖w‖²; None: of no such thing.
    optimizers: the kinds of optimizer that it can be used with; None: all.
    """

    kind: str
    strength: float
    rules: tuple[DecayRuleConfig, ...]
    window: Window | None = field(metadata=off(None))
    own: ClassVar[bool] = False
    penalty: ClassVar[float | None] = None
    optimizers: ClassVar[tuple[str, ...] | None] = None

    def __post_init__(self) -> None:
        for strength in (self.strength, *(self.strength * rule.scale for rule in self.rules)):
            check_size("strength", strength, zero=True)
        require(
            len(self.rules) > 0,
            "rules: at least one rule is needed; {match: '.*', scale: 1} decays every parameter",
        )

    def rule(self, clock: Clock) -> Any:
        """What makes the rule for the parameters that decay: a `RuleFactory`; the kind itself if it is the optimizer's.

        clock: what turns written lengths into steps.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class DivergenceConfig:
    """A run has diverged on NaN/Inf, or when its loss has gone over a bar and not come back (DivergenceMonitor).

    Bars: `threshold` of the fall from the start to the best level so far; for text also `text_rise` nats above the
    best level within the last `lasting` (0: no such bar). Not come back: for `patience` and for `lasting`. The first
    `grace` of the run is exempt.

    `text_rise` and `lasting` are left out of the identity at these values although they are not off: they came when
    runs had been published, and a verdict changes no number before it.
    """

    threshold: float
    patience: Span
    grace: Span
    text_rise: float = field(metadata=off(0.25))
    lasting: Span = field(metadata=off(Span(5, "%")))

    def __post_init__(self) -> None:
        require(self.threshold > 0, f"threshold: must be positive, got {self.threshold:g}")
        require(self.text_rise >= 0, f"text_rise: must be positive, or 0 for none, got {self.text_rise:g}")


@dataclass(frozen=True)
class BranchConfig:
    """A side run from snapshots of this one: the same loop with another schedule and decay (Figs 5, 6, 15).

    start: first snapshot; every: distance between snapshots (null: only the first). Constant `lr`, decay `strength`.
    """

    name: str
    start: Span
    every: Span | None
    duration: Span
    lr: float
    strength: float
    keep_optimizer_state: bool

    def __post_init__(self) -> None:
        require(self.duration.value > 0, f'duration: must be a positive length, got "{self.duration}"')
        require(
            self.name.isidentifier() and self.name != "main",
            f'name: letters, digits and "_" only, and not "main", which is the run itself, got "{self.name}"',
        )
        self.start.check_share("start")
        require(self.every is None or self.every.value > 0, f'every: must be a positive length, got "{self.every}"')
        check_size("lr", self.lr)
        check_size("strength", self.strength, zero=True)
