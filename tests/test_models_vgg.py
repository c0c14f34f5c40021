from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from weight_decay.errors import UserError
from weight_decay.models.vgg import IMAGENET_MEAN, IMAGENET_STD, VGG


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weighted_layers(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]


def test_vgg16_has_the_papers_parameter_count_and_initial_norm() -> None:
    with torch.device("meta"):
        model = VGG()
    assert sum(p.numel() for p in model.parameters()) == 15_245_130
    model.to_empty(device="cpu")
    model.initialise(seeded())
    norm = torch.stack([p.double().square().sum() for p in model.parameters()]).sum().sqrt()
    assert norm.item() == pytest.approx(88.2, abs=0.15)


@pytest.mark.parametrize("depth", [11, 13, 16, 19])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_features_are_those_of_torchvision(depth: int, batch_norm: bool) -> None:
    name = f"vgg{depth}_bn" if batch_norm else f"vgg{depth}"
    with torch.device("meta"):
        ours, theirs = (
            VGG(depth, batch_norm=batch_norm).features,
            getattr(torchvision.models, name)().features,
        )
    shapes = [[tuple(p.shape) for p in m.parameters()] for m in weighted_layers(ours)]
    assert shapes == [[tuple(p.shape) for p in m.parameters()] for m in weighted_layers(theirs)]

    model = VGG(depth, batch_norm=batch_norm)
    model.initialise(seeded())
    theirs.to_empty(device="cpu")
    for source, target in zip(weighted_layers(model.features), weighted_layers(theirs), strict=True):
        target.load_state_dict(source.state_dict())
    images = torch.randn(2, 3, 32, 32, generator=seeded(1))
    with torch.no_grad():
        torch.testing.assert_close(model.features(images), theirs(images))


def functional_vgg(model: VGG, images: Tensor, pools_after: set[int]) -> Tensor:
    """VGG without batch norm written a second time, from the weights in order."""
    x, number = images, 0
    for layer in weighted_layers(model):
        if isinstance(layer, nn.Conv2d):
            number += 1
            x = F.conv2d(x, layer.weight, layer.bias, padding=1).clamp(min=0)
            x = F.max_pool2d(x, 2) if number in pools_after else x
        else:
            x = x.flatten(1) @ layer.weight.t() + layer.bias
            x = x if layer is model.head else x.clamp(min=0)
    return x


@pytest.mark.parametrize(
    ("size", "pools_after"), [(16, {2, 4, 7, 10}), (32, {2, 4, 7, 10, 13}), (64, {2, 4, 7, 10, 13})]
)
def test_logits_and_gradients_agree_with_a_second_writing(size: int, pools_after: set[int]) -> None:
    model = VGG(width=4, classes=5, image_size=size).double()
    model.initialise(seeded())
    images = torch.randn(3, 3, size, size, generator=seeded(1), dtype=torch.float64)
    labels = torch.tensor([4, 0, 1])
    logits, expected = model(images), functional_vgg(model, images, pools_after)
    assert logits.shape == (3, 5)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-10)
    ours = torch.autograd.grad(F.cross_entropy(logits, labels), list(model.parameters()))
    theirs = torch.autograd.grad(F.cross_entropy(expected, labels), list(model.parameters()))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-11)


def test_initialise_uses_its_generator_alone_and_sets_everything() -> None:
    with torch.device("meta"):
        lean = VGG(width=4, batch_norm=True)
    lean.to_empty(device="cpu")
    for tensor in lean.state_dict().values():
        tensor.fill_(77)
    before = torch.get_rng_state()
    lean.initialise(seeded(3))
    assert torch.equal(torch.get_rng_state(), before)
    plain = VGG(width=4, batch_norm=True)
    plain.initialise(seeded(3))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(lean.state_dict()[name], tensor), name
    assert all(not m.bias.any() for m in lean.modules() if isinstance(m, nn.Conv2d))


def test_every_batch_norm_has_norm_in_its_name() -> None:
    model = VGG(width=4, batch_norm=True)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == 13
    for name, module in model.named_modules():
        assert isinstance(module, nn.BatchNorm2d) == ("norm" in name)


@pytest.mark.parametrize(
    "arguments",
    [
        {"depth": 18},
        {"width": 0},
        {"classes": 0},
        {"initialisation": "he"},
        {"image_size": 24},
        {"image_size": 8},
    ],
)
def test_bad_arguments_are_refused_by_name(arguments: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(arguments))):
        VGG(**arguments)  # type: ignore[arg-type]


def test_a_second_normalisation_of_the_input() -> None:
    plain, twice = (VGG(16, 8, 10, image_size=16, normalise_input=on).double() for on in (False, True))
    plain.initialise(torch.Generator().manual_seed(0))
    twice.load_state_dict(plain.state_dict())  # nothing more to save
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(twice(images), plain((images - mean) / std), rtol=1e-6, atol=1e-8)
    assert not torch.allclose(twice(images), plain(images))
