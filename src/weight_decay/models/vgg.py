"""VGG networks of the over-training experiments (Figs 11 and 12)."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from weight_decay.config.groups import ImageData, ModelConfig
from weight_decay.config.registry import MODELS
from weight_decay.config.schema import off, require
from weight_decay.errors import UserError
from weight_decay.models.initialise import check_initialisation, initialise_vision_model

# Convolutions per stage; the stages are 1, 2, 4, 8 and 8 times `width` wide.
CONVOLUTIONS_PER_STAGE = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
STAGE_WIDTHS = (1, 2, 4, 8, 8)

# Of the channels of ImageNet's images in [0, 1].
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class VGG(nn.Module):
    """VGG for small images: 3×3 convolutions with bias, ReLU, max-pools, three linear layers, no dropout.

    The hidden linear layers are `8·width` wide. VGG16 of width 64 without batch norm has 15,245,130
    parameters for 10 classes at 32×32 and starts at ‖w‖ ≈ 88.2 (`he_fan_out`: convolutions N(0, 2/fan_out),
    zero biases; linear layers as torch draws them).

    A stage ends with a 2×2 max-pool, left out once the map is a single pixel, so that 16×16 images work too.

    Args:
        depth: 11, 13, 16 or 19.
        width: channels of the first stage.
        classes: number of logits.
        batch_norm: put a batch norm between each convolution and its ReLU.
        initialisation: `pytorch` or `he_fan_out`, see `initialise_vision_model`.
        image_size: height and width of the images, 16 or a multiple of 32.
        normalise_input: first take ImageNet's mean from the input and divide by its standard deviation.

    Raises:
        UserError: unknown depth, initialisation or image size, or a width or number of classes below 1.
    """

    input_mean: Tensor
    input_std: Tensor

    def __init__(
        self,
        depth: int = 16,
        width: int = 64,
        classes: int = 10,
        batch_norm: bool = False,
        initialisation: Literal["pytorch", "he_fan_out"] = "he_fan_out",
        image_size: int = 32,
        normalise_input: bool = False,
    ) -> None:
        super().__init__()
        if depth not in CONVOLUTIONS_PER_STAGE:
            choices = sorted(CONVOLUTIONS_PER_STAGE)
            raise UserError(f"vgg: depth {depth} is not available; choose one of {choices}.")
        if width < 1 or classes < 1:
            raise UserError(f"vgg: width ({width}) and classes ({classes}) must be at least 1.")
        if image_size != 16 and (image_size < 32 or image_size % 32):
            raise UserError(f"vgg: image_size {image_size} does not fit; use 16 or a multiple of 32.")
        check_initialisation(initialisation, "vgg")
        self.initialisation = initialisation
        self.normalise_input = normalise_input
        if normalise_input:
            for name, values in (("input_mean", IMAGENET_MEAN), ("input_std", IMAGENET_STD)):
                self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels, size, number = 3, image_size, 0
        for stage, count in enumerate(CONVOLUTIONS_PER_STAGE[depth]):
            for _ in range(count):
                number += 1
                channels_out = width * STAGE_WIDTHS[stage]
                layers[f"conv{number}"] = nn.Conv2d(channels, channels_out, 3, padding=1)
                if batch_norm:
                    layers[f"norm{number}"] = nn.BatchNorm2d(channels_out)
                layers[f"relu{number}"] = nn.ReLU(inplace=True)
                channels = channels_out
            if size > 1:
                layers[f"pool{stage + 1}"] = nn.MaxPool2d(2)
                size //= 2
        self.features = nn.Sequential(layers)
        self.classifier = nn.Sequential(
            OrderedDict[str, nn.Module](
                linear1=nn.Linear(channels * size * size, channels),
                relu1=nn.ReLU(inplace=True),
                linear2=nn.Linear(channels, channels),
                relu2=nn.ReLU(inplace=True),
            )
        )
        self.head = nn.Linear(channels, classes)

    def initialise(self, generator: torch.Generator) -> None:
        """Set every parameter and buffer, drawing from `generator` only."""
        initialise_vision_model(self, self.initialisation, generator)

    def forward(self, images: Tensor) -> Tensor:
        """Map float images (B, 3, image_size, image_size) to logits (B, classes)."""
        if self.normalise_input:
            images = (images - self.input_mean) / self.input_std
        x = self.features(images).flatten(1)
        return self.head(self.classifier(x))


@MODELS.add("vgg")
@dataclass(frozen=True)
class VGGModel(ModelConfig):
    """VGG16, without batch norm in the paper (Fig 11a).

    normalise_input: normalise the input once more inside the model, with ImageNet's statistics, as the released code
        does on top of the data's own normalisation.
    """

    depth: Literal[16]
    width: int
    batch_norm: bool
    normalise_input: bool = field(metadata=off(False))
    initialisation: Literal["pytorch", "he_fan_out"]

    def __post_init__(self) -> None:
        require(self.width > 0, f"width: must be positive, got {self.width}")

    def build(self, data: ImageData) -> VGG:
        """The network for the classes and the image size of `data`."""
        return VGG(
            self.depth,
            self.width,
            data.classes,
            self.batch_norm,
            self.initialisation,
            data.image_size,
            self.normalise_input,
        )

    def forward_operations(self, data: ImageData) -> float:
        """Products in convolutions and linear layers."""
        products, channels, size = 0, 3, data.image_size
        for stage, count in enumerate(CONVOLUTIONS_PER_STAGE[self.depth]):
            for _ in range(count):
                before, channels = channels, self.width * STAGE_WIDTHS[stage]
                products += 9 * before * channels * size**2
            size = max(size // 2, 1)
        return 2.0 * (products + channels**2 * (size**2 + 1) + channels * data.classes)
