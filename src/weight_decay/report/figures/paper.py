"""Which figure shows which experiment: all that `make figures` draws, in the paper's order."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from weight_decay.errors import UserError
from weight_decay.report.figures.curvature import ensemble, similarity, spectra
from weight_decay.report.figures.demo import DEMO, Drawing, DrawnFigure, Panel
from weight_decay.report.figures.drawn import made_of, remember, up_to_date
from weight_decay.report.figures.grid import against_product, heatmaps, sphere
from weight_decay.report.figures.language import (
    FIGURE_6,
    FIGURE_7,
    FIGURE_19,
    FIGURE_23,
    LOSSES,
    MATCHING,
    tails,
    trajectories,
)
from weight_decay.report.figures.own import any_figures
from weight_decay.report.figures.precision import decay_kept, divergence, replay
from weight_decay.report.figures.rules import forest, passes, timescale, tuned
from weight_decay.report.figures.style import light_only, undrawn
from weight_decay.report.figures.vision import ERROR, FIGURE_2, FIGURE_2D, against_epochs, dataset_size, finetuning
from weight_decay.report.tables.read import Tables, scales_of, tables_of

_LEVELS = "The vertical dotted line marks the drop of the learning rate. The paper's curves are drained of colour."
_REAL = f"Fashion-MNIST, beside the paper's CIFAR-10. {_LEVELS}"
_LONG = "The paper's final values were read off its plots, within half a point."


def _long(part: str) -> tuple[Panel, ...]:
    return (
        Panel(*ERROR, factor=100, paper=(f"11{part}", "test_error")),
        Panel("train/loss", "training cross-entropy", logarithmic=True, paper=(f"12{part}", "train_cross_entropy")),
    )


def _epochs(panels: tuple[Panel, ...], title: str, caption: str) -> Drawing:
    return partial(against_epochs, panels=panels, title=title, caption=caption)


def _steps(panels: tuple[Panel, ...], title: str) -> Drawing:
    return partial(trajectories, panels=panels, title=title)


OVER_TRAINING: dict[str, tuple[Drawing, ...]] = {
    "fig01_cifar5m_size": (dataset_size,),
    "fig02_cifar10": (_epochs(FIGURE_2, "Learning rate and decay", _LEVELS),),
    "fig02_real_images": (_epochs(FIGURE_2, "Learning rate and decay on real images", _REAL),),
    "fig02d_tiny_imagenet": (_epochs(FIGURE_2D, "The same on Tiny-ImageNet", _LEVELS),),
    "fig03_grid_tiny_imagenet": (partial(heatmaps, paper_figure="3"), partial(against_product, paper_figure="3")),
    "fig05_finetune": (finetuning,),
    "fig10_grid_cifar10": (heatmaps, against_product),
    "fig11a_vgg": (_epochs(_long("a"), "Long training, VGG16", _LONG),),
    "fig11b_resnet18": (_epochs(_long("b"), "Long training, ResNet18", _LONG),),
    "fig11c_resnet34": (_epochs(_long("c"), "Long training, ResNet34 on CIFAR-100", _LONG),),
    "fig13_similarity": (similarity,),
    "fig15_sphere": (sphere,),
    "fig16_spectra": (spectra,),
    "tab02_ensemble": (ensemble,),
}

UNDER_TRAINING: dict[str, tuple[Drawing, ...]] = {
    "fig06_language_model": (_steps(FIGURE_6, "One pass over text"), tails),
    "fig07_effective_lr": (_steps(FIGURE_7, "Matched effective learning rates"),),
    "fig08_bfloat16_divergence": (divergence,),
    "fig19_generalisation_gap": (_steps(FIGURE_19, "The generalisation gap"),),
    "fig20_layernorm_decay": (_steps(LOSSES, "Decay on LayerNorm too"),),
    "fig21_l2_penalty": (_steps(LOSSES, "An l2 penalty instead of decay"),),
    "fig22_sgd_momentum": (_steps(LOSSES, "SGD with momentum"),),
    "fig23_averaging": (_steps(FIGURE_23, "Averages of the weights"),),
    "constant_lr": (_steps(LOSSES, "A constant learning rate"),),
    "slower_decay": (_steps(LOSSES, "A slower decay of the learning rate"),),
    "bfloat16_decay_lost": (decay_kept,),
    "bfloat16_replay": (replay,),
    "effective_lr_matching": (_steps(MATCHING, "Matching: norms, QK-norm, gentler, longer"),),
}

RULES: dict[str, tuple[Drawing, ...]] = {
    "decay_rules_over_training": (forest,),
    "decay_rules_under_training": (forest,),
    "timescale_over_training": (timescale,),
    "timescale_under_training": (timescale,),
    "passes_text": (passes,),
    "tuned_lr": (tuned,),
}

FIGURES = {**OVER_TRAINING, **UNDER_TRAINING, **RULES}
"""Experiment -> its figures, from its tables. Any other experiment is drawn as figures/own.py does it."""

Key = tuple[str, str]
"""An experiment and a scale."""


def paper_figures(results: Path, jobs: int = 1) -> list[DrawnFigure]:
    """Draw the figures of every experiment and scale that has tables under `results`/tables, in the light theme.

    Raises UserError for tables that cannot be drawn.
    """
    wanted = [(name, scale) for name in (*FIGURES, *own_experiments(results)) for scale in scales_of(results, name)]
    drawn = []
    for figures in draw_experiments(results, wanted, jobs, dark=False).values():
        if isinstance(figures, UserError):
            raise figures
        drawn += figures
    return drawn


def own_experiments(results: Path) -> list[str]:
    """Experiments with tables for which no figure is declared here: a user's own, and those with changed settings."""
    tables = {path.name.rpartition("-")[0] for path in (results / "tables").glob("*.summary.csv")}
    return sorted(tables - set(FIGURES) - set(DEMO))


def figures_of(results: Path, tables: Tables) -> list[DrawnFigure]:
    """Draw the figures of one experiment: those declared for it, or those that any experiment has."""
    if tables.experiment not in FIGURES:
        return any_figures(results, tables)
    return [draw(results, tables) for draw in FIGURES[tables.experiment]]


def draw_experiments(
    results: Path, wanted: Sequence[Key], jobs: int = 1, *, dark: bool = True
) -> dict[Key, list[DrawnFigure] | UserError]:
    """The figures of each experiment and scale of `wanted`, in its order, or why its tables cannot be drawn.

    Those whose tables, code and files have not changed since they were drawn are not drawn again. With more than one
    job, as many processes draw, each one experiment at a time. `dark`: in both themes, not only the light one.
    """
    draw = partial(_drawn, results, dark)
    bar = partial(tqdm, total=len(wanted), desc="figures", unit="experiment", leave=False, disable=None)
    if jobs < 2 or len(wanted) < 2:
        return {key: draw(key) for key in bar(wanted)}
    with ProcessPoolExecutor(min(jobs, len(wanted)), mp_context=get_context("spawn")) as pool:
        return dict(zip(wanted, bar(pool.map(draw, wanted)), strict=True))


def _drawn(results: Path, dark: bool, key: Key) -> list[DrawnFigure] | UserError:
    name, scale = key
    made = made_of(results, name, scale, dark)
    try:
        if up_to_date(results, name, scale, made):
            with undrawn():
                return figures_of(results, tables_of(results, name, scale))
        with nullcontext() if dark else light_only("png", "pdf"):
            figures = figures_of(results, tables_of(results, name, scale))
        remember(results, name, scale, made, figures, dark)
        return figures
    except UserError as error:
        return error
