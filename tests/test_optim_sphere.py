"""Projection on the sphere after every step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from methods import method
from weight_decay.errors import UserError
from weight_decay.optim.decay import ParameterGroup
from weight_decay.optim.norm import project_
from weight_decay.optim.optimizers import DecayedOptimizer


def whole(parameters: list[nn.Parameter]) -> torch.Tensor:
    return torch.cat([p.detach().double().flatten() for p in parameters])


def test_norm_stays_at_the_radius_for_100_steps() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(400, 300), (64, 3, 3, 3), (10,)]
    parameters = [nn.Parameter(torch.randn(s, generator=generator)) for s in shapes]
    groups = [ParameterGroup(("a", "b", "c"), parameters, 0.0)]
    optimizer = DecayedOptimizer(groups, method("sgd", 5e-3, 0.0, (0.9, 0.95), 1e-8, False, "decoupled", None))
    for radius in (1.0, 7.5):
        project_(parameters, radius)
        for _ in range(100):
            for p in parameters:
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()
            assert abs(whole(parameters).norm().item() / radius - 1) > 1e-4  # the step leaves the sphere
            project_(parameters, radius)
            assert whole(parameters).norm().item() == pytest.approx(radius, rel=1e-6)


def test_direction_is_unchanged_and_the_old_norm_returned() -> None:
    parameters = [nn.Parameter(torch.randn(2_000_000)), nn.Parameter(torch.randn(50, 20))]
    before = whole(parameters)
    norm = project_(parameters, 3.0)
    after = whole(parameters)
    assert norm.item() == pytest.approx(before.norm().item(), rel=1e-6)
    assert after.norm().item() == pytest.approx(3.0, rel=1e-6)
    torch.testing.assert_close(after / 3.0, before / before.norm(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("radius", [0.0, -1.0, float("nan")])
def test_bad_radius(radius: float) -> None:
    with pytest.raises(UserError, match="radius"):
        project_([nn.Parameter(torch.ones(2))], radius)
