"""DecayedOptimizer against a step written by hand in numpy float64."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from methods import method
from weight_decay.errors import UserError
from weight_decay.optim.decay import ParameterGroup
from weight_decay.optim.optimizers import DecayedOptimizer

BETAS, EPS = (0.9, 0.95), 1e-8
SHAPES = [(5, 3), (7,), (2, 3, 2, 2)]
STRENGTHS = [0.3, 0.3, 0.05]  # the third parameter is in a group of its own
LEARNING_RATES = [0.1, 0.05, 0.2, 0.01, 0.07]


def values(seed: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype) for shape in SHAPES]


def build(dtype: torch.dtype = torch.float64, strengths: list[float] | None = None, **changes: Any) -> DecayedOptimizer:
    parameters = [nn.Parameter(v) for v in values(0, dtype)]
    first, second, third = parameters
    strengths = STRENGTHS if strengths is None else strengths
    groups = [
        ParameterGroup(("a", "b"), [first, second], strengths[0]),
        ParameterGroup(("c",), [third], strengths[2]),
    ]
    options: dict[str, Any] = {
        "kind": "sgd",
        "lr": 0.1,
        "momentum": 0.0,
        "betas": BETAS,
        "eps": EPS,
        "nesterov": False,
        "decay_kind": "decoupled",
        "clip_norm": None,
    }
    return DecayedOptimizer(groups, method(**{**options, **changes}))


def feed(optimizer: DecayedOptimizer, seed: int, scale: float = 1.0) -> None:
    for parameter, gradient in zip(optimizer.parameters, values(seed), strict=True):
        parameter.grad = (gradient * scale).to(parameter.dtype)


def by_hand(
    kind: str, decay_kind: str, momentum: float, nesterov: bool, clip: float | None, steps: int
) -> tuple[list[np.ndarray], list[float]]:
    weights = [v.numpy().copy() for v in values(0)]
    first = [np.zeros_like(w) for w in weights]
    second = [np.zeros_like(w) for w in weights]
    norms = []
    for t in range(steps):
        eta = LEARNING_RATES[t]
        gradients = [v.numpy().copy() for v in values(t + 1)]
        if decay_kind in ("l2", "penalty"):
            factor = 1.0 if decay_kind == "l2" else 2.0
            gradients = [g + factor * s * w for g, s, w in zip(gradients, STRENGTHS, weights, strict=True)]
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
        norms.append(norm)
        if clip is not None:
            gradients = [g * min(1.0, clip / (norm + 1e-6)) for g in gradients]
        for i, g in enumerate(gradients):
            old = weights[i]
            if decay_kind == "torch" and kind == "sgd":
                g = g + STRENGTHS[i] * old
            if kind == "sgd":
                first[i] = momentum * first[i] + g
                update = g + momentum * first[i] if nesterov else first[i]
            else:
                first[i] = BETAS[0] * first[i] + (1 - BETAS[0]) * g
                second[i] = BETAS[1] * second[i] + (1 - BETAS[1]) * g**2
                mean = first[i] / (1 - BETAS[0] ** (t + 1))
                square = second[i] / (1 - BETAS[1] ** (t + 1))
                update = mean / (np.sqrt(square) + EPS)
            beside = decay_kind == "decoupled" or (decay_kind == "torch" and kind == "adamw")
            decay = STRENGTHS[i] * old if beside else 0.0
            weights[i] = old - eta * update - eta * decay
    return weights, norms


CASES = [
    (kind, decay_kind, momentum, nesterov, clip, fused)
    for kind, decay_kind, (momentum, nesterov), clip, fused in itertools.product(
        ["sgd", "adamw"],
        ["decoupled", "torch", "penalty", "l2"],
        [(0.0, False), (0.9, False), (0.9, True)],
        [None, 0.5, 1000.0],
        [True, False],
    )
    if kind == "sgd" or momentum == 0.0
]


@pytest.mark.parametrize(("kind", "decay_kind", "momentum", "nesterov", "clip", "fused"), CASES)
def test_five_steps_equal_the_hand_written_ones(
    kind: str, decay_kind: str, momentum: float, nesterov: bool, clip: float | None, fused: bool
) -> None:
    optimizer = build(
        kind=kind, decay_kind=decay_kind, momentum=momentum, nesterov=nesterov, clip_norm=clip, fused=fused
    )
    expected, expected_norms = by_hand(kind, decay_kind, momentum, nesterov, clip, 5)
    norms = []
    for t, eta in enumerate(LEARNING_RATES):
        feed(optimizer, t + 1)
        optimizer.set_lr(eta)
        norm = optimizer.step(return_norm=True)
        assert norm is not None
        norms.append(norm.item())
    np.testing.assert_allclose(norms, expected_norms, rtol=1e-6)
    # The clip factor passes through the float32 norm.
    tolerance = 1e-6 if clip == 0.5 else 1e-12
    for parameter, weights in zip(optimizer.parameters, expected, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), weights, rtol=tolerance, atol=tolerance)


def test_norm_is_returned_only_if_clipping_or_asked_for() -> None:
    plain, clipping = build(), build(clip_norm=1.0)
    for optimizer in (plain, clipping):
        feed(optimizer, 1)
    assert plain.step() is None
    assert clipping.step() is not None


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("momentum", "dampening", "nesterov"), [(0.0, 0.0, False), (0.9, 0.0, False), (0.9, 0.0, True), (0.9, 0.3, False)]
)
def test_torch_decay_is_torch_sgd_to_the_bit(momentum: float, dampening: float, nesterov: bool, fused: bool) -> None:
    ours = build(
        torch.float32, momentum=momentum, dampening=dampening, nesterov=nesterov, decay_kind="torch", fused=fused
    )
    weights = [nn.Parameter(v) for v in values(0, torch.float32)]
    groups = [
        {"params": weights[:2], "weight_decay": STRENGTHS[0]},
        {"params": weights[2:], "weight_decay": STRENGTHS[2]},
    ]
    engine = {"fused": True} if fused else {"foreach": True}
    theirs = torch.optim.SGD(groups, 0.1, momentum, dampening, nesterov=nesterov, **engine)
    for step in range(20):
        feed(ours, step)
        for weight, gradient in zip(weights, values(step), strict=True):
            weight.grad = gradient.float()
        for group in theirs.param_groups:
            group["lr"] = 0.1 / (1 + step)
        ours.set_lr(0.1 / (1 + step))
        ours.step()
        theirs.step()
        for mine, weight in zip(ours.parameters, weights, strict=True):
            assert torch.equal(mine, weight), step
        if step == 9:  # and after a restart in between
            fresh = build(
                torch.float32,
                momentum=momentum,
                dampening=dampening,
                nesterov=nesterov,
                decay_kind="torch",
                fused=fused,
            )
            with torch.no_grad():
                for mine, weight in zip(fresh.parameters, ours.parameters, strict=True):
                    mine.copy_(weight)
            fresh.load_state_dict(ours.state_dict())
            ours = fresh


def test_momentum_makes_torch_decay_ten_times_the_decoupled_one() -> None:
    """Fig 22: with no gradient but the decay's own, the norm falls by ηλ/(1-μ) a step in the long run."""
    falls = {}
    for kind in ("torch", "decoupled"):
        optimizer = build(momentum=0.9, decay_kind=kind, strengths=[0.01] * 3)
        for step in range(200):
            if step == 100:
                before = optimizer.parameter_norms().norm()
            for parameter in optimizer.parameters:
                parameter.grad = torch.zeros_like(parameter)
            optimizer.set_lr(0.01)
            optimizer.step()
        falls[kind] = -(optimizer.parameter_norms().norm() / before).log().item() / 100
    assert falls["decoupled"] == pytest.approx(1e-4, rel=1e-3)
    assert falls["torch"] == pytest.approx(1e-3, rel=2e-2)


@pytest.mark.parametrize(("decay_kind", "share"), [("l2", 0.5), ("penalty", 1.0)])
def test_a_penalty_is_what_it_is_called_in_the_loss(decay_kind: str, share: float) -> None:
    optimizer = build(kind="adamw", decay_kind=decay_kind, clip_norm=0.7)
    twin = build(kind="adamw", strengths=[0.0, 0.0, 0.0], clip_norm=0.7)
    for t in range(3):
        feed(optimizer, t + 1)
        feed(twin, t + 1)
        penalty = sum(share * s * (p**2).sum() for s, p in zip(STRENGTHS, twin.parameters, strict=True))
        assert isinstance(penalty, torch.Tensor)
        penalty.backward()
        optimizer.step()
        twin.step()
    for p, q in zip(optimizer.parameters, twin.parameters, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


SETTINGS: list[dict[str, Any]] = [
    {"kind": "sgd"},
    {"kind": "sgd", "momentum": 0.9},
    {"kind": "adamw", "clip_norm": 1.0},
    {"kind": "adamw", "decay_kind": "l2", "fused": False},
]


@pytest.mark.parametrize("setting", SETTINGS)
def test_state_round_trip_is_bitwise(setting: dict[str, Any], tmp_path: Any) -> None:
    whole = build(torch.float32, **setting)
    for t in range(6):
        feed(whole, t + 1)
        whole.step()
    half = build(torch.float32, **setting)
    for t in range(3):
        feed(half, t + 1)
        half.step()
    torch.save(half.state_dict(), tmp_path / "state.pt")
    resumed = build(torch.float32, **setting)
    with torch.no_grad():
        for target, source in zip(resumed.parameters, half.parameters, strict=True):
            target.copy_(source)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for t in range(3, 6):
        feed(resumed, t + 1)
        resumed.step()
    for p, q in zip(whole.parameters, resumed.parameters, strict=True):
        assert torch.equal(p, q)


def test_a_branch_keeps_the_moments_under_its_own_strength_and_grouping() -> None:
    parent = build(kind="adamw")
    feed(parent, 1)
    parent.step()
    parameters = dict(zip(parent.names, parent.parameters, strict=True))
    group = ParameterGroup(("c", "a", "b"), [nn.Parameter(parameters[n].detach().clone()) for n in "cab"], 0.0)
    child = DecayedOptimizer([group], method("adamw", 0.1, 0.0, BETAS, EPS, False, "decoupled", None))
    child.load_state_dict(parent.state_dict())
    moments = dict(zip(parent.names, parent.second_moments(), strict=True))
    for name, moment in zip(child.names, child.second_moments(), strict=True):
        assert torch.equal(moment, moments[name])
    for parameter in child.parameters:
        parameter.grad = torch.zeros_like(parameter)
    before = [p.detach().clone() for p in child.parameters]
    child.set_lr(0.5)
    child.step()
    # Zero gradient, no decay: only the parent's first moment moves the weights (bias correction at t = 2).
    for parameter, old, name in zip(child.parameters, before, child.names, strict=True):
        g = dict(zip("abc", values(1), strict=True))[name]
        mean = 0.9 * 0.1 * g / (1 - 0.9**2)
        square = 0.95 * 0.05 * g**2 / (1 - 0.95**2)
        torch.testing.assert_close(parameter.detach(), old - 0.5 * mean / (square.sqrt() + EPS))


def test_state_of_another_optimizer_or_model_is_refused() -> None:
    adam = build(kind="adamw")
    with pytest.raises(UserError, match="'sgd'"):
        adam.load_state_dict(build(kind="sgd").state_dict())
    feed(adam, 1)
    adam.step()
    state = adam.state_dict()
    fewer = {"kind": "adamw", "state": {k: v for k, v in state["state"].items() if k != "b"}}
    with pytest.raises(UserError, match="'b'"):
        build(kind="adamw").load_state_dict(fewer)
    state["state"]["a"]["exp_avg"] = torch.zeros(2)
    with pytest.raises(UserError, match="'a'"):
        build(kind="adamw").load_state_dict(state)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("fused", [True, False])
def test_scaler_skips_everything_on_overflow_and_changes_nothing_otherwise(momentum: float, fused: bool) -> None:
    scaled = build(torch.float32, momentum=momentum, clip_norm=1.0, fused=fused)
    plain = build(torch.float32, momentum=momentum, clip_norm=1.0, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    # An overflow at the very first step, as float16 has: nothing may move, not even by decay.
    scaler.scale(torch.zeros(()))
    feed(scaled, 1, float("inf"))
    before = [p.detach().clone() for p in scaled.parameters]
    scaled.step(scaler)
    assert all(torch.equal(p, b) for p, b in zip(scaled.parameters, before, strict=True))
    assert scaler.get_scale() == 512.0
    for t in range(3):
        feed(scaled, t + 1, 512.0)
        feed(plain, t + 1)
        norm = scaled.step(scaler)
        torch.testing.assert_close(norm, plain.step())
    for p, q in zip(scaled.parameters, plain.parameters, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_gradient_in_another_memory_layout_gives_the_right_step(kind: str) -> None:
    start = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    gradient = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        parameter = nn.Parameter(start.clone().to(memory_format=memory_format))
        group = ParameterGroup(("w",), [parameter], 0.1)
        optimizer = DecayedOptimizer([group], method(kind, 0.1, 0.0, BETAS, EPS, False, "decoupled", None))  # type: ignore[arg-type]
        parameter.grad = gradient.clone()
        optimizer.step()
        results.append(parameter.detach())
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_tensor_learning_rate_equals_the_number(kind: str) -> None:
    number, tensor = build(torch.float32, kind=kind), build(torch.float32, kind=kind)
    for t in range(3):
        for optimizer, eta in ((number, 0.25), (tensor, torch.tensor(0.25))):
            optimizer.set_lr(eta)
            feed(optimizer, t + 1)
            optimizer.step()
    for p, q in zip(number.parameters, tensor.parameters, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("kind", "momentum"), [("sgd", 0.0), ("sgd", 0.9), ("adamw", 0.0)])
def test_per_parameter_learning_rate_equals_one_optimizer_per_parameter(kind: str, momentum: float) -> None:
    etas = [0.1, 0.02, 0.3]
    together = build(torch.float32, kind=kind, momentum=momentum, per_parameter_lr=True)
    for t in range(3):
        together.set_lr(torch.tensor(etas))
        feed(together, t + 1)
        together.step()
    for i, eta in enumerate(etas):
        alone = build(torch.float32, kind=kind, momentum=momentum)
        alone.set_lr(eta)
        for t in range(3):
            feed(alone, t + 1)
            alone.step()
        torch.testing.assert_close(alone.parameters[i], together.parameters[i], rtol=1e-6, atol=1e-7)


def test_parameter_norms() -> None:
    optimizer = build()
    torch.testing.assert_close(
        optimizer.parameter_norms(), torch.stack([p.detach().norm() for p in optimizer.parameters]).float()
    )
    assert optimizer.second_moments() == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "adam"}, "'adam'"),
        ({"decay_kind": "both"}, "'both'"),
        ({"lr": -0.1}, "-0.1"),
        ({"momentum": 1.0}, "momentum"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"eps": 0.0}, "eps"),
        ({"nesterov": True}, "nesterov"),
        ({"dampening": 0.3}, "dampening"),
        ({"dampening": 0.3, "momentum": 0.9, "nesterov": True}, "dampening"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"fused": False, "per_parameter_lr": True}, "fused"),
    ],
)
def test_bad_hyperparameters_are_one_sentence(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build(**changes)
