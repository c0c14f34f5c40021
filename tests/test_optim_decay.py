"""Decay rules: every trainable parameter in exactly one group, bad input refused in one sentence."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from weight_decay.errors import UserError
from weight_decay.optim.decay import DecayRule, decay_groups


def small_model(device: str = "cpu") -> nn.Module:
    with torch.device(device):
        model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model[2].bias.requires_grad_(False)
    return model


def test_first_match_decides_and_every_trainable_parameter_is_in_one_group() -> None:
    model = small_model()
    rules = [DecayRule(r"^1\.", 0.0), DecayRule("bias$", 0.5), DecayRule(".*")]
    groups = decay_groups(model.named_parameters(), rules, 0.2)
    assert {g.weight_decay: g.names for g in groups} == {
        0.2: ("0.weight", "2.weight"),
        0.1: ("0.bias",),
        0.0: ("1.weight", "1.bias"),
    }
    by_name = dict(model.named_parameters())
    for group in groups:
        assert all(p is by_name[n] for n, p in zip(group.names, group.parameters, strict=True))


def test_one_strength_is_one_group_in_model_order() -> None:
    (group,) = decay_groups(small_model().named_parameters(), [DecayRule("0"), DecayRule("")], 0.1)
    assert group.names == ("0.weight", "0.bias", "1.weight", "1.bias", "2.weight")


def test_works_before_memory_is_spent() -> None:
    (group,) = decay_groups(small_model("meta").named_parameters(), [DecayRule(".*")], 0.1)
    assert all(p.is_meta for p in group.parameters)


def test_strength_zero_with_everything_exempt_is_fine() -> None:
    (group,) = decay_groups(small_model().named_parameters(), [DecayRule(".*", 0.0)], 0.0)
    assert group.weight_decay == 0.0


@pytest.mark.parametrize(
    ("rules", "strength", "words"),
    [
        ([DecayRule("weight")], 0.1, "'0.bias'"),
        ([], 0.0, "'0.weight'"),
        ([DecayRule("(")], 0.1, "regular expression"),
        ([DecayRule(".*")], -0.1, "-0.1"),
        ([DecayRule(".*")], float("nan"), "nan"),
        ([DecayRule(".*", -1.0)], 0.1, "-1.0"),
        ([DecayRule(".*", 0.0)], 0.1, "exempt every parameter"),
    ],
)
def test_bad_input_is_one_clear_sentence(rules: list[DecayRule], strength: float, words: str) -> None:
    with pytest.raises(UserError) as caught:
        decay_groups(small_model("meta").named_parameters(), rules, strength)
    message = str(caught.value)
    assert words in message
    assert message.endswith(".")
    assert "\n" not in message


@pytest.mark.parametrize(
    "pattern", [r"(a+)+$", r"(.*)*(.*)*(.*)*!", r"^(\w+\.?)*\1\1x$", "(?:" * 3000 + "a" + ")" * 3000, "a" * 5000]
)
def test_a_pattern_that_would_never_end_is_refused_or_ends(pattern: str) -> None:
    """Each keeps Python's own `re` busy for longer than anybody lives, or breaks its recursion."""
    model = torch.nn.ParameterDict({"a" * 60 + "b": torch.nn.Parameter(torch.ones(1))})
    try:
        decay_groups(model.named_parameters(), [DecayRule(pattern), DecayRule(".*")], 0.1)
    except UserError as error:
        assert "decay rule" in str(error)
