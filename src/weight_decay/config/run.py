"""The typed configuration of one run: every choice is a field here, and every field is validated.

`build` turns the plain mapping that comes out of the YAML files into a `RunConfig`, refusing unknown keys, wrong
types and impossible values with one sentence. `run_id` is the identity of a run: a hash of every value that can
change its numbers. Fields marked `EXECUTION` (where to store, how many threads, what to show) stay out of it.

Nothing in this module knows where the mapping came from, and nothing below `cli.py` sees Hydra.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from weight_decay.config.execution import CheckpointConfig, ExecutionConfig, TrackingConfig
from weight_decay.config.groups import (
    BranchConfig,
    DecayConfig,
    DivergenceConfig,
    ImageData,
    ModelConfig,
    OptimizerConfig,
    PrecisionConfig,
)
from weight_decay.config.measurements import AveragingConfig
from weight_decay.config.plain import build_dataclass, to_dict
from weight_decay.config.probes import ProbeConfig
from weight_decay.config.registry import DATA, DECAY_KINDS, MODELS, OPTIMIZERS
from weight_decay.config.schedules import ConstantSchedule, MatchedSchedule, TwoPhaseSchedule, WarmupCosineSchedule
from weight_decay.config.schema import EXECUTION, check_seed, check_size, require
from weight_decay.config.span import Span
from weight_decay.config.text import TokenData


@dataclass(frozen=True)
class RunConfig:
    """One training run, complete."""

    seed: int
    batch_size: int
    duration: Span
    data: Annotated[ImageData | TokenData, DATA]
    model: Annotated[ModelConfig, MODELS]
    optimizer: Annotated[OptimizerConfig, OPTIMIZERS]
    decay: Annotated[DecayConfig, DECAY_KINDS]
    schedule: ConstantSchedule | TwoPhaseSchedule | WarmupCosineSchedule | MatchedSchedule
    sphere_radius: float | None
    averaging: AveragingConfig
    precision: PrecisionConfig
    micro_batch_size: int | None
    probes: ProbeConfig
    divergence: DivergenceConfig
    branches: tuple[BranchConfig, ...]
    checkpoint: CheckpointConfig = field(metadata=EXECUTION)
    tracking: TrackingConfig = field(metadata=EXECUTION)
    execution: ExecutionConfig = field(metadata=EXECUTION)

    def __post_init__(self) -> None:
        check_seed("seed", self.seed)
        require(0 < self.batch_size <= 10**7, f"batch_size: must be from 1 to 10 million, got {self.batch_size}")
        micro = self.micro_batch_size
        require(
            micro is None or (micro > 0 and self.batch_size % micro == 0),
            f"micro_batch_size: must divide batch_size {self.batch_size}, got {micro}",
        )
        check_size("sphere_radius", self.sphere_radius)
        require(
            self.duration.unit != "%" and self.duration.value > 0,
            f'duration: must be a positive length, got "{self.duration}"',
        )
        unfit = self.optimizer.unfit(self.data.regime, self.precision.kind)
        require(unfit is None, f"optimizer.{unfit}")
        self._check_decay()
        images = isinstance(self.data, ImageData)
        require(
            self.model.regime == self.data.regime,
            f"model: {self.data.kind} data needs a model for {'images' if images else 'text'}, got {self.model.kind}",
        )
        if images:
            require(
                self.probes.stability_every is None and not self.probes.parameter_norms,
                "probes: stability_every and parameter_norms are for text only; set them to null and false",
            )
            require(
                not self.probes.token_error,
                "probes.token_error: images have their error anyway; set it to false",
            )
        else:
            require(
                self.probes.jacobian_every is None,
                "probes.jacobian_every: the Jacobian norm is for images only; set it to null",
            )
            require(self.probes.curvature is None, "probes.curvature: curvature is for images only; set it to null")
            require(not self.averaging.within_epoch, "averaging.within_epoch: is for images only; set it to false")
        require(
            not isinstance(self.schedule, MatchedSchedule) or self.optimizer.kernel == "fused",
            "optimizer.kernel: schedule=matched_effective_lr needs fused, whose learning rate stays on the device",
        )
        require(
            not self.probes.regularised_loss or self.decay.penalty is not None,
            f"probes.regularised_loss: {self.decay.kind} is no penalty's gradient; set it to false",
        )
        require(
            not self.probes.replay or (self.precision.kind == "float32" and self.optimizer.kind == "adamw"),
            "probes.replay: replays the gradients of float32 weights under adamw; choose both, or set it to []",
        )
        for probe in self.probes.more:
            require(
                self.data.regime in probe.regimes,
                f"probes.more: {probe.kind} is for {' and '.join(probe.regimes)} runs; leave it out",
            )
        ensemble = self.averaging.ensemble
        require(
            ensemble is None or (images and len(self.averaging.ema) > 0),
            "averaging.ensemble: needs images, and an EMA to be compared with; set it to null",
        )
        # A file system that does not tell cases apart would give two of them one folder.
        names = [branch.name.lower() for branch in self.branches]
        require(len(set(names)) == len(names), f"branches: names must differ, got {names}")

    @property
    def waits_for_host(self) -> bool:
        """Whether a GPU is done with a step before the host has launched the next one's kernels.

        So it is for the residual nets here: on an H200 replayed graphs made them 2.6 times as fast as compiled kernels
        one by one (results/tables/gpu_check.csv). Branches are left out: each would keep a graph's memory, and that
        has not been tried.
        """
        return isinstance(self.data, ImageData) and not self.branches

    def _check_decay(self) -> None:
        decay, optimizer = self.decay, self.optimizer
        require(
            decay.optimizers is None or optimizer.kind in decay.optimizers,
            f"decay.kind: {decay.kind} is for {' and '.join(decay.optimizers or ())}, not for {optimizer.kind}; "
            "choose another optimizer or another kind",
        )
        matched = isinstance(self.schedule, MatchedSchedule)
        require(
            not matched or optimizer.lr_on_device,
            "optimizer.kind: schedule=matched_effective_lr keeps the learning rate on the device, which "
            f"{optimizer.kind} cannot use; choose adamw",
        )
        if decay.own or decay.strength == 0:
            return
        require(
            not matched,
            f"decay.kind: {decay.kind} needs to know the learning rate, which schedule=matched_effective_lr keeps on "
            "the device; set decay.strength to 0, or choose decoupled",
        )
        require(
            self.precision.kind != "float16_autocast" or optimizer.kernel == "foreach",
            f"decay.kind: with float16_autocast a step may be skipped, which {decay.kind} beside a fused kernel would "
            "not see; set optimizer.kernel to foreach, or choose another precision",
        )
        require(
            self.sphere_radius is None or decay.kind not in ("hyperball", "rotational"),
            f"sphere_radius: {decay.kind} holds each parameter's norm already; set it to null",
        )


def build(values: Mapping[str, Any]) -> RunConfig:
    """Validate a nested mapping and return the typed run; UserError names the setting and what it must be."""
    return build_dataclass(RunConfig, values)


def run_id(config: RunConfig) -> str:
    """Twelve hexadecimal digits that name every value able to change the run's numbers."""
    canonical = json.dumps(to_dict(config, identity_only=True), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def folder_name(config: RunConfig) -> str:
    """A readable prefix and the identity: `procedural-resnet-lr0.3-wd0.015-seed0-<id>`."""
    return (
        f"{config.data.kind}-{config.model.kind}-lr{config.optimizer.lr:g}-wd{config.decay.strength:g}"
        f"-seed{config.seed}-{run_id(config)}"
    )
