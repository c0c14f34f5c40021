"""How weights are updated, in one line, as the optimizers' tests say it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from weight_decay.config.groups import OptimizerConfig
from weight_decay.config.plain import build_dataclass
from weight_decay.config.registry import OPTIMIZERS
from weight_decay.optim.optimizers import Method


@dataclass
class _Chosen:
    optimizer: Annotated[OptimizerConfig, OPTIMIZERS]


def method(
    kind: str,
    lr: float,
    momentum: float,
    betas: tuple[float, float],
    eps: float,
    nesterov: bool,
    decay_kind: Any,
    clip_norm: float | None,
    fused: bool = True,
    per_parameter_lr: bool = False,
    **more: Any,
) -> Method:
    """A method with these settings of the optimizer, checked as those of a run are."""
    settings = {"kind": kind, "lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "nesterov": nesterov, **more}
    kernel = "fused" if fused else "foreach"
    chosen = build_dataclass(_Chosen, {"optimizer": {**settings, "clip_norm": clip_norm, "kernel": kernel}})
    return Method(chosen.optimizer, decay_kind, per_parameter_lr)
