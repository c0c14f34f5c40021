"""Which parameters each decay rule matches, and what a rule seems to have missed: for the dry run."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from torch import nn

from weight_decay.config.run import RunConfig
from weight_decay.optim.decay import ANY, DecayRule, first_match, holders
from weight_decay.training.build import decay_rules, shapes_of


def what_decays(config: RunConfig) -> list[str]:
    """A line for each rule with what it matches first, then one for each parameter that it seems to have missed."""
    return list(_what_decays(shapes_of(config), tuple(decay_rules(config))))


@functools.cache  # of thousands of cells few differ in this
def _what_decays(model: nn.Module, rules: tuple[DecayRule, ...]) -> list[str]:
    held_by = holders(model)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    matched = first_match(rules, trained, held_by)
    lines = []
    for number, rule in enumerate(rules):
        names = [name for name in trained if matched[name] == number]
        weights = sum(trained[name].numel() for name in names)
        lines.append(f"{_said(rule)}: {len(names)} parameters, {weights:,} weights{_listed(names)}")
    fixed = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    if fixed:
        lines.append(f"not trained: {len(fixed)} parameters{_listed(fixed)}")
    return lines + missed(rules, trained, matched, held_by)


def missed(
    rules: Sequence[DecayRule], trained: dict[str, nn.Parameter], matched: dict[str, int], held_by: dict[str, str]
) -> list[str]:
    """A warning for every exemption that speaks of norms or biases and leaves some of them decaying."""
    warnings = []
    exempting = " ".join(rule.match + " " + rule.module for rule in rules if rule.scale == 0).lower()
    decaying = [name for name in trained if rules[matched[name]].scale > 0]
    in_norms = [name for name in decaying if "norm" in held_by[name].lower()]
    if "norm" in exempting and in_norms:
        warnings.append(
            f"warning: a rule exempts norms, but {len(in_norms)} of their parameters decay{_listed(in_norms)}; their "
            "names do not say that they are norms, so add the rule {match: '.*', module: Norm, scale: 0}"
        )
    vectors = [name for name in decaying if trained[name].dim() < 2 and name not in in_norms]
    if "bias" in exempting and vectors:
        warnings.append(
            f"warning: a rule exempts biases, but {len(vectors)} vectors decay{_listed(vectors)}; if they are biases "
            "under another name, add a rule for them"
        )
    return warnings


def _said(rule: DecayRule) -> str:
    held = "" if rule.module == ANY else f", module: {rule.module!r}"
    return f"{{match: {rule.match!r}{held}, scale: {rule.scale:g}}}"


def _listed(names: Sequence[str]) -> str:
    """Names, those that differ in layer numbers alone as one: `blocks.*.norm.weight (12)`."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(re.sub(r"(?<![^.])\d+(?![^.])", "*", name), []).append(name)
    said = [f"{pattern} ({len(those)})" if len(those) > 1 else those[0] for pattern, those in alike.items()]
    return ": " + ", ".join(said) if said else ""
