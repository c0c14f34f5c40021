"""What the paper's code does, in plain PyTorch: the other side of test_parity.py. It knows torch and nothing of ours.

Written from the settings and formulas of the paper and of its released code, not from either's text.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

Batch = tuple[Tensor, Tensor]


class ResidualBlock(nn.Module):
    """Pre-activation; the 1x1 shortcut reads the activated input, through a norm in the scale-invariant net only."""

    def __init__(self, inputs: int, outputs: int, stride: int, invariant: bool) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs, affine=not invariant)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=invariant)
        self.norm2 = nn.BatchNorm2d(outputs, affine=not invariant)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=invariant)
        resized = stride > 1 or inputs != outputs
        self.skip = nn.Sequential()
        if resized and invariant:
            self.skip.append(nn.BatchNorm2d(inputs, affine=False))
        if resized:
            self.skip.append(nn.Conv2d(inputs, outputs, 1, stride, bias=invariant))

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        return self.conv2(F.relu(self.norm2(self.conv1(active)))) + (self.skip(active) if len(self.skip) else x)


class ResNet(nn.Module):
    """Batch norm on the three channels, 3x3 stem, four stages, norm-ReLU-average pool-linear."""

    def __init__(self, blocks: Sequence[int], width: int, classes: int, invariant: bool = False) -> None:
        super().__init__()
        self.input_norm = nn.BatchNorm2d(3, affine=not invariant)
        self.stem = nn.Conv2d(3, width, 3, 1, 1, bias=invariant)
        self.blocks, channels = nn.Sequential(), width
        for stage, count in enumerate(blocks):
            for index in range(count):
                stride = 2 if stage and not index else 1
                self.blocks.append(ResidualBlock(channels, width << stage, stride, invariant))
                channels = width << stage
        self.final_norm = nn.BatchNorm2d(channels, affine=not invariant)
        self.head = nn.Linear(channels, classes).requires_grad_(not invariant)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.final_norm(self.blocks(self.stem(self.input_norm(images)))))
        return self.head(F.adaptive_avg_pool2d(features, 1).flatten(1))


class VGG16(nn.Module):
    """Without batch norm; normalises its input once more, with ImageNet's statistics."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.features, channels = nn.Sequential(), 3
        for stage, count in zip((1, 2, 4, 8, 8), (2, 2, 3, 3, 3), strict=True):
            for _ in range(count):
                self.features.extend([nn.Conv2d(channels, stage * width, 3, padding=1), nn.ReLU()])
                channels = stage * width
            self.features.append(nn.MaxPool2d(2))
        hidden = (nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels), nn.ReLU())
        self.classifier = nn.Sequential(*hidden, nn.Linear(channels, classes))

    def forward(self, images: Tensor) -> Tensor:
        # The constants are float32 numbers, whatever the images are.
        mean = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1).to(images)
        std = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1).to(images)
        return self.classifier(self.features((images - mean) / std).flatten(1))


class TransformerBlock(nn.Module):
    """Pre-norm, no biases, exact GELU."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, bias=False)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.norm2 = nn.LayerNorm(width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, 2))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT2(nn.Module):
    """Learned positions; the output layer is the token embedding."""

    def __init__(self, layers: int, heads: int, width: int, context: int, vocabulary: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        embedded = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        return self.norm(self.blocks(embedded)) @ self.tokens.weight.t()


def with_state_of(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """The model in double precision with these parameters and buffers, taken in order; shapes must agree."""
    model.double()
    own = model.state_dict()
    assert [tensor.shape for tensor in own.values()] == [tensor.shape for tensor in state.values()]
    model.load_state_dict({name: tensor.clone() for name, tensor in zip(own, state.values(), strict=True)})
    return model


def warmup_cosine(lr: float, least: float, warmup: int, decay_iterations: int) -> Callable[[int, nn.Module], float]:
    """Linear from 0, half a cosine from `lr` to `least`, then `least`."""

    def rate(iteration: int, model: nn.Module) -> float:
        if iteration < warmup:
            return lr * iteration / warmup
        share = min(1.0, (iteration - warmup) / (decay_iterations - warmup))
        return least + 0.5 * (1 + math.cos(math.pi * share)) * (lr - least)

    return rate


@dataclass
class Recipe:
    """How a run is trained. rate: the learning rate before an iteration. momentum None: AdamW, else SGD.

    decay: torch's own `weight_decay`; norms_too: also of the norms; penalty c: c |w|^2 in the loss, without the norms.
    parts: micro-batches. ema None: no average.
    """

    rate: Callable[[int, nn.Module], float]
    decay: float = 0.0
    momentum: float | None = None
    norms_too: bool = True
    penalty: float = 0.0
    clip: float | None = None
    parts: int = 1
    scaled: bool = False
    on_sphere: bool = False
    ema: float | None = None
    autocast: torch.dtype | None = None


@dataclass
class Trained:
    """What three iterations left behind."""

    model: nn.Module
    average: AveragedModel | None
    optimizer: torch.optim.Optimizer
    losses: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def _to_unit_sphere(weights: list[Tensor]) -> None:
    norm = torch.cat([weight.flatten() for weight in weights]).norm()
    for weight in weights:
        weight.div_(norm)


def train(model: nn.Module, batches: Sequence[Batch], first: int, recipe: Recipe, state: Any = None) -> Trained:
    """Train on the batches of the iterations from `first` on; `state`: an optimizer's to begin with."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    kept = {id(own) for part in model.modules() if isinstance(part, nn.LayerNorm) for own in part.parameters()}
    plain, norms = ([weight for weight in weights if (id(weight) in kept) is yes] for yes in (False, True))
    groups: list[dict[str, Any]] = [{"params": plain, "weight_decay": recipe.decay}]
    if norms:
        groups.append({"params": norms, "weight_decay": recipe.decay if recipe.norms_too else 0.0})
    optimizer: torch.optim.Optimizer
    if recipe.momentum is None:
        optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), eps=1e-8)
    else:
        optimizer = torch.optim.SGD(groups, lr=0.0, momentum=recipe.momentum)
    if state is not None:
        decays = [group["weight_decay"] for group in optimizer.param_groups]
        optimizer.load_state_dict(copy.deepcopy(state))
        for group, decay in zip(optimizer.param_groups, decays, strict=True):
            group["weight_decay"] = decay
    if recipe.on_sphere:
        _to_unit_sphere(list(weights))
    average = None
    if recipe.ema is not None:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema))
        average.update_parameters(model)  # torch's first call copies: the average starts from the initial weights
    scaler = torch.amp.GradScaler("cpu", enabled=recipe.scaled)
    trained = Trained(model, average, optimizer)
    for iteration, (inputs, targets) in enumerate(batches, start=first):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(iteration, model)
        total = torch.zeros((), dtype=torch.float64)
        for part, wanted in zip(inputs.chunk(recipe.parts), targets.chunk(recipe.parts), strict=True):
            with torch.autocast("cpu", dtype=recipe.autocast, enabled=recipe.autocast is not None):
                logits = model(part).flatten(0, -2)
                loss = F.cross_entropy(logits, wanted.flatten()) / recipe.parts
            scaler.scale(loss).backward()
            total += loss.detach()
        if recipe.penalty:
            scaler.scale(recipe.penalty * sum((weight**2).sum() for weight in plain)).backward()
        scaler.unscale_(optimizer)
        if recipe.clip is not None:
            nn.utils.clip_grad_norm_(weights, recipe.clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if recipe.on_sphere:
            _to_unit_sphere(list(weights))
        if average is not None:
            average.update_parameters(model)
        trained.losses.append(total)
    return trained
