"""From a config to its parts: device and precision, data, model, task, optimizer, schedule."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from weight_decay.config import RunConfig
from weight_decay.config_groups import (
    ConstantSchedule,
    ImageData,
    PrecisionConfig,
    ResNetModel,
    TwoPhaseSchedule,
)
from weight_decay.config_language import GPTModel, MatchedSchedule, TokenData
from weight_decay.data.image_set import ImageSet
from weight_decay.data.images import FixedImages, ImageStream
from weight_decay.data.token_files import load_tokens
from weight_decay.data.vision import load_images
from weight_decay.distributed import launched_together, local_rank
from weight_decay.errors import UserError
from weight_decay.loop import Optimizer, Schedule
from weight_decay.matched import matched_schedule
from weight_decay.models.gpt import GPT
from weight_decay.models.resnet import PreActResNet
from weight_decay.models.vgg import VGG
from weight_decay.optim.decay import DecayRule, ParameterGroup, decay_groups
from weight_decay.optim.low_precision import RoundedOptimizer
from weight_decay.optim.optimizers import DecayedOptimizer
from weight_decay.optim.schedules import Constant, TwoPhase, WarmupCosine
from weight_decay.seeds import generator, stream_seed
from weight_decay.span import Clock
from weight_decay.tasks.classification import Classification
from weight_decay.tasks.protocol import Stream, Task


def choose_device(config: RunConfig) -> torch.device:
    """The device of a run; UserError if a GPU is asked for and there is none."""
    wanted = config.execution.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("execution.device: cuda was asked for, but torch sees no GPU here; use cpu or auto.")
    cuda = wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available())
    if cuda and launched_together():
        return torch.device("cuda", local_rank())
    return torch.device("cuda" if cuda else "cpu")


def apply_precision(precision: PrecisionConfig) -> None:
    """Set torch's process-wide switches: "float32" means true float32, also on GPUs that would use TF32."""
    tf32 = precision.kind != "float32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32


def autocast(precision: PrecisionConfig, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """A factory of the context in which losses are computed."""
    dtype = {"bfloat16_autocast": torch.bfloat16, "float16_autocast": torch.float16}.get(precision.kind)
    if dtype is None:
        return contextlib.nullcontext
    return functools.partial(torch.autocast, device.type, dtype=dtype)


def weight_dtype(precision: PrecisionConfig) -> torch.dtype:
    """The dtype of the weights themselves."""
    return torch.bfloat16 if precision.kind == "bfloat16" else torch.float32


def build_model(config: RunConfig) -> nn.Module:
    """The model with its parameters drawn from the run's initialisation stream; on meta: shapes alone."""
    model, data = config.model, config.data
    built: PreActResNet | VGG | GPT
    if isinstance(data, TokenData):
        assert isinstance(model, GPTModel)
        built = GPT(
            model.layers,
            model.heads,
            model.width,
            data.context,
            data.vocabulary,
            qk_norm=model.qk_norm,
            attention=model.attention,
        )
    elif isinstance(model, ResNetModel):
        built = PreActResNet(model.depth, model.width, data.classes, model.initialisation, model.scale_invariant)
    else:
        assert not isinstance(model, GPTModel)
        built = VGG(
            model.depth,
            model.width,
            data.classes,
            model.batch_norm,
            model.initialisation,
            image_size=data.image_size,
        )
    if next(built.parameters()).device.type != "meta":
        built.initialise(generator(config.seed, "initialisation"))
    return built


def parameter_groups(config: RunConfig, model: nn.Module, strength: float) -> list[ParameterGroup]:
    """Which parameters decay, and how much."""
    rules = [DecayRule(rule.match, rule.scale) for rule in config.decay.rules]
    return decay_groups(model.named_parameters(), rules, strength)


def check(config: RunConfig) -> None:
    """What can be refused before any work: a decay rule that misses a parameter or decays none, an impossible size."""
    _check_parameters(config.model, config.data, config.decay, config)


def _check_parameters(model: Any, data: Any, decay: Any, config: RunConfig) -> None:
    key = (model, type(data), decay)
    if key not in _CHECKED:
        try:
            with torch.device("meta"):
                parameter_groups(config, build_model(config), config.decay.strength)
        except RuntimeError as error:
            raise UserError(
                f"model: no such network can exist ({str(error).splitlines()[0]}); make it smaller."
            ) from None
        _CHECKED.add(key)


_CHECKED: set[Any] = set()


def build_optimizer(config: RunConfig, model: nn.Module, strength: float, clip_norm: float | None) -> Optimizer:
    """The optimizer with decay of the given strength."""
    chosen, rounding = config.optimizer, config.precision.rounding
    groups = parameter_groups(config, model, strength)
    options: dict[str, Any] = {
        "kind": chosen.kind,
        "lr": chosen.lr,
        "momentum": chosen.momentum,
        "betas": chosen.betas,
        "eps": chosen.eps,
        "nesterov": chosen.nesterov,
        "decay_kind": config.decay.kind,
        "clip_norm": clip_norm,
        "fused": chosen.kernel == "fused",
        "per_parameter_lr": isinstance(config.schedule, MatchedSchedule) and config.schedule.norm == "per_matrix",
    }
    if rounding == "kernel":
        return DecayedOptimizer(groups, **options)
    return RoundedOptimizer(groups, rounding, stream_seed(config.seed, "rounding"), **options)


def build_schedule(config: RunConfig, clock: Clock, optimizer: Optimizer) -> Schedule:
    """The learning rate of every step."""
    schedule, lr = config.schedule, config.optimizer.lr
    if isinstance(schedule, MatchedSchedule):
        return matched_schedule(config, schedule, optimizer, clock.total_steps)
    if isinstance(schedule, ConstantSchedule):
        return Constant(lr)
    if isinstance(schedule, TwoPhaseSchedule):
        drop = schedule.drop_at.steps(clock)
        if drop > clock.total_steps:
            raise UserError(
                f"schedule.drop_at: {schedule.drop_at} is step {drop}, beyond the run's {clock.total_steps}; "
                "make it shorter, or choose schedule=constant."
            )
        return TwoPhase(lr, drop, schedule.final_lr)
    warmup, until = schedule.warmup.steps(clock), schedule.decay_until.steps(clock)
    return WarmupCosine(lr, warmup, until, lr * schedule.final_fraction)


@dataclass(frozen=True)
class Regime:
    """A task with its data, ready on the device."""

    task: Task
    stream: Stream
    clock: Clock
    data: dict[str, Any]


def make_clock(config: RunConfig, epoch_samples: int, tokens_per_sample: int) -> Clock:
    """The clock of a run whose training set has `epoch_samples`; UserError if the run is shorter than a step."""
    without_total = Clock(config.batch_size, epoch_samples, tokens_per_sample)
    steps = config.duration.steps(without_total)
    if steps < 1:
        raise UserError(
            f'duration: "{config.duration}" is less than one step of {config.batch_size} samples; make it longer.'
        )
    return Clock(config.batch_size, epoch_samples, tokens_per_sample, steps)


def load_image_sets(data: ImageData) -> tuple[ImageSet, ImageSet]:
    """Training and test set; subsets of the training set are nested: the 10k one is inside the 25k one (Fig 1)."""
    options: dict[str, Any] = {}
    if data.kind == "procedural":
        options = {
            "seed": data.seed,
            "size": data.image_size,
            "train_images": data.train_size,
            "test_images": data.test_size,
        }
    elif data.kind == "cifar5m":
        options = {"train_parts": (0, 1, 2, 3, 4), "test_part": 5, "test_images": data.test_size}
    elif data.kind in ("cifar10", "cifar100"):
        options = {"download": False}
    train, test = (load_images(data.kind, split, Path(data.root), **options) for split in ("train", "test"))
    if data.train_size is not None and data.train_size != len(train):
        train = train.subset(data.train_size, data.seed)
    if data.test_size is not None and data.test_size != len(test):
        test = test.first(data.test_size)
    return train, test


def image_regime(config: RunConfig, device: torch.device) -> Regime:
    """Images and the classification task; UserError if the data cannot serve the run."""
    data, probes = config.data, config.probes
    assert isinstance(data, ImageData)
    train, test = load_image_sets(data)
    if train.classes != data.classes or train.images.shape[1] != data.image_size:
        raise UserError(
            f"data: {data.kind} has {train.classes} classes of {train.images.shape[1]} pixels; "
            f"set data.classes and data.image_size so (now {data.classes} and {data.image_size})."
        )
    mean = std = None
    if data.normalise:
        mean, std = (torch.tensor(values, dtype=torch.float32) for values in train.channel_statistics())
    batch = probes.evaluation_batch
    limit = probes.evaluation_train_samples
    averages = config.averaging.reestimate_samples
    task = Classification(
        evaluation={
            "train": FixedImages(train, batch, device, None if limit is None else min(limit, len(train))),
            "test": FixedImages(test, batch, device),
        },
        reestimation=FixedImages(
            train, config.batch_size, device, None if averages is None else min(averages, len(train))
        ),
        jacobian=()
        if probes.jacobian_every is None
        else FixedImages(train.class_balanced(probes.jacobian_per_class), 100, device),
        jacobian_draws=probes.jacobian_draws,
        curvature=probes.curvature,
        curvature_images=()
        if probes.curvature is None
        else FixedImages(train.class_balanced(probes.curvature.per_class), 100, device),
        seed=config.seed,
        mean=mean,
        std=std,
        autocast=autocast(config.precision, device),
        dtype=weight_dtype(config.precision),
    )
    stream = ImageStream(train, config.batch_size, stream_seed(config.seed, "data"), device)
    described = {
        "name": train.name,
        "fingerprint": train.fingerprint,
        "split": {"train": train.split, "test": test.split},
        "train_samples": len(train),
        "test_samples": len(test),
    }
    return Regime(task, stream, make_clock(config, len(train), 1), described)


@functools.cache
def data_fingerprint(data: ImageData | TokenData) -> str | None:
    """What names the training data's content; None if the config determines it anyway, or the data are not here."""
    if data.kind == "procedural":
        return None
    try:
        if isinstance(data, ImageData):
            return load_image_sets(data)[0].fingerprint
        return load_tokens(data.kind, "train", Path(data.root)).fingerprint
    except UserError:
        return None
