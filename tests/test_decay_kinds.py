"""Every decay rule against a step written by hand in numpy float64, beside SGD and AdamW."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from methods import method
from weight_decay.errors import UserError
from weight_decay.optim.decay import ParameterGroup
from weight_decay.optim.decay_kinds.cautious import Cautious
from weight_decay.optim.decay_kinds.constrained import Constrained
from weight_decay.optim.decay_kinds.corrected import Corrected
from weight_decay.optim.decay_kinds.hyperball import Hyperball
from weight_decay.optim.decay_kinds.independent import Independent
from weight_decay.optim.decay_kinds.norm_control import NormControl
from weight_decay.optim.decay_kinds.rotational import Rotational
from weight_decay.optim.decay_kinds.rule import Group, RuleFactory, join
from weight_decay.optim.decay_kinds.soft_threshold import SoftThreshold
from weight_decay.optim.decay_kinds.spectral import Spectral
from weight_decay.optim.decay_kinds.stable import Stable
from weight_decay.optim.decay_kinds.starting_point import StartingPoint
from weight_decay.optim.low_precision import RoundedOptimizer
from weight_decay.optim.optimizers import DecayedOptimizer

BETAS, EPS, PEAK = (0.9, 0.95), 1e-8, 0.2
LEARNING_RATES = [0.0, 0.1, 0.2, 0.05, 0.13, 0.01]
SHAPES = {"a": (5, 7), "b": (7, 4), "head": (4, 6), "bias": (6,)}
STRENGTHS = {"a": 0.3, "b": 0.3, "head": 0.1, "bias": 0.0}
Arrays = dict[str, np.ndarray]


def draw(seed: int) -> Arrays:
    generator = np.random.default_rng(seed)
    return {name: generator.standard_normal(shape) for name, shape in SHAPES.items()}


def build(rule: RuleFactory, dtype: torch.dtype = torch.float64, **changes: Any) -> DecayedOptimizer:
    weights = {name: nn.Parameter(torch.from_numpy(value).to(dtype)) for name, value in draw(0).items()}
    groups = [
        ParameterGroup(("a", "b"), [weights["a"], weights["b"]], STRENGTHS["a"]),
        ParameterGroup(("head",), [weights["head"]], STRENGTHS["head"]),
        ParameterGroup(("bias",), [weights["bias"]], 0.0),
    ]
    options: dict[str, Any] = {"kind": "adamw", "lr": PEAK, "momentum": 0.0, "betas": BETAS, "eps": EPS}
    return DecayedOptimizer(
        groups, method(**{**options, "nesterov": False, "decay_kind": rule, "clip_norm": None, **changes})
    )


def advance(optimizer: DecayedOptimizer, t: int, factor: float = 1.0) -> None:
    for name, parameter in zip(optimizer.names, optimizer.parameters, strict=True):
        parameter.grad = torch.from_numpy(draw(t + 1)[name]).to(parameter.dtype)
    optimizer.set_lr(LEARNING_RATES[t % len(LEARNING_RATES)])
    optimizer.set_decay_factor(factor)
    optimizer.step()


class Hand:
    """SGD or Adam by hand: `updates` gives u of each parameter, before the learning rate."""

    def __init__(self, kind: str, momentum: float) -> None:
        self.kind, self.momentum, self.t = kind, momentum, 0
        self.first = {n: np.zeros(s) for n, s in SHAPES.items()}
        self.second = {n: np.zeros(s) for n, s in SHAPES.items()}

    def updates(self, gradients: Arrays) -> Arrays:
        self.t += 1
        found = {}
        for name, g in gradients.items():
            if self.kind == "sgd":
                self.first[name] = self.momentum * self.first[name] + g
                found[name] = self.first[name]
                continue
            self.first[name] = BETAS[0] * self.first[name] + (1 - BETAS[0]) * g
            self.second[name] = BETAS[1] * self.second[name] + (1 - BETAS[1]) * g * g
            mean = self.first[name] / (1 - BETAS[0] ** self.t)
            found[name] = mean / (np.sqrt(self.corrected_second(name)) + EPS)
        return found

    def corrected_second(self, name: str) -> np.ndarray:
        return self.second[name] / (1 - BETAS[1] ** self.t)


Formula = Callable[[np.ndarray, np.ndarray, float, float, str, dict[str, Any], Hand], np.ndarray]
"""(w, u, η, λ, name, memory, optimizer) -> the weights after the step."""


def norm(x: np.ndarray) -> float:
    return math.sqrt(float((x * x).sum()))


def by_independent(w, u, eta, lam, name, memory, hand):  # type: ignore[no-untyped-def]
    return w - eta / PEAK * lam * w - eta * u


def by_l1(w, u, eta, lam, name, memory, hand):  # type: ignore[no-untyped-def]
    x = w - eta * u
    return np.sign(x) * np.maximum(np.abs(x) - eta * lam, 0)


def by_elastic_net(w, u, eta, lam, name, memory, hand):  # type: ignore[no-untyped-def]
    x = w * (1 - eta * 0.75 * lam) - eta * u
    return np.sign(x) * np.maximum(np.abs(x) - eta * 0.25 * lam, 0)


def by_squared_rate(w, u, eta, lam, name, memory, hand):  # type: ignore[no-untyped-def]
    return w - eta**2 / PEAK * lam * w - eta * u


def by_adamc(w, u, eta, lam, name, memory, hand):  # type: ignore[no-untyped-def]
    return w - (eta if name == "head" else eta**2 / PEAK) * lam * w - eta * u


def by_stable(w, u, eta, lam, name, memory, hand):  # type: ignore[no-untyped-def]
    if hand.kind == "sgd":
        return w - eta * lam / (1 - hand.momentum) * w - eta * u
    every = np.concatenate([hand.corrected_second(n).ravel() for n in SHAPES])
    return w - eta * lam / np.sqrt(every.mean()) * w - eta * u


def by_cautious(w, u, eta, lam, name, memory, hand):  # type: ignore[no-untyped-def]
    return w - eta * (u + lam * (u * w >= 0) * w)


def by_norm_control(w, u, eta, lam, name, memory, hand):  # type: ignore[no-untyped-def]
    start = math.sqrt(sum(norm(draw(0)[n]) ** 2 for n in ("a", "b", "head")))
    return w - eta * lam * (1 - 0.5 * start / memory["whole"]) * w - eta * u


def by_starting_point(w, u, eta, lam, name, memory, hand):  # type: ignore[no-untyped-def]
    return w - eta * lam * (w - draw(0)[name]) - eta * u


def by_constrained(w, u, eta, lam, name, memory, hand):  # type: ignore[no-untyped-def]
    x = w - eta * u
    if hand.t == 3:
        memory[name, "bound"] = 0.9 * norm(x) ** 2
    if hand.t <= 3:
        return x
    memory[name] = max(0.0, memory.get(name, 0.0) + lam / x.size * (norm(x) ** 2 - memory[name, "bound"]))
    return x - 2 * memory[name] * x


def by_hyperball(w, u, eta, lam, name, memory, hand):  # type: ignore[no-untyped-def]
    radius = norm(draw(0)[name])
    x = w - eta * lam * radius * u / norm(u)
    return radius * x / norm(x)


def by_rotational(w, u, eta, lam, name, memory, hand):  # type: ignore[no-untyped-def]
    if eta == 0:
        return w
    radius = norm(draw(0)[name])
    u = u - w * (u * w).sum() / radius**2
    steps, square = memory.get(name, (0, 0.0))
    memory[name] = steps, square = steps + 1, 0.1 * norm(u) ** 2 + 0.9 * square
    share = 2 / (1 + hand.momentum) if hand.kind == "sgd" else 2 * (1 - BETAS[0]) / (1 + BETAS[0])
    x = w - math.sqrt(share * eta * lam) * radius * u / (math.sqrt(square / (1 - 0.9**steps)) + 1e-8)
    return radius * x / norm(x)


RULES: dict[str, tuple[RuleFactory, Formula]] = {
    "independent": (Independent, by_independent),
    "l1": (SoftThreshold, by_l1),
    "elastic_net": (functools.partial(SoftThreshold, l1_ratio=0.25), by_elastic_net),
    "squared_rate": (Corrected, by_squared_rate),
    "adamc": (functools.partial(Corrected, match="^(?!head)"), by_adamc),
    "stable": (Stable, by_stable),
    "cautious": (Cautious, by_cautious),
    "norm_control": (functools.partial(NormControl, ratio=0.5), by_norm_control),
    "starting_point": (StartingPoint, by_starting_point),
    "constrained": (functools.partial(Constrained, bound=0.9, bound_after=3), by_constrained),
    "hyperball": (Hyperball, by_hyperball),
    "rotational": (Rotational, by_rotational),
}
TOLERANCE = {"hyperball": 1e-11, "rotational": 1e-11}  # two normalisations a step
OPTIMIZERS = [("sgd", 0.0), ("sgd", 0.9), ("adamw", 0.0)]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("kind", "momentum"), OPTIMIZERS)
@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_its_formula(rule: str, kind: str, momentum: float, fused: bool) -> None:
    make, formula = RULES[rule]
    optimizer = build(make, kind=kind, momentum=momentum, fused=fused)
    hand, weights, memory = Hand(kind, momentum), draw(0), dict[str, Any]()
    for t in range(6):
        factor = 0.5 if t == 4 else 1.0
        advance(optimizer, t, factor)
        updates, eta = hand.updates(draw(t + 1)), LEARNING_RATES[t]
        memory["whole"] = math.sqrt(sum(norm(weights[n]) ** 2 for n in ("a", "b", "head")))
        weights = {
            n: formula(w, updates[n], eta, factor * STRENGTHS[n], n, memory, hand)
            if n != "bias"
            else w - eta * updates[n]
            for n, w in weights.items()
        }
    tolerance = TOLERANCE.get(rule, 1e-12)
    for name, parameter in zip(optimizer.names, optimizer.parameters, strict=True):
        np.testing.assert_allclose(
            parameter.detach().numpy(), weights[name], rtol=tolerance, atol=tolerance, err_msg=name
        )


def spectral(optimizer_every: int = 2) -> RuleFactory:
    return functools.partial(Spectral, match="^(?!head)", every=optimizer_every, smallest=4)


def test_the_spectrum_sets_each_matrix_own_strength() -> None:
    optimizer = build(spectral())
    hand, weights, factors = Hand("adamw", 0.0), draw(0), {"a": 1.0, "b": 1.0, "head": 1.0, "bias": 0.0}
    for t in range(5):
        if t % 2 == 0:
            alphas = {}
            for name in ("a", "b"):
                values = np.sort(np.linalg.svd(weights[name], compute_uv=False) ** 2)
                tail = values[len(values) // 2 :]
                alphas[name] = 1 + len(tail) / np.log(tail / tail[0]).sum()
            low, high = min(alphas.values()), max(alphas.values())
            factors |= {n: 0.6666 + (5.0 - 0.6666) * (alpha - low) / (high - low) for n, alpha in alphas.items()}
        advance(optimizer, t)
        updates, eta = hand.updates(draw(t + 1)), LEARNING_RATES[t]
        weights = {n: w - eta * factors[n] * STRENGTHS[n] * w - eta * updates[n] for n, w in weights.items()}
    assert {0.6666, 5.0} <= {round(factor, 9) for factor in factors.values()}
    for name, parameter in zip(optimizer.names, optimizer.parameters, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), weights[name], rtol=1e-12, atol=1e-12)
    said = optimizer.decay_metrics()
    assert said["decay/strongest"] == 5.0 and said["decay/weakest"] == pytest.approx(0.6666)


EVERY_RULE: dict[str, RuleFactory] = {name: make for name, (make, _) in RULES.items()} | {"spectral": spectral(3)}


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("rule", EVERY_RULE)
def test_a_rule_goes_on_bitwise(rule: str, kind: Any, tmp_path: Any) -> None:
    momentum = 0.9 if kind == "sgd" else 0.0
    whole, half, resumed = (build(EVERY_RULE[rule], torch.float32, kind=kind, momentum=momentum) for _ in range(3))
    for t in range(8):
        advance(whole, t)
        if t < 5:
            advance(half, t)
    torch.save(half.state_dict(), tmp_path / "state.pt")
    with torch.no_grad():
        for target, source in zip(resumed.parameters, half.parameters, strict=True):
            target.copy_(source)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for t in range(5, 8):
        advance(resumed, t)
    for p, q in zip(whole.parameters, resumed.parameters, strict=True):
        assert torch.equal(p, q)


def test_a_branch_without_decay_drops_the_rule_and_another_rule_is_refused() -> None:
    parent = build(Hyperball)
    advance(parent, 1)
    names, parameters = parent.names, parent.parameters
    group = ParameterGroup(names, [nn.Parameter(p.detach().clone()) for p in parameters], 0.0)
    child = DecayedOptimizer([group], method("adamw", 0.1, 0.0, BETAS, EPS, False, Hyperball, None))
    child.load_state_dict(parent.state_dict())
    assert child.rule is None
    with pytest.raises(UserError, match=r"decay\.kind"):
        build(StartingPoint).load_state_dict(parent.state_dict())


@pytest.mark.parametrize("rule", EVERY_RULE)
def test_a_rule_joins_any_torch_optimizer(rule: str) -> None:
    """Beside torch.optim.AdamW as a user has it, a rule does what it does in `DecayedOptimizer`."""
    ours = build(EVERY_RULE[rule], fused=False)
    weights = {name: nn.Parameter(torch.from_numpy(value)) for name, value in draw(0).items()}
    theirs = torch.optim.AdamW(weights.values(), PEAK, BETAS, EPS, weight_decay=0.0, foreach=True)
    pairs = ((("a", "b"), 0.3), (("head",), 0.1))
    groups = [Group(names, [weights[name] for name in names], strength) for names, strength in pairs]
    join(theirs, groups, EVERY_RULE[rule], PEAK)
    for t in range(4):
        for name, weight in weights.items():
            weight.grad = torch.from_numpy(draw(t + 1)[name])
        for group in theirs.param_groups:
            group["lr"] = LEARNING_RATES[t]
        theirs.step()
        advance(ours, t)
    for name, parameter in zip(ours.names, ours.parameters, strict=True):
        torch.testing.assert_close(weights[name], parameter, rtol=1e-13, atol=1e-13)


def test_join_refuses_an_optimizer_that_decays_by_itself() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(UserError, match="weight_decay"):
        join(torch.optim.AdamW([weight]), [Group(("w",), [weight], 0.1)], Cautious)
    with pytest.raises(UserError, match="strength"):
        join(torch.optim.SGD([weight], 0.1), [Group(("w",), [weight], 0.0)], Cautious)


@pytest.mark.parametrize("rule", EVERY_RULE)
def test_a_rule_works_on_rounded_weights(rule: str) -> None:
    """With Kahan compensation bfloat16 weights follow the float32 ones to a bfloat16 rounding."""
    weights = [nn.Parameter(torch.from_numpy(value).bfloat16()) for value in draw(0).values()]
    groups = [
        ParameterGroup(("a", "b"), weights[:2], 0.3),
        ParameterGroup(("head",), [weights[2]], 0.1),
        ParameterGroup(("bias",), [weights[3]], 0.0),
    ]
    options: dict[str, Any] = {"kind": "adamw", "lr": PEAK, "momentum": 0.0, "betas": BETAS, "eps": EPS}
    rounded = RoundedOptimizer(
        groups, "kahan", 0, method(**options, nesterov=False, decay_kind=EVERY_RULE[rule], clip_norm=None)
    )
    wide = [replace(g, parameters=[nn.Parameter(p.detach().float()) for p in g.parameters]) for g in groups]
    exact = DecayedOptimizer(wide, method(**options, nesterov=False, decay_kind=EVERY_RULE[rule], clip_norm=None))
    for t in range(6):
        for optimizer in (exact, rounded):
            for name, parameter in zip(optimizer.names, optimizer.parameters, strict=True):
                parameter.grad = torch.from_numpy(draw(t + 1)[name]).bfloat16().to(parameter.dtype)
            optimizer.set_lr(LEARNING_RATES[t])
            optimizer.step()
    for p, w in zip(exact.parameters, weights, strict=True):
        torch.testing.assert_close(p, w.float(), rtol=2**-7, atol=2**-7)


RATE = 1e-3  # η λ of one step, below the half unit in the last place of bfloat16, 1/512
SURVIVES_BFLOAT16 = {
    "independent": False,
    "l1": True,  # small weights move by more than their last place
    "elastic_net": True,
    "squared_rate": False,
    "adamc": False,
    "stable": False,
    "cautious": False,
    "norm_control": False,
    "starting_point": False,
    "constrained": True,  # the multiplier grows until the weights move
    "spectral": False,
}


@pytest.mark.parametrize("rule", SURVIVES_BFLOAT16)
def test_which_rules_survive_pure_bfloat16(rule: str) -> None:
    """Two hundred steps of decay alone, rounded to nearest: the weights stay as they are, bit for bit, or not."""
    generator = torch.Generator().manual_seed(0)
    # No exact powers of two, where the gap below is half of that above.
    mantissas, exponents = torch.rand(64, 64, generator=generator), torch.randint(-9, 0, (64, 64), generator=generator)
    start = (1.01 + 0.98 * mantissas) * 2.0**exponents
    weight = nn.Parameter(start.bfloat16())
    before = weight.detach().clone()
    make = {"constrained": functools.partial(Constrained, bound=0.5), "spectral": Spectral}.get(rule, EVERY_RULE[rule])
    make = functools.partial(Corrected, match=".*") if rule == "adamc" else make
    strength = {"constrained": 1.0, "independent": RATE}.get(rule, RATE / 1e-2)
    group = ParameterGroup(("w",), [weight], strength)
    optimizer = DecayedOptimizer([group], method("sgd", 1e-2, 0.0, BETAS, EPS, False, make, None))
    assert optimizer.rule is not None
    if rule == "starting_point":
        with torch.no_grad():
            optimizer.rule.state()["start"][0].zero_()
    for _ in range(200):
        weight.grad = torch.zeros_like(weight)
        optimizer.set_lr(1e-2)
        optimizer.step()
    assert torch.equal(weight, before) is not SURVIVES_BFLOAT16[rule]


@pytest.mark.parametrize("rule", ["hyperball", "rotational"])
def test_a_fixed_norm_is_held_by_pure_bfloat16_to_its_rounding(rule: str) -> None:
    weight = nn.Parameter(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).bfloat16())
    before = weight.detach().float().norm().item()
    optimizer = DecayedOptimizer(
        [ParameterGroup(("w",), [weight], 1.0)], method("adamw", 1e-2, 0.0, BETAS, EPS, False, EVERY_RULE[rule], None)
    )
    generator = torch.Generator().manual_seed(1)
    for _ in range(300):
        weight.grad = torch.randn(64, 64, generator=generator).bfloat16()
        optimizer.step()
    assert weight.detach().float().norm().item() == pytest.approx(before, rel=2**-8)


def test_fixed_norm_turns_each_matrix_by_the_same_angle() -> None:
    optimizer = build(Hyperball)
    before = [p.detach().clone() for p in optimizer.parameters]
    advance(optimizer, 1)
    for name, old, new in zip(optimizer.names, before, optimizer.parameters, strict=True):
        if name != "bias":
            moved = (new.detach() - old).norm() / old.norm()
            assert moved.item() == pytest.approx(0.1 * STRENGTHS[name], rel=0.01)


def test_l1_makes_weights_exactly_zero_and_says_how_many() -> None:
    optimizer = build(SoftThreshold)
    for t in range(6):
        advance(optimizer, t)
    named = dict(zip(optimizer.names, optimizer.parameters, strict=True))
    decayed = torch.cat([named[name].detach().flatten() for name in ("a", "b", "head")])
    share = (decayed == 0).double().mean().item()
    assert 0 < share < 1 and float(optimizer.decay_metrics()["weights/zero_share"]) == pytest.approx(share)


@pytest.mark.parametrize("rule", [Stable, Rotational])
def test_muon_is_refused_by_rules_of_another_optimizer(rule: Any) -> None:
    with pytest.raises(UserError, match=r"decay\.kind"):
        build(rule, kind="muon", momentum=0.95, matrices="^(?!head)")


@pytest.mark.parametrize("decay", ["decoupled", Cautious, Hyperball])
def test_muon_steps_the_matrices_and_adamw_the_rest(decay: Any) -> None:
    optimizer = build(decay, torch.float32, kind="muon", momentum=0.95, nesterov=True, matrices="^(?!head)")
    weights = {name: nn.Parameter(torch.from_numpy(value).float()) for name, value in draw(0).items()}
    built_in = decay == "decoupled"
    muon = torch.optim.Muon(
        [weights["a"], weights["b"]], PEAK, weight_decay=0.3 * built_in, adjust_lr_fn="match_rms_adamw"
    )
    others = [
        {"params": [weights["head"]], "weight_decay": 0.1 * built_in},
        {"params": [weights["bias"]], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(others, PEAK, BETAS, EPS, fused=True)
    for t in range(5):
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        for name, weight in weights.items():
            weight.grad = torch.from_numpy(draw(t + 1)[name]).float()
        for theirs in (muon, adamw):
            for group in theirs.param_groups:
                group["lr"] = LEARNING_RATES[t]
            theirs.step()
        if decay is Cautious:
            with torch.no_grad():
                for name, weight in weights.items():
                    mask = (weight - before[name]) * before[name] <= 0
                    weight -= LEARNING_RATES[t] * STRENGTHS[name] * mask * before[name]
        elif decay is Hyperball:
            with torch.no_grad():
                for name, weight in weights.items():
                    if name != "bias" and LEARNING_RATES[t] > 0:
                        radius, step = before[name].norm(), weight - before[name]
                        weight.copy_(before[name] + LEARNING_RATES[t] * STRENGTHS[name] * radius * step / step.norm())
                        weight *= radius / weight.norm()
        advance(optimizer, t)
    tolerance = 0 if built_in else 1e-4
    for name, parameter in zip(optimizer.names, optimizer.parameters, strict=True):
        torch.testing.assert_close(weights[name], parameter, rtol=tolerance, atol=tolerance)
    resumed = build(decay, torch.float32, kind="muon", momentum=0.95, nesterov=True, matrices="^(?!head)")
    with torch.no_grad():
        for target, source in zip(resumed.parameters, optimizer.parameters, strict=True):
            target.copy_(source)
    resumed.load_state_dict(optimizer.state_dict())
    for each in (optimizer, resumed):
        advance(each, 5)
    for p, q in zip(optimizer.parameters, resumed.parameters, strict=True):
        assert torch.equal(p, q)


def test_muon_without_a_matrix_is_refused() -> None:
    with pytest.raises(UserError, match="matrices"):
        build("decoupled", kind="muon", momentum=0.95, matrices="nothing")  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "momentum"), OPTIMIZERS)
@pytest.mark.parametrize("decay", ["decoupled", "torch", "l2", "penalty", Cautious])
def test_a_factor_on_the_decay_is_that_factor_on_every_strength(decay: Any, kind: str, momentum: float) -> None:
    half = build(decay, kind=kind, momentum=momentum)
    groups = [(("a", "b"), 0.15), (("head",), 0.05), (("bias",), 0.0)]
    weights = {name: nn.Parameter(torch.from_numpy(value)) for name, value in draw(0).items()}
    made = [ParameterGroup(names, [weights[name] for name in names], strength) for names, strength in groups]
    weaker = DecayedOptimizer(made, method(kind, PEAK, momentum, BETAS, EPS, False, decay, None))  # type: ignore[arg-type]
    for t in range(4):
        advance(half, t, 0.5)
        advance(weaker, t)
    for p, q in zip(half.parameters, weaker.parameters, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("rule", [Cautious, SoftThreshold, Constrained, StartingPoint])
def test_a_step_that_the_scaler_skips_does_not_decay(rule: Any) -> None:
    """With foreach kernels, which float16 needs beside a rule, torch does not call the step at all."""
    optimizer = build(rule, torch.float32, fused=False)
    advance(optimizer, 1)
    before = [p.detach().clone() for p in optimizer.parameters]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.zeros(()))
    for parameter in optimizer.parameters:
        parameter.grad = torch.full_like(parameter, float("inf"))
    optimizer.step(scaler)
    assert all(torch.equal(p, old) for p, old in zip(optimizer.parameters, before, strict=True))
    for parameter in optimizer.parameters:
        parameter.grad = torch.full_like(parameter, 512.0)
    optimizer.step(scaler)
    assert not any(torch.equal(p, old) for p, old in zip(optimizer.parameters, before, strict=True))
