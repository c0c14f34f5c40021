from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weight_decay.errors import UserError
from weight_decay.models.layout import channels_last
from weight_decay.models.resnet import PreActResNet


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def parameter_norm(model: nn.Module) -> float:
    return torch.stack([p.double().square().sum() for p in model.parameters()]).sum().sqrt().item()


def trainable(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("depth", "classes", "scale_invariant", "expected"),
    [(18, 10, False, 11_172_176), (34, 100, False, 21_326_506), (18, 10, True, 11_164_032)],
)
def test_trainable_parameter_counts_are_the_papers(
    depth: int, classes: int, scale_invariant: bool, expected: int
) -> None:
    with torch.device("meta"):
        model = PreActResNet(depth, 64, classes, scale_invariant=scale_invariant)
    assert trainable(model) == expected


@pytest.mark.parametrize(("initialisation", "norm"), [("pytorch", 74.2), ("he_fan_out", 107.7)])
def test_initial_norm_is_the_papers(initialisation: str, norm: float) -> None:
    with torch.device("meta"):
        model = PreActResNet(initialisation=initialisation)
    model.to_empty(device="cpu")
    model.initialise(seeded())
    assert parameter_norm(model) == pytest.approx(norm, abs=0.1)


def test_pytorch_initialisation_has_the_distribution_of_torchs_own_layers() -> None:
    model = PreActResNet(width=32)
    model.initialise(seeded())
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            torch.manual_seed(1)
            reference = copy.deepcopy(module)
            reference.reset_parameters()
            ours, torchs = module.weight.detach(), reference.weight.detach()
            assert ours.std() == pytest.approx(torchs.std().item(), rel=0.02)
            assert ours.abs().max() == pytest.approx(torchs.abs().max().item(), rel=0.002)
            assert not torch.equal(ours, torchs)


def test_initialise_uses_its_generator_alone_and_sets_everything() -> None:
    with torch.device("meta"):
        lean = PreActResNet(width=8, scale_invariant=True)
    lean.to_empty(device="cpu").double().to(memory_format=torch.channels_last)
    for tensor in lean.state_dict().values():
        tensor.fill_(77)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    lean.initialise(seeded(3))
    assert torch.equal(torch.get_rng_state(), before)

    plain = PreActResNet(width=8, scale_invariant=True)
    plain.initialise(seeded(3))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(lean.state_dict()[name].to(tensor.dtype), tensor), name
    plain.initialise(seeded(4))
    assert not torch.equal(plain.stem.weight.double(), lean.stem.weight)


def functional_resnet(state: dict[str, Tensor], images: Tensor, blocks: list[int]) -> Tensor:
    """The paper's network written a second time, from the weights, in training mode."""

    def norm(name: str, x: Tensor) -> Tensor:
        mean = x.mean((0, 2, 3), keepdim=True)
        variance = x.var((0, 2, 3), keepdim=True, unbiased=False)
        scale, shift = state[f"{name}.weight"], state[f"{name}.bias"]
        return (x - mean) / (variance + 1e-5).sqrt() * scale[:, None, None] + shift[:, None, None]

    x = F.conv2d(norm("input_norm", images), state["stem.weight"], padding=1)
    index = 0
    for stage, count in enumerate(blocks):
        for position in range(count):
            stride = 2 if stage > 0 and position == 0 else 1
            prefix = f"blocks.{index}"
            activated = norm(f"{prefix}.norm1", x).clamp(min=0)
            skip = F.conv2d(activated, state[f"{prefix}.shortcut.weight"], stride=stride) if stride == 2 else x
            out = F.conv2d(activated, state[f"{prefix}.conv1.weight"], stride=stride, padding=1)
            out = norm(f"{prefix}.norm2", out).clamp(min=0)
            x = F.conv2d(out, state[f"{prefix}.conv2.weight"], padding=1) + skip
            index += 1
    pooled = norm("final_norm", x).clamp(min=0).mean((2, 3))
    return pooled @ state["head.weight"].t() + state["head.bias"]


@pytest.mark.parametrize(("depth", "size"), [(18, 16), (18, 32), (34, 16), (18, 64)])
def test_logits_and_gradients_agree_with_a_second_writing(depth: int, size: int) -> None:
    model = PreActResNet(depth, width=4, classes=7).double()
    model.initialise(seeded())
    noise = seeded(1)
    with torch.no_grad():
        for parameter in model.parameters():  # also moves norm scales and shifts off 1 and 0
            parameter.add_(torch.randn(parameter.shape, generator=noise), alpha=0.1)
    images = torch.randn(4, 3, size, size, generator=noise, dtype=torch.float64)
    labels = torch.tensor([0, 6, 2, 2])

    state = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    expected = functional_resnet(state, images, {18: [2, 2, 2, 2], 34: [3, 4, 6, 3]}[depth])
    logits = model(images)
    torch.testing.assert_close(logits, expected, rtol=1e-8, atol=1e-9)

    F.cross_entropy(logits, labels).backward()
    F.cross_entropy(expected, labels).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, state[name].grad, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("factor", [1 / 74, 0.5, 10.0])
@pytest.mark.parametrize("initialisation", ["pytorch", "he_fan_out"])
def test_scale_invariant_network_ignores_the_scale_of_its_weights(factor: float, initialisation: str) -> None:
    model = PreActResNet(width=8, initialisation=initialisation, scale_invariant=True).double()
    model.initialise(seeded())
    images = torch.randn(8, 3, 16, 16, generator=seeded(1), dtype=torch.float64)
    labels = torch.arange(8)
    logits = model(images)
    gradients = torch.autograd.grad(F.cross_entropy(logits, labels), [p for p in model.parameters() if p.requires_grad])
    weights = [p for p in model.parameters() if p.requires_grad]
    # Euler: the gradient of a function of degree 0 is orthogonal to the weights.
    inner = sum((g * w).sum() for g, w in zip(gradients, weights, strict=True))
    size = sum(g.square().sum() for g in gradients) ** 0.5 * parameter_norm(model)
    assert abs(inner / size) < 1e-8

    with torch.no_grad():
        for weight in weights:
            weight.mul_(factor)
    torch.testing.assert_close(model(images), logits, rtol=1e-6, atol=1e-7)


def test_ordinary_network_is_not_scale_invariant() -> None:
    model = PreActResNet(width=8).double()
    model.initialise(seeded())
    images = torch.randn(8, 3, 16, 16, generator=seeded(1), dtype=torch.float64)
    logits = model(images)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2.0)
    assert (model(images) - logits).abs().max() > 0.1


def test_scale_invariant_network_has_no_norm_parameters_and_a_fixed_head() -> None:
    model = PreActResNet(width=8, scale_invariant=True)
    assert not [name for name, _ in model.named_parameters() if "norm" in name]
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {
        "head.weight",
        "head.bias",
    }


def test_every_batch_norm_has_norm_in_its_name() -> None:
    for name, module in PreActResNet(34, width=4).named_modules():
        assert isinstance(module, nn.BatchNorm2d) == ("norm" in name)


def test_channels_last_and_eval_mode_change_nothing_they_should_not() -> None:
    model = PreActResNet(width=8)
    model.initialise(seeded())
    images = torch.randn(4, 3, 16, 16, generator=seeded(1))
    with torch.no_grad():
        expected = model(images)
        fast = copy.deepcopy(model).to(memory_format=torch.channels_last)
        torch.testing.assert_close(fast(images.contiguous(memory_format=torch.channels_last)), expected)
        model.eval()
        together = model(images)
        alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_narrow_strided_shortcuts_stay_out_of_channels_last() -> None:
    """oneDNN's gradient of their weights corrupts the heap there, on CPUs with AVX2 alone."""
    model = PreActResNet(width=4)
    model.initialise(seeded())
    exact = copy.deepcopy(model).double()
    seen = {}
    for name, module in channels_last(model).named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(
                lambda module, inputs, name=name: seen.update({name: (*inputs, module.weight)})
            )
    images, labels = torch.randn(4, 3, 16, 16, generator=seeded(1)), torch.arange(4)
    nn.functional.cross_entropy(model(images.contiguous(memory_format=torch.channels_last)), labels).backward()
    nn.functional.cross_entropy(exact(images.double()), labels).backward()
    default = {name for name, tensors in seen.items() if all(tensor.stride(1) != 1 for tensor in tensors[:1])}
    assert default == {name for name in seen if "shortcut" in name and model.get_submodule(name).in_channels < 8}
    assert all(seen[name][1].stride(3) == 1 for name in default)
    for ours, reference in zip(model.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.double(), reference.grad, rtol=1e-3, atol=1e-5)  # type: ignore[union-attr]


@pytest.mark.parametrize("arguments", [{"depth": 50}, {"width": 0}, {"classes": 0}, {"initialisation": "he"}])
def test_bad_arguments_are_refused_by_name(arguments: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(arguments))):
        PreActResNet(**arguments)  # type: ignore[arg-type]


def test_the_scale_invariant_nets_epsilon_is_a_choice() -> None:
    for eps in (1e-12, 1e-5):
        model = PreActResNet(18, 2, 10, scale_invariant=True, scale_invariant_eps=eps)
        assert {m.eps for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {eps}
