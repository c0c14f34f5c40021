"""The exact Jacobian norm and its estimator, against the Jacobian built by torch.func."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn import functional as F

from weight_decay.device.traits import KNOWN
from weight_decay.errors import UserError
from weight_decay.models.resnet import PreActResNet
from weight_decay.probes.jacobian import (
    jacobian_mean_square_estimate,
    jacobian_norm,
    scale_free_jacobian_norm,
)
from weight_decay.probes.weights import global_norm, trainable_parameters

CLASSES = 3


class PreActivationNet(nn.Module):
    """Norm on the input, a strided 1x1 shortcut beside a padded path, an in-place ReLU and residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.input_norm = nn.BatchNorm2d(3)
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(4)
        self.shortcut = nn.Conv2d(4, 6, 1, stride=2, bias=False)
        self.conv1 = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(6, affine=False)
        self.conv2 = nn.Conv2d(6, 6, 3, padding="same", dilation=2, bias=False)
        self.norm3 = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        active = F.relu_(self.norm1(self.stem(self.input_norm(inputs))))
        out = self.conv2(F.relu(self.norm2(self.conv1(active))))
        out += self.shortcut(active)
        out = F.relu(self.norm3(out))
        return self.head(F.adaptive_avg_pool2d(out, 1).flatten(1))


def vgg_like() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(5, 7, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
        nn.ReLU(inplace=True),
        nn.Conv2d(7, 40, 2, padding="same"),  # more channels than positions; uneven padding
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(40 * 2 * 2, 6),
        nn.ReLU(),
        nn.Linear(6, CLASSES),
    )


def tokens_net() -> nn.Module:
    """A Linear applied at every position, as in (samples, positions, features)."""
    return nn.Sequential(
        nn.Flatten(2),
        nn.Linear(64, 5),
        nn.ReLU(),
        nn.Linear(5, 4, bias=False),
        nn.Flatten(),
        nn.Linear(12, CLASSES),
    )


def resnet18() -> nn.Module:
    return PreActResNet(depth=18, width=2, classes=CLASSES)


def grouped_net() -> nn.Module:
    """Two, then as many groups as channels; padding by reflection and round the edge; strides and dilation."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect"),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=(1, 2), padding_mode="circular", groups=2, stride=(2, 1)),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 16, 3, padding="same", dilation=2, groups=8, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 4 * 10, CLASSES),
    )


class WordsNet(nn.Module):
    """Tokens, each looked up more than once and one of them padding; norms over one and two dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 6, padding_idx=0)
        self.norm = nn.LayerNorm(6)
        self.mix = nn.Linear(6, 4)
        self.norm2 = nn.LayerNorm((12, 4), bias=False)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = (inputs.flatten(1)[:, :12] * 2).round().long().clamp(-2, 2) + 2
        hidden = self.norm2(self.mix(self.norm(self.table(tokens))).tanh())
        return self.head(hidden.mean(1))


MODELS = {
    "pre_activation": PreActivationNet,
    "vgg": vgg_like,
    "tokens": tokens_net,
    "resnet18": resnet18,
    "grouped": grouped_net,
    "words": WordsNet,
}


def build(name: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[name]().to(dtype)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.3, 3.0)
            if module.affine:
                nn.init.normal_(module.weight, 1.0, 0.4)
                nn.init.normal_(module.bias, 0.0, 0.4)
        if isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.weight, 1.0, 0.4)
    return model


def dense_squares(model: nn.Module, inputs: Tensor) -> Tensor:
    """‖J_i‖_F² from the full Jacobian, trainable parameters only."""
    model = copy.deepcopy(model).eval()
    trainable = {k: p.detach() for k, p in model.named_parameters() if p.requires_grad}

    def logits(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(model, parameters, (sample[None],))[0]

    # One sample at a time: in-place operations do not all have a vmap rule over samples.
    jacobians = [jacrev(logits)(trainable, sample) for sample in inputs]
    return torch.stack([sum(block.square().sum() for block in blocks.values()) for blocks in jacobians])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_exact_norm_equals_the_dense_jacobian(name: str, dtype: torch.dtype, tolerance: float) -> None:
    model = build(name, dtype)
    inputs = torch.randn(7, 3, 8, 8, dtype=dtype)
    expected = dense_squares(model, inputs)
    measured = jacobian_norm(model, [inputs[:5], inputs[5:]], samples_at_once=3)
    torch.testing.assert_close(measured.per_sample_square, expected, rtol=tolerance, atol=0)
    torch.testing.assert_close(measured.mean_square, expected.mean(), rtol=tolerance, atol=0)
    torch.testing.assert_close(measured.mean_norm, expected.sqrt().mean(), rtol=tolerance, atol=0)


def test_channels_last_gives_the_same_norm() -> None:
    model = build("pre_activation", torch.float64)
    inputs = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    expected = dense_squares(model, inputs)
    model = model.to(memory_format=torch.channels_last)
    measured = jacobian_norm(model, [inputs.to(memory_format=torch.channels_last)])
    torch.testing.assert_close(measured.per_sample_square, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    "frozen", ["head", "stem", "input_norm", "norm3.weight", "norm3.bias", "head.bias", "head.weight"]
)
def test_frozen_parameters_do_not_count(frozen: str) -> None:
    model = build("pre_activation", torch.float64)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    inputs = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    measured = jacobian_norm(model, [inputs]).per_sample_square
    torch.testing.assert_close(measured, dense_squares(model, inputs), rtol=1e-10, atol=0)
    assert not torch.allclose(measured, dense_squares(build("pre_activation", torch.float64), inputs), rtol=1e-6)


def test_scale_free_norm_ignores_the_scale_of_weights_before_a_norm() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4, eps=0, affine=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 3),
    ).double()
    model[4].requires_grad_(False)
    inputs = torch.randn(5, 3, 4, 4, dtype=torch.float64)

    def measure() -> tuple[Tensor, Tensor]:
        mean_square = jacobian_norm(model, [inputs]).mean_square
        return mean_square, scale_free_jacobian_norm(mean_square, global_norm(trainable_parameters(model)))

    plain, free = measure()
    with torch.no_grad():
        model[0].weight.mul_(3)
        model[1].running_var.mul_(9)
    scaled_plain, scaled_free = measure()
    torch.testing.assert_close(scaled_plain, plain / 9)
    torch.testing.assert_close(scaled_free, free)


def test_the_model_is_left_untouched() -> None:
    model = build("pre_activation", torch.float32).train()
    model.norm2.eval()  # a mix of modes must survive
    model.stem.weight.requires_grad_(False)
    inputs = torch.randn(4, 3, 8, 8)
    model(inputs).sum().backward()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    random_state = torch.get_rng_state()
    with torch.no_grad():
        jacobian_norm(model, [inputs])
        jacobian_mean_square_estimate(model, [inputs], torch.Generator().manual_seed(1))
        assert not torch.is_grad_enabled()
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert (parameter.grad is None and gradient is None) or torch.equal(parameter.grad, gradient)
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(module._forward_hooks for module in model.modules())


def test_mode_and_hooks_are_restored_when_the_model_fails() -> None:
    model = build("pre_activation", torch.float32).train()
    with pytest.raises(RuntimeError):
        jacobian_norm(model, [torch.randn(2, 5, 8, 8)])
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


def test_estimate_is_unbiased_and_its_standard_error_honest() -> None:
    model = build("vgg", torch.float64)
    inputs = torch.randn(6, 3, 8, 8, dtype=torch.float64)
    exact = jacobian_norm(model, [inputs]).per_sample_square
    repeats = 400
    generator = torch.Generator().manual_seed(3)
    estimate, error = jacobian_mean_square_estimate(model, [inputs], generator, repeats)
    # The error must cover the choice of samples, which here is all that many repeats leave.
    torch.testing.assert_close(error, exact.std() / 6**0.5, rtol=0.2, atol=0)
    # Relative sd per draw is about 1, so the mean over 2,400 draws is within 4 % but for one run in 50.
    torch.testing.assert_close(estimate, exact.mean(), rtol=0.05, atol=0)
    again, _ = jacobian_mean_square_estimate(model, [inputs], torch.Generator().manual_seed(3), repeats)
    assert again == estimate


def test_standard_error_covers_the_random_vectors() -> None:
    """On copies of one sample, the spread of single-repeat estimates must match the reported error."""
    model = build("vgg", torch.float64)
    inputs = torch.randn(1, 3, 8, 8, dtype=torch.float64).expand(16, 3, 8, 8)
    generator = torch.Generator().manual_seed(5)
    draws = [jacobian_mean_square_estimate(model, [inputs], generator) for _ in range(40)]
    estimates, errors = (torch.stack(values) for values in zip(*draws, strict=True))
    assert 0.6 < errors.mean() / estimates.std() < 1.6


class SharedLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.second(self.first(self.first(inputs)))


class FunctionalUse(SharedLayer):
    def forward(self, inputs: Tensor) -> Tensor:
        return self.second(F.linear(inputs, self.first.weight, self.first.bias))


class TiedWeights(SharedLayer):
    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.second(self.first(inputs))


class ChangedInput(SharedLayer):
    def forward(self, inputs: Tensor) -> Tensor:
        inputs = inputs * 1
        out = self.first(inputs)
        with torch.no_grad():
            inputs.zero_()
        return self.second(out)


class HalfUsed(SharedLayer):
    def forward(self, inputs: Tensor) -> Tensor:
        return self.first(inputs)


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (SharedLayer(), "'first'"),
        (TiedWeights(), "'first'"),
        (HalfUsed(), "'second'"),
        (nn.Sequential(nn.Linear(4, 4), nn.RMSNorm(4)), "'1' (RMSNorm)"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), "ParametrizedLinear"),
        (nn.Sequential(nn.Unflatten(1, (4, 1)), nn.Conv1d(4, 4, 1, groups=2)), "'1' (Conv1d)"),
        (nn.Sequential(nn.Linear(4, 4), nn.Embedding(4, 4, max_norm=1.0)), "'1' (Embedding)"),
        (
            nn.Sequential(nn.Unflatten(1, (4, 1, 1)), nn.BatchNorm2d(4, track_running_stats=False)),
            "'1' (BatchNorm2d)",
        ),
        (nn.Linear(4, 2).requires_grad_(False), "none"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_unsupported_models_are_refused_by_name(model: nn.Module, named: str) -> None:
    with pytest.raises(UserError) as refusal:
        jacobian_norm(model, [torch.randn(3, 4)])
    assert named in str(refusal.value)


def test_functional_use_and_changed_inputs_are_refused() -> None:
    with pytest.raises(UserError, match="'first'"):
        jacobian_norm(FunctionalUse(), [torch.randn(3, 4)])
    frozen_weight = ChangedInput()
    frozen_weight.first.weight.requires_grad_(False)  # else autograd itself refuses
    with pytest.raises(UserError, match="'first'"):
        jacobian_norm(frozen_weight, [torch.randn(3, 4)])


@pytest.mark.parametrize(
    "call",
    [
        lambda model: jacobian_norm(model, []),
        lambda model: jacobian_norm(model, [torch.randn(2, 4)], samples_at_once=0),
        lambda model: jacobian_mean_square_estimate(model, [torch.randn(2, 4)], torch.Generator(), repeats=0),
        lambda model: jacobian_mean_square_estimate(model, [torch.randn(1, 4)], torch.Generator()),
        lambda model: jacobian_norm(nn.Sequential(model, nn.Unflatten(1, (1, 2))), [torch.randn(2, 4)]),
    ],
)
def test_bad_calls_are_refused(call) -> None:
    with pytest.raises(UserError):
        call(nn.Linear(4, 2))


def test_backwards_made_as_one_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """On an accelerator the classes' backwards go through the graph together, in groups that need not divide them."""
    torch.manual_seed(0)
    model = PreActResNet(depth=18, width=4, classes=5)
    images = torch.randn(3, 3, 16, 16)
    one_by_one = jacobian_norm(model, [images]).per_sample_square
    monkeypatch.setitem(KNOWN, "cpu", dataclasses.replace(KNOWN["cpu"], backwards_at_once=3))
    assert torch.allclose(jacobian_norm(model, [images]).per_sample_square, one_by_one, rtol=1e-5)
