"""Which figure shows which experiment: all that `make figures` draws, in the paper's order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from weight_decay.report.figures import DrawnFigure
from weight_decay.report.figures_curvature import ensemble, similarity, spectra
from weight_decay.report.figures_grid import against_product, heatmaps, sphere
from weight_decay.report.figures_vision import (
    ERROR,
    FIGURE_2,
    FIGURE_2D,
    Panel,
    against_epochs,
    dataset_size,
    finetuning,
)
from weight_decay.report.tables import Tables, scales_of, tables_of

_LEVELS = "The vertical dotted line marks the drop of the learning rate. The paper's curves are drained of colour."
_LONG = "The paper's final values were read off its plots, within half a point."


def _long(part: str) -> tuple[Panel, ...]:
    return (
        Panel(*ERROR, f"11{part}", "test_error", factor=100),
        Panel("train/loss", "training cross-entropy", f"12{part}", "train_cross_entropy", logarithmic=True),
    )


def _epochs(panels: tuple[Panel, ...], title: str, caption: str) -> Callable[[Path, Tables], list[DrawnFigure]]:
    return lambda results, tables: [against_epochs(results, tables, panels, title, caption)]


FIGURES: dict[str, Callable[[Path, Tables], list[DrawnFigure]]] = {
    "fig01_cifar5m_size": lambda results, tables: [dataset_size(results, tables)],
    "fig02_cifar10": _epochs(FIGURE_2, "Learning rate and decay", _LEVELS),
    "fig02d_tiny_imagenet": _epochs(FIGURE_2D, "The same on Tiny-ImageNet", _LEVELS),
    "fig03_grid_tiny_imagenet": lambda results, tables: [
        heatmaps(results, tables, "3"),
        against_product(results, tables, "3"),
    ],
    "fig05_finetune": lambda results, tables: [finetuning(results, tables)],
    "fig10_grid_cifar10": lambda results, tables: [
        heatmaps(results, tables, None),
        against_product(results, tables, None),
    ],
    "fig11a_vgg": _epochs(_long("a"), "Long training, VGG16", _LONG),
    "fig11b_resnet18": _epochs(_long("b"), "Long training, ResNet18", _LONG),
    "fig11c_resnet34": _epochs(_long("c"), "Long training, ResNet34 on CIFAR-100", _LONG),
    "fig13_similarity": lambda results, tables: [similarity(results, tables)],
    "fig15_sphere": lambda results, tables: [sphere(results, tables)],
    "fig16_spectra": lambda results, tables: [spectra(results, tables)],
    "tab02_ensemble": lambda results, tables: [ensemble(results, tables)],
}
"""Experiment -> its figures, from its tables; a new experiment enters here with one line."""


def paper_figures(results: Path) -> list[DrawnFigure]:
    """Draw the figures of every experiment and scale that has tables under `results`/tables."""
    return [
        figure
        for experiment, draw in FIGURES.items()
        for scale in scales_of(results, experiment)
        for figure in draw(results, tables_of(results, experiment, scale))
    ]
