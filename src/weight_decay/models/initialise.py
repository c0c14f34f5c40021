"""Weight initialisation from one explicit random stream.

Everything is drawn in float32 on the generator's own device and then copied, so a CPU generator gives the
same weights whatever the model's device, floating-point type or memory layout.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from weight_decay.errors import UserError

INITIALISATIONS = ("pytorch", "he_fan_out")


def check_initialisation(name: str, model: str) -> None:
    """Raise `UserError` unless `name` is one of `INITIALISATIONS`."""
    if name not in INITIALISATIONS:
        raise UserError(f"{model}: unknown initialisation {name!r}; choose one of {', '.join(INITIALISATIONS)}.")


@torch.no_grad()
def fill_normal(tensor: Tensor, std: float, generator: torch.Generator) -> None:
    """Set `tensor` (any shape) to independent draws of N(0, std²)."""
    draws = torch.empty(tensor.shape, dtype=torch.float32, device=generator.device)
    tensor.copy_(draws.normal_(0.0, std, generator=generator))


@torch.no_grad()
def fill_uniform(tensor: Tensor, bound: float, generator: torch.Generator) -> None:
    """Set `tensor` (any shape) to independent draws from the interval [-bound, bound)."""
    draws = torch.empty(tensor.shape, dtype=torch.float32, device=generator.device)
    tensor.copy_(draws.uniform_(-bound, bound, generator=generator))


def initialise_vision_model(model: nn.Module, initialisation: str, generator: torch.Generator) -> None:
    """Initialise every convolution, linear and norm layer of `model`, in the order of `model.modules()`.

    - `pytorch`: what torch's layers do by default, weights and biases uniform in ±1/√fan_in.
    - `he_fan_out`: convolutions N(0, 2/fan_out) with zero bias (He et al. 2015); linear layers as in
      `pytorch`. These are the choices that give the initial norms of the paper's networks.

    Norm layers start at scale 1 and shift 0, with fresh running statistics.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and initialisation == "he_fan_out":
            fan_out = module.weight.shape[0] * math.prod(module.weight.shape[2:])
            fill_normal(module.weight, math.sqrt(2.0 / fan_out), generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            bound = 1.0 / math.sqrt(math.prod(module.weight.shape[1:]))
            fill_uniform(module.weight, bound, generator)
            if module.bias is not None:
                fill_uniform(module.bias, bound, generator)
        elif isinstance(module, _BatchNorm):
            # Scale 1, shift 0, running mean 0, running variance 1: draws nothing.
            module.reset_parameters()
