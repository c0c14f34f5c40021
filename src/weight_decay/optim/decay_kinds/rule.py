"""What all decay rules share: the weights they act on, the step they act in, and how they join a torch optimizer.

A rule is a small class over lists of tensors and knows nothing of configs: `join` adds one to any torch optimizer, and
`DecayedOptimizer` uses the same two hooks. Only foreach calls on the hot path; nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from weight_decay.device.traits import traits
from weight_decay.errors import UserError


@dataclass(frozen=True)
class Group:
    """Parameters that decay with one strength λ > 0."""

    names: tuple[str, ...]
    weights: list[Tensor]
    strength: float


@dataclass
class Decayed:
    """What a rule may look at: the groups that decay, the optimizer with its moments, and the largest learning rate.

    every: all parameters of the optimizer, decayed or not. peak_lr: η_max of the schedule.
    """

    groups: list[Group]
    optimizer: torch.optim.Optimizer
    peak_lr: float
    every: list[Tensor] = field(default_factory=list)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters that decay, group after group."""
        return tuple(name for group in self.groups for name in group.names)

    @property
    def weights(self) -> list[Tensor]:
        """The parameters that decay, in the order of `names`."""
        return [weight for group in self.groups for weight in group.weights]

    def windows(self) -> Iterator[tuple[Group, slice]]:
        """Each group with where its parameters stand in `names`."""
        first = 0
        for group in self.groups:
            yield group, slice(first, first := first + len(group.weights))


@dataclass
class Step:
    """One optimizer step. lr: η_t. factor: what the strength is multiplied with at this step (1 without a window)."""

    lr: float
    factor: float = 1.0


class Rule:
    """Weight decay beside an optimizer's update u: `before` the optimizer's step, `after` it, or both.

    takes_update: the rule wants u alone and puts the step together itself. The parameters are then zero during the
    optimizer's own step, so that afterwards they hold -η u exactly, whatever the optimizer, and `after` finds the
    weights from before the step in `self.old`.
    """

    takes_update: ClassVar[bool] = False

    def __init__(self, decayed: Decayed) -> None:
        self.decayed = decayed
        self.old: list[list[Tensor]] = []

    def before(self, step: Step) -> None:
        """Act on the weights before the optimizer's step; gradients are there and clipped."""

    def after(self, step: Step) -> None:
        """Act on the weights after the optimizer's step."""

    @torch.no_grad()
    def enter(self, step: Step) -> None:
        """What happens before the optimizer's step: `before`, and the update is isolated if the rule takes it."""
        self.before(step)
        if self.takes_update:
            if not self.old:
                self.old = [[torch.empty_like(w) for w in group.weights] for group in self.decayed.groups]
            for group, old in zip(self.decayed.groups, self.old, strict=True):
                torch._foreach_copy_(old, group.weights)
                torch._foreach_zero_(group.weights)

    @torch.no_grad()
    def leave(self, step: Step) -> None:
        """What happens after the optimizer's step: `after`."""
        self.after(step)

    def metrics(self) -> dict[str, Tensor | float]:
        """What the rule has to say in a run's log: scalars on the device."""
        return {}

    def state(self) -> dict[str, list[Tensor]]:
        """Tensors that must survive a restart, one for each name in `decayed.names`; not copied."""
        return {}

    def restored(self) -> None:
        """Called when `state` has been filled from a checkpoint."""

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """`state` by name: {"what": {parameter: tensor}}."""
        return {key: dict(zip(self.decayed.names, values, strict=True)) for key, values in self.state().items()}

    @torch.no_grad()
    def load_state_dict(self, saved: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Go on from `state_dict`. UserError if it is of another rule or other parameters."""
        own = self.state()
        if set(saved) != set(own):
            raise UserError(
                f"the optimizer state keeps {', '.join(saved) or 'nothing'} for its decay rule, this run's rule "
                f"needs {', '.join(own) or 'nothing'}; start from a checkpoint of the same decay.kind."
            )
        for key, values in own.items():
            if missing := set(self.decayed.names) - set(saved[key]):
                raise UserError(
                    f"the optimizer state has no {key} of '{sorted(missing)[0]}'; start from a checkpoint of a run "
                    "that decays the same parameters."
                )
            for name, value in zip(self.decayed.names, values, strict=True):
                value.copy_(saved[key][name])
        self.restored()


class CountingRule(Rule):
    """A rule that needs to know how many steps it has made; the number survives a restart."""

    def __init__(self, decayed: Decayed) -> None:
        super().__init__(decayed)
        self.steps = 0
        # Kept with each name, as all state is, so that a restart finds it whatever the grouping.
        self._counters = [torch.zeros((), dtype=torch.int64) for _ in decayed.names]

    def count(self) -> None:
        """One more step has been made."""
        self.steps += 1
        self._counters[0].fill_(self.steps)

    def state(self) -> dict[str, list[Tensor]]:
        """How many steps were made."""
        return {"steps": self._counters}

    def restored(self) -> None:
        """Take the number of steps back from the checkpoint."""
        self.steps = int(max(counter.item() for counter in self._counters))


RuleFactory = Callable[[Decayed], Rule]
"""Makes a rule for the parameters it is given: a rule class, or one with its settings bound."""


def dots(left: Sequence[Tensor], right: Sequence[Tensor]) -> list[Tensor]:
    """Inner product of each pair, 0-d: foreach has no sum, but that of the positive part and of the magnitudes."""
    products = torch._foreach_mul(list(left), list(right))
    dtype = torch.promote_types(products[0].dtype, traits(products[0].device).sums)
    magnitudes = torch._foreach_norm(products, 1, dtype=dtype)
    torch._foreach_clamp_min_(products, 0)
    positive = list(torch._foreach_norm(products, 1, dtype=dtype))
    torch._foreach_mul_(positive, 2.0)
    torch._foreach_sub_(positive, magnitudes)
    return positive


def in_dtype(scalars: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """The 0-d tensors in the dtype of the weights they multiply."""
    stacked = torch.stack(list(scalars))
    return list(stacked.to(like[0].dtype).unbind())


def join(
    optimizer: torch.optim.Optimizer, groups: Sequence[Group], make: RuleFactory, peak_lr: float | None = None
) -> Rule:
    """Let a torch optimizer decay the given groups by a rule; its own weight_decay must be 0.

    The learning rate is read from the optimizer's first group at each step. peak_lr: the largest one that the schedule
    reaches; None takes the present one. Returns the rule, whose `state_dict` belongs in a checkpoint beside the
    optimizer's.

    Raises UserError if the optimizer decays by itself, or a strength is not above 0.
    """
    if any(group.get("weight_decay", 0) for group in optimizer.param_groups):
        raise UserError("join: the optimizer has a weight_decay of its own; set it to 0, the rule brings the decay.")
    for group in groups:
        if not group.strength > 0:
            raise UserError(f"join: a group has strength {group.strength}; give the rule those above 0 alone.")
    every: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
    peak = float(optimizer.param_groups[0]["lr"]) if peak_lr is None else peak_lr
    rule = make(Decayed(list(groups), optimizer, peak, every))

    def step() -> Step:
        return Step(float(optimizer.param_groups[0]["lr"]))

    optimizer.register_step_pre_hook(lambda *_: rule.enter(step()))
    optimizer.register_step_post_hook(lambda *_: rule.leave(step()))
    return rule
