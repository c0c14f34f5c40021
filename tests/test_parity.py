"""The contract: at scale paper, every experiment of the paper or of its released code trains as plain PyTorch does.

Our side: the composed config of each distinct setting, made small (width, depth of the transformer, batch, data), and
the real training. Their side: `plain_torch`, with the numbers of PAPER.md. The same initial weights and batches, in
float64, three optimizer steps, from just before the learning rate's drop or the end of its warm-up, then three of a
branch. Weights, averages with re-estimated batch-norm statistics and learning rates along the whole run agree to 1e-12,
absolute in tensors below 1 and relative to the largest entry above. λ and η of every cell: test_settings_tables.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import plain_torch as plain
from declared import plan
from parity import (
    CPU,
    LANGUAGE,
    RECORDED,
    STEPS,
    VISION,
    disagreements,
    distinct,
    largest,
    network,
    recipe,
    small,
)
from weight_decay.config.plain import to_dict
from weight_decay.config.run import build
from weight_decay.config.schedules import MatchedSchedule
from weight_decay.data.images.image_set import ImageSet, content_fingerprint
from weight_decay.data.text.files import TokenSet
from weight_decay.experiments.catalog import experiments
from weight_decay.models.layout import channels_last
from weight_decay.tasks.choose import build_regime
from weight_decay.training import assemble
from weight_decay.training.schedule import _matched

CLOSE = 1e-12
OURS = {
    "backends", "bfloat16_decay_lost", "bfloat16_replay", "decay_rules_over_training", "decay_rules_under_training",
    "demo_over_training", "demo_under_training", "effective_lr_matching", "passes_text", "timescale_over_training",
    "timescale_under_training", "tuned_lr",
}  # fmt: skip
"""Experiments that the paper and its code do not have."""


@pytest.fixture
def tiny_data(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Random images or text in place of those of the paper, for a data config."""

    def replace(data: Any) -> None:
        rng, side = np.random.default_rng(3), getattr(data, "image_size", 0)
        loaded: Any = TokenSet(rng.integers(0, 40, 40_000).astype(np.uint16), None, 40, "text", "train", "f" * 64)
        if side:
            pixels, labels = rng.integers(0, 256, (400, side, side, 3), dtype=np.uint8), np.arange(400) % data.classes
            name = content_fingerprint(pixels, labels)
            loaded = ImageSet(pixels, labels, data.classes, data.kind, "train", name)
        monkeypatch.setattr(type(data), "load", lambda self, split: loaded)

    return replace


@torch.no_grad()
def large_weights(model: nn.Module, generator: torch.Generator) -> None:
    for weight in model.parameters():
        weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3 + (weight.ndim == 1))


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights in double precision and no autocast; a gradient scaler, where there is one, scales by powers of 2."""
    monkeypatch.setattr("weight_decay.training.assemble.weight_dtype", lambda precision: torch.float64)
    monkeypatch.setattr("weight_decay.tasks.over_training.weight_dtype", lambda precision: torch.float64)
    for room in ("training.assemble", "tasks.over_training", "tasks.under_training"):
        monkeypatch.setattr(f"weight_decay.{room}.autocast", lambda precision, device: contextlib.nullcontext)
    # So large that the gradient is clipped.
    monkeypatch.setattr("weight_decay.models.gpt.GPT.initialise", large_weights)
    # At the paper's vocabulary the loss is computed in pieces.
    monkeypatch.setattr("weight_decay.models.gpt.chunk_rows", lambda rows, vocabulary, device: 5)
    monkeypatch.setattr(
        "weight_decay.training.schedule.matched_schedule",
        lambda config, schedule, optimizer, steps: _matched(
            schedule, optimizer, *(list(column) for column in zip(*((s, r, [n]) for s, r, n in RECORDED), strict=True))
        ),
    )


def test_every_experiment_at_scale_paper_is_compared() -> None:
    declared = {name for name, what in experiments().items() if "paper" in what.files}
    assert declared == VISION.keys() | LANGUAGE.keys() | OURS


def test_the_plain_side_knows_nothing_of_ours() -> None:
    source = Path(plain.__file__).read_text()
    imported = set(re.findall(r"^(?:from|import) (\w+)", source, re.M))
    assert imported == {"__future__", "collections", "copy", "dataclasses", "math", "torch", "typing"}


@pytest.mark.parametrize("experiment", [*VISION, *LANGUAGE])
def test_three_steps_are_those_of_plain_torch(
    experiment: str, tiny_data: Callable[[Any], None], in_float64: None
) -> None:
    settings = distinct(experiment)
    for cell in settings:
        config = small(cell.config)
        tiny_data(config.data)
        # The device's learning rate, and so a matched one, is a float32 number.
        close = 1e-6 if isinstance(config.schedule, MatchedSchedule) else CLOSE
        error, where = largest(disagreements(experiment, cell, config))
        assert error <= close, (cell.title, where)
    branched = any(cell.config.branches for cell in settings)
    assert branched == (VISION[experiment][3] is not None if experiment in VISION else LANGUAGE[experiment])


@pytest.mark.parametrize(
    ("experiment", "setting", "wrong"),
    [
        ("fig02_cifar10", "decay.strength", 0.005),
        ("fig02_cifar10", "optimizer.momentum", 0.1),
        ("fig02_cifar10", "averaging.ema", [0.9991]),
        ("fig02_cifar10", "schedule.drop_at", "49%"),
        ("fig05_finetune", "branches.0.strength", 0.0125),
        ("fig11a_vgg", "model.normalise_input", False),
        ("fig15_sphere", "model.scale_invariant_eps", 1e-12),
        ("fig15_sphere", "sphere_radius", None),
        ("fig06_language_model", "optimizer.eps", 1.1e-8),
        ("fig06_language_model", "optimizer.betas", [0.9, 0.951]),
        ("fig06_language_model", "optimizer.clip_norm", 1.01),
        ("fig06_language_model", "schedule.warmup", "401 steps"),
        ("fig06_language_model", "branches.0.strength", 0.1),
        ("fig20_layernorm_decay", "decay.rules", [{"match": "norm", "scale": 0.0}, {"match": ".", "scale": 1.0}]),
        ("fig21_l2_penalty", "decay.kind", "l2"),
        ("fig22_sgd_momentum", "decay.kind", "decoupled"),
        ("fig22_sgd_momentum", "optimizer.momentum", 0.91),
        ("slower_decay", "schedule.decay_until", "129%"),
    ],
)
def test_a_wrong_setting_is_seen(
    experiment: str, setting: str, wrong: Any, tiny_data: Callable[[Any], None], in_float64: None
) -> None:
    cell = distinct(experiment)[-1]
    values = to_dict(small(cell.config))
    *parents, name = (int(part) if part.isdigit() else part for part in setting.split("."))
    node: Any = values
    for parent in parents:
        node = node[parent]
    assert node[name] != wrong
    node[name] = wrong
    config = build(values)
    tiny_data(config.data)
    error, _ = largest(disagreements(experiment, cell, config))
    assert error > 1000 * CLOSE


@pytest.mark.parametrize(
    ("experiment", "precision", "dtype"),
    [
        ("fig02_cifar10", "float16_autocast", torch.float16),
        ("fig06_language_model", "bfloat16_autocast", torch.bfloat16),
        ("fig08_bfloat16_divergence", "tf32", None),
    ],
)
def test_number_formats_are_those_of_torch(
    experiment: str, precision: str, dtype: torch.dtype | None, tiny_data: Callable[[Any], None]
) -> None:
    """Three steps in the number format of scale paper, on a CPU, which has no TF32: float32 weights in either case."""
    cell = next(cell for cell in plan(experiment, "paper").cells if cell.config.precision.kind == precision)
    config = small(cell.config)
    tiny_data(config.data)
    regime = build_regime(config, CPU)
    task: Any = regime.task
    how, first = recipe(experiment, cell, regime.clock.total_steps)
    training = assemble.build_training(config, regime, CPU)
    training.step = first
    start = {name: tensor.clone() for name, tensor in training.model.state_dict().items()}
    batches = [regime.stream.batch(step) for step in range(first, first + STEPS)]
    if experiment in VISION:
        batches = [(task.floats(images), labels) for images, labels in batches]
    for _ in range(STEPS):
        training.advance(observe=False)

    def distance(format: torch.dtype | None) -> float:
        """How far from ours plain torch ends in a number format, in units of the way."""
        # In our layout, without which narrow networks are not safe on every CPU.
        model = channels_last(plain.with_state_of(network(experiment, cell), start).float())
        plain.train(model, batches, first, dataclasses.replace(how, autocast=format))
        ours, theirs = (torch.cat([w.detach().flatten() for w in m.parameters()]) for m in (training.model, model))
        began = torch.cat([start[name].flatten() for name, _ in training.model.named_parameters()])
        return float((ours - theirs).norm() / (ours - began).norm())

    others = {torch.float16, torch.bfloat16, None} - {dtype}
    assert distance(dtype) < 1e-5 < 1e-2 < min(distance(other) for other in others)
