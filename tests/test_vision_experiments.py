"""The declared vision experiments: the paper's settings, shared cells, and what they are estimated to cost."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from declared import plan
from parity import VISION
from weight_decay.config.run import run_id
from weight_decay.config.span import Clock
from weight_decay.data.images.image_set import ImageSet
from weight_decay.data.images.stream import epoch_samples
from weight_decay.experiments.cost import estimate, forward_operations
from weight_decay.experiments.dry_run import describe
from weight_decay.experiments.throughput import CPU_CORE, GPU

PAPER = sorted(VISION.keys() - {"fig01_cifar5m_size", "fig02_real_images", "fig16_spectra", "tab02_ensemble"})
"""Those whose settings the paper states; test_settings_tables.py compares each."""


def ids(experiment: str, scale: str = "micro") -> set[str]:
    return {run_id(cell.config) for cell in plan(experiment, scale).cells}


def test_every_seed_of_figure_2_on_real_images_draws_its_own_training_set() -> None:
    for scale, seeds in (("micro", 10), ("small", 3), ("paper", 3)):
        cells = plan("fig02_real_images", scale).cells
        assert len(cells) == 4 * seeds
        for cell in cells:
            assert cell.config.data.kind == "fashion_mnist"
            assert cell.config.data.seed == cell.config.seed
            # A draw is no axis of figures.
            assert set(cell.coordinates) == {"seed", "optimizer.lr", "decay.strength"}
    demo = plan("demo_over_training", "micro").cells[0].config
    ours = plan("fig02_real_images", "micro").cells[0].config
    assert dataclasses.replace(ours, data=demo.data) == demo


def test_figure_1_shows_the_same_number_of_images_to_every_size() -> None:
    configs = [cell.config for cell in plan("fig01_cifar5m_size", "paper").cells]
    sizes = {10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 5_000_000}
    assert {config.data.train_size for config in configs} == sizes  # type: ignore[union-attr]
    for config in configs:
        steps = config.duration.steps(Clock(128, config.data.train_size))  # type: ignore[union-attr, arg-type]
        assert steps == 39063  # 5M / 128, rounded up
    for scale in ("micro", "small", "paper"):
        cells = [cell.config for cell in plan("fig01_cifar5m_size", scale).cells]
        largest = max(config.data.train_size for config in cells)  # type: ignore[union-attr, type-var]
        assert cells[0].duration.steps(Clock(128, 1)) * 128 == pytest.approx(largest, rel=1e-4)  # one pass
        by_size: dict[Any, set[float]] = {}
        for config in cells:
            by_size.setdefault(config.data.train_size, set()).add(config.decay.strength)  # type: ignore[union-attr]
        decays = by_size[largest]
        # One decay for all sizes and the best for each can both be read off, at every size with the same choice.
        assert all(found == decays for found in by_size.values())
        assert 0.0 in decays and len(decays) >= 3


def test_subsets_of_figure_1_are_nested() -> None:
    labels = np.arange(1000) % 10
    whole = ImageSet(np.zeros((1000, 8, 8, 3), np.uint8), labels.astype(np.int64), 10, "x", "train", "f" * 64)
    small, large = (set(whole.subset(size, seed=0).images.rows) for size in (100, 400))  # type: ignore[union-attr]
    assert small < large
    assert len(small) == 100
    assert small != set(whole.subset(100, seed=1).images.rows)  # type: ignore[union-attr]


def test_cells_that_figures_share_are_one_run() -> None:
    assert ids("fig02d_tiny_imagenet") == ids("fig11b_resnet18") == ids("fig16_spectra") <= ids("fig02_cifar10")
    assert ids("fig03_grid_tiny_imagenet") == ids("fig10_grid_cifar10")
    assert ids("tab02_ensemble") == ids("fig05_finetune")


@pytest.mark.parametrize("scale", ["micro", "small"])
def test_the_estimated_cost_is_what_the_scale_promises(scale: str) -> None:
    suite = [*PAPER, "fig01_cifar5m_size", "fig16_spectra", "tab02_ensemble"]
    throughput = CPU_CORE if scale == "micro" else GPU
    total = {}
    for experiment in suite:
        costs = {run_id(cell.config): estimate(cell.config) for cell in plan(experiment, scale).cells}
        hours = {name: cost.hours(throughput) for name, cost in costs.items() if cost is not None}
        assert len(hours) == len(costs)
        if scale == "small":
            assert sum(hours.values()) < 1.0, experiment
        total |= hours
    if scale == "micro":
        assert sum(total.values()) < 2 * 1.5  # two cores, 90 minutes


def test_operations_are_those_of_the_net() -> None:
    config = plan("fig02_cifar10", "paper").cells[0].config
    # ResNet-18 at 32x32: 0.556 billion multiply-adds, counted layer by layer.
    stages = [(64, 64, 32, 4), (64, 128, 16, 1), (128, 128, 16, 3), (128, 256, 8, 1), (256, 256, 8, 3)]
    stages += [(256, 512, 4, 1), (512, 512, 4, 3), (3, 64, 32, 1)]
    shortcuts = [(64, 128, 16), (128, 256, 8), (256, 512, 4)]
    adds = sum(9 * a * b * size**2 * count for a, b, size, count in stages)
    adds += sum(a * b * size**2 for a, b, size in shortcuts) + 512 * 10
    assert forward_operations(config) == 2 * adds
    cost = estimate(config)
    assert cost is not None
    assert cost.training == pytest.approx(3 * 2 * adds * 500 * 390 * 128, rel=1e-4)


def test_branches_are_part_of_the_cost() -> None:
    cell = plan("fig05_finetune", "paper").cells[0].config
    cost = estimate(cell)
    assert cost is not None
    # 34 snapshots (epochs 1 to 100, the paper's 0 to 99), a hundred epochs from each, and a hundred of the run's own.
    assert cost.training == pytest.approx(3 * forward_operations(cell) * 390 * 128 * (100 + 34 * 100), rel=1e-3)


@pytest.mark.parametrize("experiment", [name for name in PAPER if name != "fig13_similarity"])
def test_measuring_takes_less_than_a_quarter_at_scale_paper(experiment: str) -> None:
    # Fig 13 is one measurement after one epoch: there the measurement is the experiment.
    for cell in plan(experiment, "paper").cells:
        cost = estimate(cell.config)
        assert cost is not None
        training, evaluation, probes = cost.seconds(GPU)
        assert evaluation + probes < 0.25 * (training + evaluation + probes)


@pytest.mark.parametrize(("experiment", "count", "first"), [("fig05_finetune", 34, 390), ("fig15_sphere", 50, 780)])
def test_branches_start_where_the_papers_do(experiment: str, count: int, first: int) -> None:
    config = plan(experiment, "paper").cells[0].config
    clock = Clock(128, epoch_samples(50_000, 128, config.data.drop_last))  # type: ignore[union-attr]
    total = config.duration.steps(clock)
    branch = config.branches[0]
    assert branch.every is not None
    steps = range(branch.start.steps(clock), total + 1, branch.every.every(clock))
    assert (total, len(steps), steps[0], steps[-1]) == (39_000, count, first, 39_000)


def test_the_dry_run_says_settings_cost_and_data() -> None:
    text = describe(plan("fig01_cifar5m_size", "paper"))
    assert "  'duration=5000000 samples'\n" in text
    assert "  optimizer.lr=0.1\n" in text
    assert "data.train_size=5000000" in text and "decay.strength=0.02" in text
    assert "GPU-hours (" in text and "sustained on NVIDIA H200" in text  # as its gpu-check measured
    assert "make data-cifar5m" in text
