"""How test_parity.py compares our training with plain PyTorch: what the paper's experiments are, made small.

`recipe` and the tables hold the paper's numbers (PAPER.md §§ 2, 3 and 6), typed in; `small` and `disagreements` take
ours from the composed configs.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import plain_torch as plain
from declared import plan
from weight_decay.config.groups import ImageData
from weight_decay.config.plain import to_dict
from weight_decay.config.run import RunConfig
from weight_decay.config.schedules import MatchedSchedule
from weight_decay.experiments.plan import Cell
from weight_decay.tasks.choose import build_regime
from weight_decay.training import assemble

CPU, STEPS = torch.device("cpu"), 3
CLASSES = {"cifar10": 10, "cifar5m": 10, "fashion_mnist": 10, "cifar100": 100, "tiny_imagenet": 200}

# What the paper says of each experiment's images, network and learning rate: (data, network, rate after half of the
# run, rate of the fine-tuning branches). Fashion-MNIST and the drop of Fig 1 are choices of ours.
VISION: dict[str, tuple[str, str, float | None, float | None]] = {
    "fig01_cifar5m_size": ("cifar5m", "resnet18", 1e-3, None),
    "fig02_cifar10": ("cifar10", "resnet18", 1e-3, None),
    "fig02_real_images": ("fashion_mnist", "resnet18", 1e-3, None),
    "fig02d_tiny_imagenet": ("tiny_imagenet", "resnet18", 1e-3, None),
    "fig03_grid_tiny_imagenet": ("tiny_imagenet", "resnet18", None, None),
    "fig05_finetune": ("cifar10", "resnet18", None, 1e-3),
    "fig10_grid_cifar10": ("cifar10", "resnet18", None, None),
    "fig11a_vgg": ("cifar10", "vgg16", 1e-4, None),
    "fig11b_resnet18": ("cifar10", "resnet18", 1e-4, None),
    "fig11c_resnet34": ("cifar100", "resnet34", 1e-4, None),
    "fig13_similarity": ("cifar10", "invariant", None, None),
    "fig15_sphere": ("cifar10", "invariant", None, 1e-4),
    "fig16_spectra": ("cifar10", "resnet18", 1e-3, None),
    "tab02_ensemble": ("cifar10", "resnet18", None, None),
}
# Of the text's: whether each has Fig 6's tiny-LR branches somewhere.
LANGUAGE = {
    "fig06_language_model": True, "fig07_effective_lr": True, "fig08_bfloat16_divergence": False,
    "fig19_generalisation_gap": True, "fig20_layernorm_decay": True, "fig21_l2_penalty": True,
    "fig22_sgd_momentum": False, "fig23_averaging": True, "constant_lr": True, "slower_decay": True,
}  # fmt: skip
RECORDED = [(401 + step, 6e-4 - 1e-5 * step, 4.0 - 0.1 * step) for step in range(-3, 6)]
"""A made-up record of the run that Fig 7 matches: after so many steps, the last learning rate and the weight norm."""


def distinct(experiment: str) -> list[Cell]:
    """One cell of each setting: those that differ in seed, size of the data, λ, η or number format are one.

    Of these the one with the largest λ and η, in which most is decayed.
    """
    chosen: dict[str, Cell] = {}
    for cell in sorted(
        plan(experiment, "paper").cells, key=lambda cell: (cell.config.decay.strength, cell.config.optimizer.lr)
    ):
        setting = to_dict(small(cell.config))
        for group, name in (("decay", "strength"), ("optimizer", "lr"), ("data", "seed")):
            setting[group].pop(name)
        chosen[str({key: setting[key] for key in setting if key not in ("seed", "precision")})] = cell
    return list(chosen.values())


def small(config: RunConfig) -> RunConfig:
    """The same rules on a network and data that take milliseconds: as many micro-batches, of one sequence each."""
    model: Any = config.model
    probes = dataclasses.replace(
        config.probes, jacobian_every=None, stability_every=None, curvature=None, evaluation_train_samples=100
    )
    averaging = dataclasses.replace(config.averaging, reestimate_samples=None, ensemble=None, tail_start=None)
    if isinstance(config.data, ImageData):
        side = 32 if model.kind == "vgg" else 16
        tests = None if config.data.test_size is None else 400
        data: Any = dataclasses.replace(config.data, image_size=side, train_size=None, test_size=tests)
        model, batch, micro = dataclasses.replace(model, width=4), 8, config.micro_batch_size
    else:
        data = dataclasses.replace(config.data, context=8, vocabulary=40, evaluation_windows=100)
        # Which kernel computes attention changes rounding alone, and a CPU has not all of them.
        model = dataclasses.replace(model, layers=2, heads=2, width=16, attention="auto")
        batch, micro = config.batch_size // (config.micro_batch_size or config.batch_size), 1
    return dataclasses.replace(
        config, model=model, data=data, probes=probes, averaging=averaging, batch_size=batch, micro_batch_size=micro
    )


def network(experiment: str, cell: Cell) -> nn.Module:
    if experiment in LANGUAGE:
        return plain.GPT2(2, 2, 16, 8, 40)
    data, name, *_ = VISION[experiment]
    assert cell.config.data.kind == data
    if name == "vgg16":
        return plain.VGG16(4, CLASSES[data])
    blocks = (3, 4, 6, 3) if name == "resnet34" else (2, 2, 2, 2)
    return plain.ResNet(blocks, 4, CLASSES[data], invariant=name == "invariant")


def recipe(experiment: str, cell: Cell, steps: int) -> tuple[plain.Recipe, int]:
    """The paper's way to train this cell, a run of `steps` in all, and the step from which to compare."""
    lr, decay, parts = cell.config.optimizer.lr, cell.config.decay.strength, small(cell.config).batch_size
    if experiment in VISION:
        _, name, later, _ = VISION[experiment]
        start = steps // 2 - 1 if later else 0
        return plain.Recipe(
            lambda step, model: later if later is not None and step >= steps // 2 else lr,
            decay, momentum=0.0, scaled=True, on_sphere=name == "invariant", ema=0.999,
        ), start  # fmt: skip
    chosen = cell.coordinates.get("decay")
    rate = plain.warmup_cosine(lr, lr if experiment == "constant_lr" else lr / 10, 400, {
        None: 50_000, "110%": 55_000, "120%": 60_000, "130%": 65_000}[cell.coordinates.get("schedule.decay_until")],
    )  # fmt: skip
    if cell.coordinates.get("schedule") == "matched_effective_lr":
        rate = matched_rate(float(cell.coordinates["schedule.power"]))
    return plain.Recipe(
        rate,
        decay=0.0 if chosen == "penalty_except_norms" else decay,
        momentum=0.9 if experiment == "fig22_sgd_momentum" else None,
        norms_too=chosen == "decoupled",
        penalty=decay if chosen == "penalty_except_norms" else 0.0,
        clip=1.0, parts=parts, ema=0.99,
    ), 399  # fmt: skip


def matched_rate(power: float) -> Callable[[int, nn.Module], float]:
    """Fig 7: the learning rate of the other run's same step, times the ratio of the weight norms before it."""
    rates, norms = ({step: row[place] for row in RECORDED for step in [row[0]]} for place in (1, 2))

    def rate(step: int, model: nn.Module) -> float:
        norm = float(torch.cat([weight.detach().flatten() for weight in model.parameters()]).norm())
        return rates[step + 1] * (norm / norms[step]) ** power

    return rate


def disagreements(experiment: str, cell: Cell, config: RunConfig) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What is compared: name, ours, theirs. `config` is what our side trains, `cell` what the paper's does."""
    regime = build_regime(config, CPU)
    task: Any = regime.task
    training = assemble.build_training(config, regime, CPU)
    how, first = recipe(experiment, cell, regime.clock.total_steps)
    theirs = plain.with_state_of(network(experiment, cell), training.model.state_dict())

    def given(step: int) -> plain.Batch:
        inputs, targets = regime.stream.batch(step)
        return (task.floats(inputs) if inputs.is_floating_point() or inputs.ndim == 4 else inputs), targets

    def pairs(name: str, ours: nn.Module, plains: nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
        for (entry, own), other in zip(ours.state_dict().items(), plains.state_dict().values(), strict=True):
            if own.is_floating_point():  # a count of batches that nothing reads is none
                yield f"{name} {entry}", own, other

    training.step = first
    if not isinstance(config.schedule, MatchedSchedule):
        along = [*range(0, regime.clock.total_steps, 100), regime.clock.total_steps - 1]
        rates = [[float(training.schedule(step)), how.rate(step, theirs)] for step in along]
        yield "learning rate", *torch.tensor(rates, dtype=torch.float64).unbind(1)
    trained = plain.train(theirs, [given(step) for step in range(first, first + STEPS)], first, how)
    for _ in range(STEPS):
        training.advance(observe=False)
    yield from pairs("iterate", training.model, theirs)

    assert trained.average is not None
    average = training.averages.model_for(training.averages.decays[0])
    task.reestimate(average)
    if experiment in VISION:
        batches = [(task.floats(images), labels) for images, labels in task.reestimation]
        assert {len(images) for images, _ in batches} == {config.batch_size}
        torch.optim.swa_utils.update_bn(batches, trained.average)
    yield from pairs("average", average, trained.average.module)

    for branch in config.branches:
        fine = assemble.build_training(config, regime, CPU, branching=(training, branch))
        rate = VISION[experiment][3] if experiment in VISION else 1e-5
        assert rate is not None
        kept = None if experiment in VISION else trained.optimizer.state_dict()
        again = dataclasses.replace(how, rate=functools.partial(lambda lr, step, model: lr, rate), decay=0.0, ema=None)
        copied = copy.deepcopy(theirs)
        plain.train(copied, [given(first + STEPS + step) for step in range(STEPS)], first + STEPS, again, kept)
        for _ in range(STEPS):
            fine.advance(observe=False)
        yield from pairs("branch", fine.model, copied)


def largest(compared: Iterator[tuple[str, Tensor, Tensor]]) -> tuple[float, str]:
    """The largest disagreement, in units of the largest entry of the plain side's tensor or of 1, and where it is."""
    return max(
        (float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1)), name) for name, ours, theirs in compared
    )
