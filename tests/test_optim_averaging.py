"""Weight averages against closed forms in float64, and batch norm re-estimated for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from weight_decay.errors import UserError
from weight_decay.optim.averaging import Averages, TailAverage, reestimate_batch_norm

DECAYS = [0.5, 0.98, 0.999]


def net(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)]
    return nn.Sequential(*layers, nn.Dropout(0.5), nn.Flatten()).to(dtype)


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().double().clone() for p in model.parameters()]


def wander(
    model: nn.Module, steps: range, after: Callable[[int], None], scale: float = 0.1
) -> list[list[torch.Tensor]]:
    """Change the weights at random; returns w_1 ... w_T in float64."""
    trajectory = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        with torch.no_grad():
            for p in model.parameters():
                p.add_((scale * torch.randn(p.shape, generator=generator)).to(p.dtype))
        after(step)
        trajectory.append(weights(model))
    return trajectory


def closed_form(start: list[torch.Tensor], path: list[list[torch.Tensor]], beta: float) -> list[torch.Tensor]:
    total = len(path)
    return [
        beta**total * w0 + (1 - beta) * sum(beta ** (total - s) * path[s - 1][i] for s in range(1, total + 1))
        for i, w0 in enumerate(start)
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_exponential_averages_equal_the_closed_form(dtype: torch.dtype) -> None:
    model = net(dtype=dtype)
    start = weights(model)
    averages = Averages(model, DECAYS)
    path = wander(model, range(40), lambda _: averages.update())
    tolerance = 1e-13 if dtype == torch.float64 else 2e-6
    for beta in DECAYS:
        for average, expected in zip(averages.weights(beta), closed_form(start, path, beta), strict=True):
            assert average.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            torch.testing.assert_close(average.double(), expected, rtol=tolerance, atol=tolerance)


def test_average_of_bfloat16_weights_does_not_stall() -> None:
    # In bfloat16 itself the average would stay at 1: (1 - 0.999) · 1 is below half a unit in the last place.
    layer = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    nn.init.constant_(layer.weight, 1.0)
    averages = Averages(layer, [0.999])
    nn.init.constant_(layer.weight, 2.0)
    for _ in range(100):
        averages.update()
    assert averages.weights(0.999)[0].item() == pytest.approx(2 - 0.999**100, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tail_average_is_the_mean_from_its_start(dtype: torch.dtype) -> None:
    model = net(dtype=dtype)
    tail = TailAverage(model, start_step=7)
    path = wander(model, range(30), tail.update)
    for i, p in enumerate(tail.model().parameters()):
        expected = torch.stack([point[i] for point in path[7:]]).mean(0)
        torch.testing.assert_close(p.double(), expected.to(dtype).double(), rtol=1e-5, atol=1e-6)


def test_averaged_model_is_separate_from_the_training_model() -> None:
    model = net()
    images = torch.randn(8, 3, 6, 6)
    averages = Averages(model, DECAYS)
    wander(model, range(5), lambda _: averages.update())
    model(images).sum().backward()
    gradients = [p.grad for p in model.parameters()]
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    view = averages.model_for(0.98)
    assert not view.training
    assert model.training
    for p, average in zip(view.parameters(), averages.weights(0.98), strict=True):
        assert torch.equal(p, average)
        assert p.grad is None
        assert p.grad is None
    for buffer, source in zip(view.buffers(), model.buffers(), strict=True):
        assert torch.equal(buffer, source)
    reestimate_batch_norm(view, [images])
    assert not torch.equal(view[1].running_mean, model[1].running_mean)
    assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    # The next view starts from the training model's statistics again, and from another average.
    again = averages.model_for(0.5)
    assert torch.equal(again[1].running_mean, model[1].running_mean)
    assert torch.equal(next(again.parameters()), averages.weights(0.5)[0])


def test_tied_weights_stay_tied() -> None:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    model[1].weight = model[0].weight
    averages = Averages(model, [0.9])
    wander(model, range(3), lambda _: averages.update())
    view = averages.model_for(0.9)
    assert view[0].weight is view[1].weight


def test_resumed_averages_are_bitwise_equal(tmp_path: Path) -> None:
    model = net()
    averages, tail = Averages(model, DECAYS), TailAverage(model, start_step=2)

    def after(step: int) -> None:
        averages.update()
        tail.update(step)

    wander(model, range(4), after)
    torch.save({"ema": averages.state_dict(), "tail": tail.state_dict(), "model": model.state_dict()}, tmp_path / "s")
    wander(model, range(4, 8), after)

    saved = torch.load(tmp_path / "s", weights_only=True)
    other = net(seed=5)
    averages2, tail2 = Averages(other, DECAYS), TailAverage(other, start_step=2)
    other.load_state_dict(saved["model"])
    averages2.load_state_dict(saved["ema"])
    tail2.load_state_dict(saved["tail"])

    def after2(step: int) -> None:
        averages2.update()
        tail2.update(step)

    wander(other, range(4, 8), after2)
    for beta in DECAYS:
        for a, b in zip(averages.weights(beta), averages2.weights(beta), strict=True):
            assert torch.equal(a, b)
    for a, b in zip(tail.model().parameters(), tail2.model().parameters(), strict=True):
        assert torch.equal(a, b)


def test_bad_input_is_refused() -> None:
    model = net()
    for decays in ([0.0], [1.0], [1.5], [0.9, 0.9]):
        with pytest.raises(UserError):
            Averages(model, decays)
    with pytest.raises(UserError, match="same list"):
        Averages(model, [0.9]).load_state_dict(Averages(model, [0.99]).state_dict())
    with pytest.raises(UserError, match="same model"):
        Averages(model, [0.9]).load_state_dict(Averages(nn.Linear(2, 2), [0.9]).state_dict())
    with pytest.raises(UserError, match="same start"):
        TailAverage(model, 1).load_state_dict(TailAverage(model, 2).state_dict())
    with pytest.raises(UserError, match="no data"):
        reestimate_batch_norm(model, [])


def test_no_averages_is_allowed() -> None:
    averages = Averages(net(), [])
    averages.update()
    assert averages.state_dict() == {"decays": [], "weights": []}


def test_batch_norm_statistics_are_sample_weighted_means_over_the_pass() -> None:
    model = net().double()
    batches = [torch.randn(n, 3, 6, 6, dtype=torch.float64) * (i + 1) for i, n in enumerate((8, 8, 2))]
    model[1].eval()
    modes = [m.training for m in model.modules()]
    assert reestimate_batch_norm(model, iter(batches)) == 18
    assert [m.training for m in model.modules()] == modes
    assert model[1].momentum == model[4].momentum == 0.1

    def mean_and_variance(activations: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        share = torch.tensor([8, 8, 2], dtype=torch.float64) / 18
        means = torch.stack([a.mean((0, 2, 3)) for a in activations])
        variances = torch.stack([a.var((0, 2, 3), unbiased=True) for a in activations])
        return share @ means, share @ variances

    with torch.no_grad():
        first = [model[0](b) for b in batches]
        normalised = [nn.functional.batch_norm(a, None, None, model[1].weight, model[1].bias, True) for a in first]
        second = [model[3](a.relu()) for a in normalised]
    for norm, activations in ((model[1], first), (model[4], second)):
        mean, variance = mean_and_variance(activations)
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(norm.running_var, variance, rtol=1e-12, atol=1e-12)
    statistics = [b.clone() for b in (model[4].running_mean, model[4].running_var)]
    reestimate_batch_norm(model, reversed(batches))
    torch.testing.assert_close(statistics, [model[4].running_mean, model[4].running_var], rtol=1e-12, atol=1e-12)


def test_equal_batches_agree_with_torch() -> None:
    ours, torchs = net().eval(), net().eval()
    for model in (ours, torchs):
        model[5].p = 0.0  # torch's pass runs dropout
    batches = [torch.randn(8, 3, 6, 6) for _ in range(5)]
    reestimate_batch_norm(ours, batches)
    torch.optim.swa_utils.update_bn(batches, torchs)
    for i in (1, 4):
        torch.testing.assert_close(ours[i].running_mean, torchs[i].running_mean)
        torch.testing.assert_close(ours[i].running_var, torchs[i].running_var)


def test_a_failing_pass_leaves_the_statistics_alone() -> None:
    model = net()
    before = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
    with pytest.raises(RuntimeError):
        reestimate_batch_norm(model, [torch.randn(4, 3, 6, 6), torch.randn(4, 2, 6, 6)])
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())


def test_models_without_batch_norm_read_no_data() -> None:
    def explode() -> torch.Tensor:
        raise AssertionError("data was read")

    assert reestimate_batch_norm(nn.Linear(2, 2), (explode() for _ in range(1))) == 0
