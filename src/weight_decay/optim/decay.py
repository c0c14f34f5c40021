"""Which parameters decay, and how strongly: ordered rules turned into parameter groups."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import regex
from torch import nn

from weight_decay.errors import UserError

_LONGEST_PATTERN = 1000
_LONGEST_SECONDS = 1.0
"""A pattern is matched against a few hundred short names in microseconds; Python's own `re` has no such bound."""


ANY = ".*"


@dataclass(frozen=True)
class DecayRule:
    """One line of an ordered list: parameters that match decay with `scale` times the strength.

    match: regular expression, searched anywhere in the parameter's name (as `re.search` does).
    scale: factor on λ; 0 exempts the parameter.
    module: the same for the class of the module that holds the parameter, such as `Norm`: a batch norm inside a
        Sequential is called `1.weight`, and only its class says what it is.
    """

    match: str
    scale: float = 1.0
    module: str = ANY


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share one decay strength, in the model's order."""

    names: tuple[str, ...]
    parameters: list[nn.Parameter]
    weight_decay: float


def holders(model: nn.Module) -> dict[str, str]:
    """The class of the module that holds each parameter, by the parameter's name; a shared one's first holder."""
    modules = dict(model.named_modules(remove_duplicate=False))
    return {name: type(modules[name.rpartition(".")[0]]).__name__ for name, _ in model.named_parameters()}


def first_match(rules: Sequence[DecayRule], names: Iterable[str], held_by: Mapping[str, str]) -> dict[str, int]:
    """The number of the first rule that matches each parameter; UserError if there is none, or a pattern is bad.

    held_by: as `holders` gives it; read for rules with a `module` alone.
    """
    patterns = [(_compiled(rule, rule.match), _compiled(rule, rule.module)) for rule in rules]

    def matches(index: int, name: str) -> bool:
        in_name, in_module = patterns[index]
        return _found(in_name, name) and (rules[index].module == ANY or _found(in_module, held_by[name]))

    matched = {}
    for name in names:
        number = next((index for index in range(len(rules)) if matches(index, name)), None)
        if number is None:
            raise UserError(
                f"no decay rule matches the parameter '{name}'; "
                "end decay.rules with a rule that matches everything, such as '.*'."
            )
        matched[name] = number
    return matched


def decay_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    rules: Sequence[DecayRule],
    strength: float,
    held_by: Mapping[str, str] = MappingProxyType({}),
) -> list[ParameterGroup]:
    """Put every trainable parameter in exactly one group by the first rule that matches it.

    The paper decays everything in the vision nets (one rule, `.*`) and everything except LayerNorm in
    the language model (two rules: the norm with scale 0, then `.*`); Fig 20 decays LayerNorm too.
    Only names and `requires_grad` are read, and with `held_by` (see `holders`) the class of the module that holds a
    parameter, so this works on the meta device, before any memory is spent on a model.

    Returns groups with distinct `weight_decay` = strength · scale, ordered by their first parameter.

    Raises UserError if the strength or a scale is negative or not finite, a pattern is not a regular
    expression or takes too long, a trainable parameter is matched by no rule, or strength > 0 decays nothing.
    """
    if not (math.isfinite(strength) and strength >= 0):
        raise UserError(f"decay.strength is {strength}; use a finite number that is 0 or more.")
    trained = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
    matched = first_match(rules, [name for name, _ in trained], held_by)
    members: dict[float, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in trained:
        members.setdefault(strength * rules[matched[name]].scale, []).append((name, parameter))

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


def _compiled(rule: DecayRule, pattern: str) -> regex.Pattern[str]:
    if not (math.isfinite(rule.scale) and rule.scale >= 0):
        raise UserError(f"the decay rule '{rule.match}' has scale {rule.scale}; use a finite number that is 0 or more.")
    if len(pattern) > _LONGEST_PATTERN:
        raise UserError(
            f"a decay rule has {len(pattern)} characters ('{pattern[:40]}...'); "
            f"shorten it to at most {_LONGEST_PATTERN}."
        )
    try:
        return regex.compile(pattern)
    except (regex.error, RecursionError) as error:
        raise UserError(
            f"the decay rule '{pattern}' is not a valid regular expression ({error}); correct the pattern."
        ) from error
