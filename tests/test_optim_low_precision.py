"""What bfloat16 does to weight decay: lost by rounding to nearest, kept by the two remedies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from methods import method
from weight_decay.errors import UserError
from weight_decay.optim.decay import ParameterGroup
from weight_decay.optim.low_precision import RoundedOptimizer, stochastic_bfloat16
from weight_decay.optim.optimizers import DecayedOptimizer

LR, STRENGTH, STEPS, COUNT = 1e-2, 0.1, 200, 50_000
OPTIONS: dict[str, Any] = {
    "lr": LR,
    "momentum": 0.0,
    "betas": (0.9, 0.95),
    "eps": 1e-8,
    "nesterov": False,
    "decay_kind": "decoupled",
    "clip_norm": None,
}


def start(dtype: torch.dtype = torch.bfloat16) -> nn.Parameter:
    return nn.Parameter(torch.randn(COUNT, generator=torch.Generator().manual_seed(0)).bfloat16().to(dtype))


def decayed_only(rounding: Any, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights before and after steps whose gradient is zero: decay alone moves them."""
    parameter = start()
    before = parameter.detach().clone()
    groups = [ParameterGroup(("w",), [parameter], STRENGTH)]
    optimizer = RoundedOptimizer(groups, rounding, seed=3, method=method(kind=kind, **OPTIONS))
    for _ in range(STEPS):
        parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    assert parameter.dtype == torch.bfloat16
    return before.double(), parameter.detach().double()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_pure_bfloat16_loses_decay_bitwise(kind: Any, fused: bool) -> None:
    parameter = start()
    before = parameter.detach().clone()
    groups = [ParameterGroup(("w",), [parameter], STRENGTH)]
    optimizer = DecayedOptimizer(groups, method(kind, **OPTIONS, fused=fused))
    for _ in range(STEPS):
        parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    assert torch.equal(parameter, before)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_nearest_rounding_loses_decay_bitwise(kind: str) -> None:
    before, after = decayed_only("nearest", kind)
    assert torch.equal(before, after)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_stochastic_rounding_keeps_the_expected_shrinkage(kind: str) -> None:
    before, after = decayed_only("stochastic", kind)
    expected = (1 - LR * STRENGTH) ** STEPS
    # Projection on the start: unbiased, with a standard error from the independent roundings. Each of the
    # 200 roundings has a variance of at most gap²/4, gap <= |w|/128.
    kept = (after @ before / (before @ before)).item()
    error = (STEPS * (before**4).sum() / 4 / 128**2).sqrt() / (before @ before)
    assert kept == pytest.approx(expected, abs=4 * error.item())
    assert 4 * error.item() < 0.02 * (1 - expected)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_kahan_keeps_the_shrinkage(kind: str) -> None:
    before, after = decayed_only("kahan", kind)
    expected = (1 - LR * STRENGTH) ** STEPS
    assert (after @ before / (before @ before)).item() == pytest.approx(expected, rel=1e-3)


def test_no_strength_below_the_threshold_decays_and_one_above_does() -> None:
    # The threshold of the module's text: η λ = 1/512 for a weight just below a power of two.
    for share, moves in ((0.99, False), (1.1, True)):
        parameter = nn.Parameter(torch.tensor([1.9921875, -1.9921875, 1.0, 0.7]).bfloat16())
        before = parameter.detach().clone()
        groups = [ParameterGroup(("w",), [parameter], share / 512 / LR)]
        optimizer = DecayedOptimizer(groups, method("sgd", **OPTIONS))
        parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        assert torch.equal(parameter, before) != moves


def test_stochastic_rounding_is_unbiased_between_the_two_neighbours() -> None:
    generator = torch.Generator().manual_seed(0)
    for exact in (1.0 + 0.3 / 128, -3.3e-5, 77.7):
        rounded = stochastic_bfloat16(torch.full((200_000,), exact), generator).double()
        low, high = rounded.unique().tolist()
        assert low < torch.tensor(exact).double() < high
        assert torch.tensor(high).bfloat16() == torch.nextafter(
            torch.tensor(low).bfloat16(), torch.tensor(torch.inf).bfloat16()
        )
        assert rounded.mean().item() == pytest.approx(exact, abs=4 * (high - low) / 2 / 200_000**0.5)
    special = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, 1.5])
    kept = stochastic_bfloat16(special, generator)
    torch.testing.assert_close(kept.float(), special, rtol=0, atol=0, equal_nan=True)
    all_bits = torch.tensor([-1], dtype=torch.int32).view(torch.float32)
    assert stochastic_bfloat16(all_bits, generator).isnan().all()


def noisy_steps(optimizer: RoundedOptimizer | DecayedOptimizer, steps: range) -> None:
    for step in steps:
        for parameter in optimizer.parameters:
            generator = torch.Generator().manual_seed(step)
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        optimizer.set_lr(LR / (1 + step))
        optimizer.step()


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_remedies_follow_the_float32_run_with_gradients(kind: Any) -> None:
    exact = start(torch.float32)
    noisy_steps(DecayedOptimizer([ParameterGroup(("w",), [exact], STRENGTH)], method(kind, **OPTIONS)), range(50))
    distance = {}
    for rounding in ("nearest", "stochastic", "kahan"):
        parameter = start()
        groups = [ParameterGroup(("w",), [parameter], STRENGTH)]
        noisy_steps(RoundedOptimizer(groups, rounding, seed=0, method=method(kind=kind, **OPTIONS)), range(50))  # type: ignore[arg-type]
        distance[rounding] = (parameter.detach().float() - exact.bfloat16().float()).norm().item()
    assert distance["kahan"] < 0.1 * distance["nearest"]
    # Stochastic rounding trades bias for noise: right in the mean, so on the norm of the weights.
    assert distance["stochastic"] < 2 * distance["nearest"]


@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "kahan"])
def test_state_round_trip_is_bitwise(rounding: Any, tmp_path: Any) -> None:
    def build() -> RoundedOptimizer:
        return RoundedOptimizer(
            [ParameterGroup(("w",), [start()], STRENGTH)], rounding, seed=1, method=method(kind="adamw", **OPTIONS)
        )

    whole = build()
    noisy_steps(whole, range(6))
    half = build()
    noisy_steps(half, range(3))
    torch.save({"optimizer": half.state_dict(), "weights": half.parameters[0].detach()}, tmp_path / "s")
    saved = torch.load(tmp_path / "s", weights_only=True)
    resumed = build()
    with torch.no_grad():
        resumed.parameters[0].copy_(saved["weights"])
    resumed.load_state_dict(saved["optimizer"])
    noisy_steps(resumed, range(3, 6))
    assert torch.equal(whole.parameters[0], resumed.parameters[0])


def test_bad_input_is_refused() -> None:
    wide = [ParameterGroup(("w",), [start(torch.float32)], 0.0)]
    with pytest.raises(UserError, match="bfloat16 weights"):
        RoundedOptimizer(wide, "kahan", seed=0, method=method(kind="sgd", **OPTIONS))
    narrow = [ParameterGroup(("w",), [start()], 0.0)]
    with pytest.raises(UserError, match="'up'"):
        RoundedOptimizer(narrow, "up", seed=0, method=method(kind="sgd", **OPTIONS))  # type: ignore[arg-type]
    saved = RoundedOptimizer(narrow, "kahan", seed=0, method=method(kind="sgd", **OPTIONS)).state_dict()
    with pytest.raises(UserError, match="'nearest'"):
        RoundedOptimizer(narrow, "nearest", seed=0, method=method(kind="sgd", **OPTIONS)).load_state_dict(saved)


def test_with_gradients_the_kernel_decides_whether_adamw_loses_decay() -> None:
    def shrinkage(how: str, lr: float) -> float:
        ends = []
        for strength in (0.0, STRENGTH):
            parameter = start(torch.float32 if how == "exact" else torch.bfloat16)
            groups = [ParameterGroup(("w",), [parameter], strength)]
            optimizer: RoundedOptimizer | DecayedOptimizer
            options = {**OPTIONS, "lr": lr}
            if how in ("exact", "fused", "foreach"):
                optimizer = DecayedOptimizer(groups, method("adamw", **options, fused=how != "foreach"))
            else:
                optimizer = RoundedOptimizer(groups, how, seed=0, method=method(kind="adamw", **options))  # type: ignore[arg-type]
            generator = torch.Generator().manual_seed(1)
            for _ in range(100):
                parameter.grad = torch.randn(COUNT, generator=generator).to(parameter.dtype)
                optimizer.step()
            ends.append(parameter.detach().double())
        return ((ends[0] - ends[1]) @ ends[0] / (ends[0] @ ends[0])).item()

    large = {how: shrinkage(how, 1e-2) for how in ("exact", "fused", "foreach", "nearest", "stochastic", "kahan")}
    assert large["foreach"] == 0.0  # decay is rounded away before the update is added
    assert large["fused"] > 0.5 * large["exact"]  # rounded once: updates of the order of the gap carry it
    assert large["nearest"] == pytest.approx(large["fused"], rel=0.05)
    assert large["stochastic"] == pytest.approx(large["exact"], rel=0.02)
    assert large["kahan"] == pytest.approx(large["exact"], rel=2e-3)
    # With updates far below the gap the fused kernel loses it too.
    assert shrinkage("fused", 6e-4) < 0.05 * shrinkage("exact", 6e-4)
