"""Which parameters decay, and how strongly: ordered rules turned into parameter groups."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import regex
from torch import nn

from weight_decay.errors import UserError

_LONGEST_PATTERN = 1000
_LONGEST_SECONDS = 1.0
"""A pattern is matched against a few hundred short names in microseconds; Python's own `re` has no such bound."""


@dataclass(frozen=True)
class DecayRule:
    """One line of an ordered list: parameters whose name matches decay with `scale` times the strength.

    match: regular expression, searched anywhere in the parameter's name (as `re.search` does).
    scale: factor on λ; 0 exempts the parameter.
    """

    match: str
    scale: float = 1.0


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share one decay strength, in the model's order."""

    names: tuple[str, ...]
    parameters: list[nn.Parameter]
    weight_decay: float


def decay_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], rules: Sequence[DecayRule], strength: float
) -> list[ParameterGroup]:
    """Put every trainable parameter in exactly one group by the first rule that matches its name.

    The paper decays everything in the vision nets (one rule, `.*`) and everything except LayerNorm in
    the language model (two rules: the norm with scale 0, then `.*`); Fig 20 decays LayerNorm too.
    Only names and `requires_grad` are read, so this works on the meta device, before any memory is
    spent on a model.

    Returns groups with distinct `weight_decay` = strength · scale, ordered by their first parameter.

    Raises UserError if the strength or a scale is negative or not finite, a pattern is not a regular
    expression or takes too long, a trainable parameter is matched by no rule, or strength > 0 decays nothing.
    """
    if not (math.isfinite(strength) and strength >= 0):
        raise UserError(f"decay.strength is {strength}; use a finite number that is 0 or more.")
    patterns = [(_compiled(rule), rule.scale) for rule in rules]

    members: dict[float, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        scale = next((scale for pattern, scale in patterns if _found(pattern, name)), None)
        if scale is None:
            raise UserError(
                f"no decay rule matches the parameter '{name}'; "
                "end decay.rules with a rule that matches everything, such as '.*'."
            )
        members.setdefault(strength * scale, []).append((name, parameter))

    if strength > 0 and not any(weight_decay > 0 for weight_decay in members):
        raise UserError(
            f"decay.strength is {strength} but decay.rules exempt every parameter; "
            "set the strength to 0 or let a rule with a positive scale match."
        )
    return [
        ParameterGroup(
            names=tuple(name for name, _ in pairs),
            parameters=[parameter for _, parameter in pairs],
            weight_decay=weight_decay,
        )
        for weight_decay, pairs in members.items()
    ]


def _found(pattern: regex.Pattern[str], name: str) -> bool:
    try:
        return pattern.search(name, timeout=_LONGEST_SECONDS) is not None
    except TimeoutError:
        raise UserError(
            f"the decay rule '{pattern.pattern}' takes more than {_LONGEST_SECONDS:g} s to match '{name}'; "
            "write it without repetitions inside repetitions."
        ) from None


def _compiled(rule: DecayRule) -> regex.Pattern[str]:
    if not (math.isfinite(rule.scale) and rule.scale >= 0):
        raise UserError(f"the decay rule '{rule.match}' has scale {rule.scale}; use a finite number that is 0 or more.")
    if len(rule.match) > _LONGEST_PATTERN:
        raise UserError(
            f"a decay rule has {len(rule.match)} characters ('{rule.match[:40]}...'); "
            f"shorten it to at most {_LONGEST_PATTERN}."
        )
    try:
        return regex.compile(rule.match)
    except (regex.error, RecursionError) as error:
        raise UserError(
            f"the decay rule '{rule.match}' is not a valid regular expression ({error}); correct the pattern."
        ) from error
