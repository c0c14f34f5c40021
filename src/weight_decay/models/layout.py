"""How the numbers of an image network lie in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_NARROW = 8
"""Channels below which oneDNN's kernel writes beyond its buffer: the width of its blocks with AVX2."""


def channels_last(model: nn.Module) -> nn.Module:
    """The model itself in channels-last format, the fast one for convolutions; values and names stay.

    Except for strided 1×1 convolutions of fewer than 8 channels, which stay in the default format, their inputs with
    them: on a CPU with AVX2 but not AVX-512, oneDNN's gradient of their weights (`jit_1x1:avx2`, in torch 2.14.1)
    corrupts the heap in channels-last format, and the process aborts some steps later.
    """
    model.to(memory_format=torch.channels_last)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and _at_risk(module):
            # A 1x1 kernel is contiguous in both formats; by its strides the convolution chooses.
            module.weight.data = module.weight.detach().clone(memory_format=torch.contiguous_format)
            module.register_forward_pre_hook(_in_default_format)
    return model


def _at_risk(convolution: nn.Conv2d) -> bool:
    strided = max(convolution.stride) > 1
    return strided and set(convolution.kernel_size) == {1} and convolution.in_channels < _NARROW


def _in_default_format(_: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    return tuple(value.clone(memory_format=torch.contiguous_format) for value in inputs)
