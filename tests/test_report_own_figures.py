"""Figures of an experiment that has none of its own: what is drawn, and which cell is subtracted from which."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from synthetic_runs import OVER_TRAINING, SEED_SHIFT, over_training_run, under_training_run, write_experiment, write_run
from weight_decay.report.figures import demo
from weight_decay.report.figures.own import any_figures, coordinates_of, differences, label_of
from weight_decay.report.figures.paper import draw_experiments, figures_of, own_experiments
from weight_decay.report.figures.style import LIGHT, Draw, rc, undrawn
from weight_decay.report.tables.collect import collect
from weight_decay.report.tables.read import DECAY, tables_of

OVER, UNDER = "my_rates", "my_decay"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    over = [write_run(folder, over_training_run(lr, decay, seed)) for lr, decay in OVER_TRAINING for seed in (0, 1)]
    write_experiment(folder, OVER, over, "over_training", figure="own")
    under = [write_run(folder, under_training_run(decay)) for decay in (0.0, 0.05)]
    write_experiment(folder, UNDER, under, "under_training", figure="own")
    collect(folder)
    return folder


def drawn(results: Path, experiment: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}

    def build(draw: Draw, folder: Path, name: str) -> Path:
        with matplotlib.rc_context(rc(LIGHT)):
            figures[name] = draw(LIGHT)
        return folder / f"{name}.png"

    monkeypatch.setattr(demo, "save", build)
    found = any_figures(results, tables_of(results, experiment, "micro"))
    assert [figure.path.stem for figure in found] == list(figures)
    assert all(figure.caption and figure.alternative and figure.experiment == experiment for figure in found)
    return figures


def test_only_what_changed_is_drawn_again(results: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copytree(results / "tables", tmp_path / "tables")
    key, saved, save = (UNDER, "micro"), [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *given, **named: saved.append(save(self, *given, **named)))

    def drawings() -> tuple[int, list[demo.DrawnFigure]]:
        before, found = len(saved), draw_experiments(tmp_path, [key], dark=False)[key]
        assert isinstance(found, list)
        return len(saved) - before, found

    number, first = drawings()
    assert number == 2 * len(first) > 0  # PNG and PDF
    assert drawings() == (0, first)
    first[0].path.write_bytes(b"")
    assert drawings()[0] == number and first[0].path.stat().st_size
    table = tmp_path / "tables" / f"{UNDER}-micro.summary.csv"
    table.write_text(table.read_text().replace(",1.", ",1.0"))
    assert drawings()[0] == number


def labels(figure: Figure) -> list[str]:
    return [axis.get_ylabel() for axis in figure.axes if axis.axison]


def test_everything_measured_is_over_steps_with_a_line_for_each_cell(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overview = drawn(results, OVER, monkeypatch)[f"{OVER}-micro"]
    assert [label.split(" $")[0] for label in labels(overview)] == [
        "training loss", "test error", "weight norm", "Jacobian norm",
    ]  # fmt: skip
    lines = [line for line in overview.axes[1].lines if not str(line.get_label()).startswith("_")]
    assert {line.get_label() for line in lines} == {f"λ = {decay:g}, η = {lr:g}" for lr, decay in OVER_TRAINING}
    assert len(overview.axes[1].lines) == 2 * len(lines)  # each with its average
    for line in lines:
        lr, decay = next(key for key in OVER_TRAINING if line.get_label() == f"λ = {key[1]:g}, η = {key[0]:g}")
        assert line.get_ydata()[-1] == pytest.approx(OVER_TRAINING[lr, decay][2] + SEED_SHIFT / 2)
    text = drawn(results, UNDER, monkeypatch)[f"{UNDER}-micro"]
    assert [label.split(" $")[0] for label in labels(text)] == [
        "validation loss", "effective learning rate", "weight norm",
    ]  # fmt: skip


def test_differences_are_to_the_run_without_decay_and_else_alike(results: Path) -> None:
    tables = tables_of(results, OVER, "micro")
    assert coordinates_of(tables) == ["decay.strength", "optimizer.lr"]
    found = {label: (rows, reference) for rows, label, reference in differences(tables, "test/error")}
    assert set(found) == {"λ = 0.015, η = 0.3", "λ = 0.015, η = 0.02"}
    for lr in (0.3, 0.02):
        rows, reference = found[f"λ = 0.015, η = {lr:g}"]
        assert reference == "the run at λ = 0"
        last = rows[rows["step"] == 960]
        expected = OVER_TRAINING[lr, 0.015][2] - OVER_TRAINING[lr, 0.0][2]
        np.testing.assert_allclose(last["test/error"], [expected] * 2)  # the seeds' shifts cancel: paired


def test_without_a_decay_coordinate_the_first_cell_is_subtracted(results: Path) -> None:
    tables = tables_of(results, OVER, "micro")
    kept = [frame[frame[DECAY] == 0] for frame in (tables.summary, tables.curves)]
    found = differences(dataclasses.replace(tables, summary=kept[0], curves=kept[1]), "test/error")
    assert [(label, reference) for _, label, reference in found] == [("η = 0.3", "η = 0.02")]


def test_one_cell_alone_has_no_differences(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = tables_of(results, UNDER, "micro")
    kept = [frame[frame[DECAY] == 0] for frame in (tables.summary, tables.curves)]
    with undrawn():
        (only,) = any_figures(results, dataclasses.replace(tables, summary=kept[0], curves=kept[1]))
    assert only.title == "Over the steps of each run" and not only.path.exists()


def test_they_are_found_beside_the_papers(results: Path) -> None:
    assert own_experiments(results) == [UNDER, OVER]
    with undrawn():
        names = [figure.path.stem for figure in figures_of(results, tables_of(results, OVER, "micro"))]
    assert names == [f"{OVER}-micro", f"{OVER}-differences-micro"]


def test_a_cell_is_named_by_what_it_has() -> None:
    row = pd.Series({"batch_size": 32, "decay.strength": 0.015, "schedule.norm": float("nan"), "model": "mlp"})
    assert label_of(row) == "batch_size 32, λ = 0.015, mlp"
