"""The public API around loops that do what ours does not: losses in bfloat16, thawed layers, odd optimizers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import weight_decay
from weight_decay.probes.divergence import BLOCK, DivergenceMonitor


@pytest.mark.parametrize(("dtype", "value"), [(torch.bfloat16, 2.296875), (torch.float16, 2000.0)])
def test_the_mean_of_many_losses_of_16_bits(dtype: torch.dtype, value: float) -> None:
    """Added up in bfloat16 a thousand losses of 2.3 come to 1,024; in float16 they soon are infinite."""
    model = nn.Linear(2, 2)
    measure = weight_decay.Measure(model, torch.optim.SGD(model.parameters()), every=1000)
    for _ in range(1000):
        measure.step(torch.tensor(value, dtype=dtype))
    assert measure.records[0]["batch/loss"] == pytest.approx(value)


def test_divergence_is_judged_by_losses_of_16_bits_as_by_numbers() -> None:
    losses = torch.linspace(11.0, 3.0, 2 * BLOCK).bfloat16()
    ours, theirs = (DivergenceMonitor(threshold=0.5, patience=100, grace=0) for _ in range(2))
    assert ours.update(0, list(losses)) is theirs.update(0, losses.tolist()) is None  # type: ignore[arg-type]
    assert (ours.start, ours.best) == (theirs.start, theirs.best)


def test_a_schedule_that_moves_on_before_the_record() -> None:
    """Every number of a record is of the step that was made, not of the learning rate of the next one."""
    model = nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    measure = weight_decay.Measure(model, optimizer, every=1)
    model(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = 1e-4, 0.3
    measure.step()
    moments = [optimizer.state[p]["exp_avg_sq"].flatten() for p in model.parameters()]
    expected = (0.01 / (torch.cat(moments).sqrt() + 1e-8)).mean()
    record = measure.records[0]
    assert record["effective_lr/adam_coordinate"] == pytest.approx(float(expected), rel=1e-5)
    assert (record["lr"], record["weight_decay"]) == (0.01, 0.1)


def test_layers_that_are_thawed_count_from_then_on() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    measure = weight_decay.Measure(model, optimizer, every=1)

    def step() -> dict[str, float]:
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        measure.step()
        return measure.records[-1]

    assert step()["weights/norm"] == pytest.approx(float(_flat(model[1]).norm()))
    model[0].requires_grad_(True)
    optimizer.add_param_group({"params": list(model[0].parameters())})
    before = _flat(model).clone()
    record = step()
    assert record["weights/norm"] == pytest.approx(float(_flat(model).norm()))
    assert record["update/norm"] == pytest.approx(float((_flat(model) - before).norm()), rel=1e-4)


def _flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


class _Own(torch.optim.Adam):
    """Adam under another name."""


@pytest.mark.parametrize("name", ["NAdam", "RAdam", "RMSprop", "Adagrad", "Adamax", "Adadelta", "own"])
def test_a_penalty_under_an_adaptive_step_is_no_decay(name: str) -> None:
    """Its strength is not η·λ, so nothing that follows from η·λ may be said."""
    kind = _Own if name == "own" else getattr(torch.optim, name)
    parameters = list(nn.Linear(4, 4).parameters())
    with pytest.raises(weight_decay.UserError, match="adds λ w to the gradient"):
        weight_decay.decay_kept(kind(parameters, lr=0.1, weight_decay=0.1))
    decoupled = torch.optim.NAdam(parameters, lr=0.1, weight_decay=0.1, decoupled_weight_decay=True)
    assert weight_decay.decay_kept(decoupled).kept


class _Wrapper:
    """What accelerate puts around an optimizer, as far as it matters here."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.param_groups = optimizer, optimizer.param_groups


def test_decay_kept_looks_into_wrappers_and_past_frozen_weights() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).requires_grad_(True)
    with pytest.raises(weight_decay.UserError, match="Adam"):
        weight_decay.decay_kept(_Wrapper(torch.optim.Adam(model.parameters(), weight_decay=0.1)))  # type: ignore[arg-type]
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    model[0].requires_grad_(False)
    both, alone = (torch.optim.AdamW(m.parameters(), lr=0.01, weight_decay=0.3) for m in (model, model[1]))
    expected = weight_decay.decay_kept(alone, torch.bfloat16)
    assert 0 < expected.share < 1 and weight_decay.decay_kept(both, torch.bfloat16) == expected


def test_a_hook_that_changes_a_layer_by_little_is_noticed() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    model[0].register_forward_hook(lambda module, inputs, output: output * 1.02)
    batch = torch.randn(5, 6)
    found, parameters = weight_decay.jacobian_norm(model, batch), list(model.parameters())
    squares = [
        torch.autograd.grad(output, parameters, retain_graph=True)
        for sample in batch
        for output in model(sample[None])[0]
    ]
    expected = sum(float(g.square().sum()) for row in squares for g in row) / len(batch)
    assert float(found.mean_square) == pytest.approx(expected, rel=1e-4)


class _AlwaysDropout(nn.Module):
    """The functional dropout, which nobody has told of eval mode."""

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.dropout(inputs)


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(4, track_running_stats=False), _AlwaysDropout()])
def test_samples_that_change_one_another_have_no_jacobian(layer: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), layer, nn.Flatten(), nn.Linear(64, 2))
    with pytest.raises(weight_decay.UserError, match="change with the samples beside it"):
        weight_decay.jacobian_norm(model, torch.randn(5, 3, 6, 6))


def test_an_ema_of_a_layer_that_was_replaced_is_refused() -> None:
    """A new head would be given the old one's average."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    ema = weight_decay.EMA(model, 0.5)
    model[1] = nn.Linear(4, 2)
    ema.update()
    with pytest.raises(weight_decay.UserError, match="other parameters now"):
        ema.model()
