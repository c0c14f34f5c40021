"""The notebooks: stored without outputs, every figure in the paper's order, and they run on the tables there are."""

from __future__ import annotations

import itertools
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from synthetic_runs import write_experiment, write_run, write_vision_suite
from test_report_language import grid, language_run
from weight_decay.errors import UserError
from weight_decay.report.claims import measures as claims_measures
from weight_decay.report.figures import notebook
from weight_decay.report.figures.notebook import Book
from weight_decay.report.figures.paper import OVER_TRAINING, UNDER_TRAINING
from weight_decay.report.tables.collect import collect

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
REGIMES = {"over_training": list(OVER_TRAINING), "under_training": list(UNDER_TRAINING)}
DRAWN = {
    "over_training": {"fig02_cifar10": 1, "fig03_grid_tiny_imagenet": 2},
    "under_training": {"fig06_language_model": 2, "constant_lr": 1},
}
"""Experiments with tables in `made_up`, and how many figures each has."""
SHOW = re.compile(r'book\.show\("(\w+)"\)')


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with tables of two experiments of each regime."""
    runs, folder = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("results")
    write_vision_suite(runs)
    for name in DRAWN["under_training"]:
        made = [write_run(runs, language_run(point)) for point in grid(decay__strength=[0.0, 0.05, 0.15])]
        write_experiment(runs, name, made, "under_training", data="python_text", figure=name[3:5])
    collect(runs, [name for drawn in DRAWN.values() for name in drawn], folder / "tables")
    return folder


def executed(path: Path, results: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The cells of a notebook after it has run on the tables of `results`."""
    monkeypatch.setenv("WEIGHT_DECAY_RESULTS", str(results))
    read = nbformat.read(path, as_version=4)
    NotebookClient(read, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    return list(read.cells)


def pictures(cells: list[Any]) -> int:
    return sum("image/png" in output.get("data", {}) for cell in cells for output in cell.get("outputs", []))


def described(cells: list[Any]) -> int:
    """Pictures that come with words for those who do not see them."""
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return sum(len(output.get("metadata", {}).get("image/png", {}).get("alt", "")) > 20 for output in outputs)


def printed(cell: Any) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.parametrize("regime", REGIMES)
def test_every_figure_is_there_in_the_papers_order_below_its_text(regime: str) -> None:
    cells = nbformat.read(ROOT / "notebooks" / f"{regime}.ipynb", as_version=4).cells
    assert [found[1] for cell in cells if (found := SHOW.fullmatch(cell.source))] == REGIMES[regime]
    for text, code in itertools.pairwise(cells):
        if SHOW.fullmatch(code.source):
            assert text.cell_type == "markdown" and len(text.source.splitlines()[-1]) > 40


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_on_the_committed_tables(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "results" / "tables", tmp_path / "tables")
    cells = executed(path, tmp_path, monkeypatch)
    if path.stem not in REGIMES:
        assert pictures(cells)
    assert described(cells) == pictures(cells)
    for cell in cells:
        if found := SHOW.fullmatch(cell.source):
            there = (tmp_path / "tables" / f"{found[1]}-micro.summary.csv").is_file()
            assert (pictures([cell]) > 0) == there
            assert printed(cell).startswith(f"{found[1]}: no tables, run `make sweep EXP={found[1]} ") != there


@pytest.mark.parametrize("regime", REGIMES)
def test_a_regime_is_drawn_from_its_tables_and_nothing_is_written_beside_them(
    regime: str, made_up: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(made_up.rglob("*"))
    monkeypatch.chdir(made_up)
    pictures: list[object] = []
    monkeypatch.setattr("IPython.display.display", lambda picture, **_: pictures.append(picture))
    book, shown = Book(".", "micro"), {}
    for name in REGIMES[regime]:
        pictures.clear()
        book.show(name)
        shown[name] = len(pictures)
        told = capsys.readouterr().out
        assert name not in DRAWN[regime] or re.search("^(HOLDS|FAILS|INCONCLUSIVE): ", told, re.MULTILINE)
    assert {name: count for name, count in shown.items() if count} == DRAWN[regime]
    assert sorted(made_up.rglob("*")) == before


def test_a_figure_without_claims_says_so(
    made_up: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(claims_measures, "CLAIMS", ())
    monkeypatch.chdir(made_up)
    Book(".", "micro").show("constant_lr")
    assert capsys.readouterr().out.endswith("\nNo claim rests on it.\n")


def test_the_source_may_be_a_wandb_project(made_up: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebook, "pull", lambda path, to: shutil.copytree(made_up / "tables", to / "tables" / path))
    monkeypatch.chdir(ROOT / "notebooks")
    book = Book("wandb:somebody/some", "micro")
    assert list((book.results / "tables" / "somebody" / "some").glob("constant_lr-micro.*.csv"))


def test_a_source_without_tables_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no folder .*/tables, here or above"):
        Book(str(tmp_path), "micro")
