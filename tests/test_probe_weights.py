"""Weight norms, effective learning rates and update sizes against numpy in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from weight_decay.probes import weights

SHAPES = [(4, 3, 3, 3), (5,), (), (2, 7)]


@pytest.fixture
def tensors() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def flat(tensors: list[torch.Tensor]) -> np.ndarray:
    return np.concatenate([tensor.double().numpy().ravel() for tensor in tensors])


def test_norms(tensors: list[torch.Tensor]) -> None:
    assert weights.global_norm(tensors).item() == pytest.approx(np.linalg.norm(flat(tensors)), rel=1e-6)
    assert weights.largest_magnitude(tensors).item() == pytest.approx(np.abs(flat(tensors)).max())
    # In float16 the squares of these would overflow.
    halves = [tensor.half() * 1000 for tensor in tensors]
    assert weights.global_norm(halves).item() == pytest.approx(np.linalg.norm(flat(halves)), rel=1e-5)


def test_only_trainable_parameters_count_and_shared_ones_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model[2].requires_grad_(False)
    kept = weights.trainable_parameters(model)
    assert sum(tensor.numel() for tensor in kept) == 9 + 3 + 3
    assert not any(tensor.requires_grad for tensor in kept)


def test_effective_learning_rates_of_the_paper() -> None:
    language = weights.sizes(6e-4, torch.tensor(235.0), [torch.tensor([-3.0, 2.0])])
    assert language["effective_lr/adamw"].item() == pytest.approx(6e-4 / 235)
    assert language["weights/norm"] == 235 and language["weights/max"] == 3
    vision = weights.sizes(0.1, torch.tensor(74.2), [torch.tensor([1.0])])
    assert vision["effective_lr/sgd"].item() == pytest.approx(0.1 / 74.2**2)


def test_adam_coordinate_rate_uses_the_optimizer_state() -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 4)
    groups = [
        {"params": [model.weight], "lr": 1e-2, "eps": 1e-8},
        {"params": [model.bias], "lr": 3e-3, "eps": 1e-3},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    gradients = []
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(5, 6)).square().sum().backward()
        gradients.append([p.grad.double().clone() for p in model.parameters()])
        optimizer.step()
    rates = []
    for index, (lr, eps) in enumerate([(1e-2, 1e-8), (3e-3, 1e-3)]):
        v = torch.zeros_like(gradients[0][index])
        for gradient in gradients:
            v = 0.95 * v + 0.05 * gradient[index] ** 2
        rates.append((lr / (v.sqrt() + eps)).flatten())
    moments = [optimizer.state[p]["exp_avg_sq"] for p in model.parameters()]
    untouched = [moment.clone() for moment in moments]
    measured = weights.effective_lr_adam_coordinate([1e-2, 3e-3], moments, [1e-8, 1e-3])
    assert measured.item() == pytest.approx(torch.cat(rates).mean().item(), rel=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(moments, untouched, strict=True))


@pytest.mark.parametrize("angle", [1e-6, 1e-4, 0.3, math.pi / 2, 3.0])
def test_rotation_is_the_angle_at_any_length(angle: float) -> None:
    # Two orthogonal unit vectors span the plane; the second vector is also rescaled.
    first = torch.tensor([0.6, 0.0, 0.8])
    second = torch.tensor([0.0, 1.0, 0.0])
    turned = 2.5 * (math.cos(angle) * first + math.sin(angle) * second)
    measured = weights.rotation([first[:1], first[1:]], [turned[:1], turned[1:]])
    assert measured.item() == pytest.approx(angle, rel=1e-3, abs=2e-7)


def test_update_norm_and_snapshot(tensors: list[torch.Tensor]) -> None:
    before = weights.snapshot(tensors)
    for tensor in tensors:
        tensor.mul_(0.9)
    expected = 0.1 * np.linalg.norm(flat(before))
    assert weights.update_norm(before, tensors).item() == pytest.approx(expected, rel=1e-5)


def test_lost_updates_counts_only_changed_weights() -> None:
    before = [torch.tensor([1.0, 1.0, 1.0]), torch.tensor([256.0, 0.0])]
    # bfloat16 keeps 8 bits: spacing 2^-7 above 1 and 2 above 256.
    after = [torch.tensor([1.0, 1.0 + 2**-10, 1.0 + 2**-6]), torch.tensor([256.5, 1e-20])]
    assert weights.bf16_lost_updates(before, after).item() == pytest.approx(2 / 4)
    assert weights.bf16_lost_updates(before, before).item() == 0.0


def test_differences_are_held_a_part_at_a_time_and_give_the_same_numbers(
    tensors: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [tensor + 0.01 * tensor.abs() for tensor in tensors]
    whole = weights.rotation(before, tensors), weights.update_norm(before, tensors)
    subtract, held = torch._foreach_sub, []

    def counting(left: list[torch.Tensor], right: list[torch.Tensor]) -> list[torch.Tensor]:
        held.append(sum(tensor.numel() for tensor in left))
        return subtract(left, right)

    monkeypatch.setattr(torch, "_foreach_sub", counting)
    monkeypatch.setattr(weights, "AT_ONCE", 20)
    in_parts = weights.rotation(before, tensors), weights.update_norm(before, tensors)
    assert held == 2 * [108, 20]  # the first tensor alone is larger than a part
    assert [value.item() for value in in_parts] == [value.item() for value in whole]
