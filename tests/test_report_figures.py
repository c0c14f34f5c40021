from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
from matplotlib.figure import Figure

from synthetic_runs import RATES, SIZES, SPECTRUM, write_vision_suite
from weight_decay.errors import UserError
from weight_decay.report.figures import demo as figures
from weight_decay.report.figures.curvature import spectra_rows, survival
from weight_decay.report.figures.grid import second_phase
from weight_decay.report.figures.paper import OVER_TRAINING, figures_of, paper_figures
from weight_decay.report.figures.reference import reference
from weight_decay.report.figures.style import LIGHT, Draw, rc
from weight_decay.report.figures.vision import best_decay_per_size, branch_ends, one_decay_for_all
from weight_decay.report.tables.collect import collect
from weight_decay.report.tables.read import tables_of

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    write_vision_suite(folder)
    shutil.copytree(REPOSITORY / "results" / "reference", folder / "reference")
    assert collect(folder).damaged == []
    return folder


@pytest.fixture(scope="module")
def built(results: Path) -> dict[str, Figure]:
    """All figures, built but not rendered: rendering takes far longer and test_report_page renders some."""
    figures_by_name: dict[str, Figure] = {}

    def build(draw: Draw, folder: Path, name: str) -> Path:
        with matplotlib.rc_context(rc(LIGHT)):
            figures_by_name[name] = draw(LIGHT)
        return folder / f"{name}.png"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save", build)
        drawn = paper_figures(results)
    assert [figure.path.stem for figure in drawn] == list(figures_by_name)
    assert all(figure.caption and figure.alternative for figure in drawn)
    return figures_by_name


def _line(figure: Figure, axis: int, label: str) -> dict[float, float]:
    (line,) = (line for line in figure.axes[axis].lines if line.get_label() == label)
    return dict(zip(line.get_xdata(), line.get_ydata(), strict=True))


def test_every_experiment_with_tables_has_its_figures(built: dict[str, Figure]) -> None:
    missing = {name for name in OVER_TRAINING if not any(stem.startswith(name) for stem in built)}
    assert missing == {"fig11b_resnet18", "fig11c_resnet34"}  # the suite has no such runs
    assert len(built) == 14
    for name, figure in built.items():
        assert figure._supxlabel.get_text().startswith("scale micro · data "), name  # type: ignore[attr-defined]
        assert all(axis.get_xlabel() or not axis.axison or axis.get_label() == "<colorbar>" for axis in figure.axes)


def test_the_size_figure_shows_one_decay_for_all_and_the_best_of_each(built: dict[str, Figure], results: Path) -> None:
    runs = tables_of(results, "fig01_cifar5m_size", "micro").runs
    # Means over the sizes: .04 less for λ = .01, .03 less for λ = .02, although .02 wins at the largest.
    assert one_decay_for_all(runs) == 0.01
    best = best_decay_per_size(runs).groupby("data.train_size")["decay.strength"].unique().map(list).to_dict()
    assert best == {512: [0.01], 2048: [0.01], 8192: [0.02]}
    figure = built["fig01_cifar5m_size-micro"]
    plain, chosen = _line(figure, 0, "λ = 0"), _line(figure, 0, "λ = 0.01 for all sizes")
    assert list(plain) == list(SIZES)
    assert plain[512] == pytest.approx(50.2) and chosen[512] == pytest.approx(46.2)
    assert _line(figure, 0, "best λ > 0 of each size")[8192] == pytest.approx(plain[8192] - 5)
    paper = [dict(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in figure.axes[2].lines]
    assert paper[0][10_000] == pytest.approx(22.1, abs=0.1) and paper[1][10_000] == pytest.approx(35.6, abs=0.1)


def test_along_the_product_the_lines_of_the_grid_meet(built: dict[str, Figure]) -> None:
    figure = built["fig03_grid_tiny_imagenet-product-micro"]
    lines = [_line(figure, 0, f"η = {rate:g}") for rate in RATES]
    # The suite's error is a function of the product alone: 20.2 % (with the seeds' mean shift) at 1e-3.
    assert [line[0.001] for line in lines] == pytest.approx([20.2] * 3)
    assert all(0.0 not in line for line in lines)


def test_the_heatmap_has_every_cell_and_the_paper_beside_it(built: dict[str, Figure]) -> None:
    ours, _, theirs, *_ = (
        axis for axis in built["fig03_grid_tiny_imagenet-heatmaps-micro"].axes if axis.get_label() != "<colorbar>"
    )
    assert len(ours.texts) == 12 and len(theirs.texts) == 90
    assert sorted({text.get_text() for text in ours.texts}) == ["20.2", "23.2", "26.2", "40.2"]


def test_fine_tuned_points_stand_at_the_epoch_they_started_from(results: Path) -> None:
    tables = tables_of(results, "fig05_finetune", "micro")
    # The second snapshot falls on a step at which nothing else was recorded.
    unrecorded = tables.summary["start_step"].drop_duplicates().nsmallest(2).iloc[-1]
    curves = tables.curves[(tables.curves["branch"] != "main") | (tables.curves["step"] != unrecorded)]
    assert len(curves) < len(tables.curves)
    ends = branch_ends(replace(tables, curves=curves))
    assert len(ends) == 18
    assert ends["epoch"].tolist() == pytest.approx((ends["start_step"] / 16).tolist())


def test_the_second_phase_is_the_branch_from_the_last_snapshot(results: Path) -> None:
    ends = second_phase(tables_of(results, "fig05_finetune", "micro"))
    assert ends["start_step"].unique().tolist() == [800]
    assert len(ends) == len(RATES)
    sphere = tables_of(results, "fig15_sphere", "micro")  # no branches in the suite
    assert len(second_phase(sphere)) == len(sphere.runs)


def test_spectra_are_those_of_the_large_rate_phase(built: dict[str, Figure], results: Path) -> None:
    rows = spectra_rows(tables_of(results, "fig16_spectra", "micro"))
    assert rows["step"].unique().tolist() == [480]
    values, above = survival(rows[rows["seed"] == 0].head(1), "noise")
    assert values.tolist() == [1.0, 100.0]  # the third is rounding beside the largest
    assert above.tolist() == pytest.approx([SPECTRUM[1.0] + SPECTRUM[100.0], SPECTRUM[100.0]])
    both, share = survival(rows[rows["optimizer.lr"] == rows["optimizer.lr"].iloc[0]], "decoupled")
    assert set(both) == {2.0, 200.0}
    assert share.max() == pytest.approx(0.1)  # however many runs are put together, shares of one spectrum


def test_the_ensemble_stands_beside_iterate_and_average(built: dict[str, Figure]) -> None:
    figure = built["tab02_ensemble-micro"]
    assert set(_line(figure, 0, "ensemble").values()) == {25.0}
    assert list(_line(figure, 0, "ensemble")) == list(_line(figure, 0, "moving average (EMA)"))


def test_the_reference_gives_the_papers_numbers(results: Path) -> None:
    final = reference(results, "2a", "test_error", "sgd")
    chosen = final[(final["lr"] == 0.1) & (final["weight_decay"] == "0.01")]
    assert chosen["x"].is_monotonic_increasing and chosen["y"].iloc[-1] == pytest.approx(0.094, abs=0.002)
    sphere = reference(results, "15a", "test_error").sort_values("lr")
    printed = [0.1395, 0.1265, 0.1187, 0.1090, 0.1048, 0.1113, 0.1280, 0.1442, 0.1585]
    assert sphere["y"].tolist() == pytest.approx(printed, abs=5e-5)
    assert reference(results, "2a", "test_error", "tiny_lr").empty


def test_another_folder_of_results_has_the_papers_curves_beside_its_own(results: Path, tmp_path: Path) -> None:
    assert reference(tmp_path, "2a", "test_error").equals(reference(results, "2a", "test_error"))
    shutil.copytree(results / "tables", tmp_path / "tables")
    (figure,) = figures_of(tmp_path, tables_of(tmp_path, "fig15_sphere", "micro"))
    assert figure.path.read_bytes().startswith(b"\x89PNG")


def test_a_damaged_reference_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "reference" / "paper_curves.csv"
    path.parent.mkdir()
    pd.DataFrame({"figure": ["1"], "y": [0.5]}).to_csv(path, index=False)
    with pytest.raises(UserError, match="must have the columns"):
        reference(tmp_path, "1", "test_error")
