"""Figures of the under-training regime, from tables whose laws the tests know."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import pytest
from matplotlib.figure import Figure

from synthetic_runs import Run, write_experiment, write_run
from weight_decay.report.figures import demo as figures
from weight_decay.report.figures.language import cells
from weight_decay.report.figures.paper import UNDER_TRAINING, paper_figures
from weight_decay.report.figures.precision import kept_shares
from weight_decay.report.figures.style import LIGHT, Draw, rc
from weight_decay.report.tables.collect import collect
from weight_decay.report.tables.read import tables_of

KEPT = {"fused": 0.95, "foreach": 0.0, "stochastic": 1.0, "kahan": 1.0}


def language_run(coordinates: dict[str, Any], **changes: Any) -> Run:
    """100 steps; the gap to other documents is .09 at the end, to unseen windows .01; ‖w‖ = 100 e^(-20 η λ · kept)."""
    decay, lr = coordinates.get("decay.strength", 0.0), coordinates.get("optimizer.lr", 1e-2)
    kept = changes.pop("kept", 1.0)
    rows = []
    for step in range(0, 101, 10):
        loss = 1.5 + 3 * math.exp(-step / 20) + decay * (50 - step) / 100 + 0.002 * coordinates["seed"]
        row: dict[str, Any] = {
            "step": step,
            "epoch": step / 100,
            "samples": step * 8,
            "train/loss": loss,
            "unseen/loss": loss + 0.01,
            "val/loss": loss + 0.09,
            "ema/val/loss": loss + 0.08,
            "ema_0.999/val/loss": loss + 0.07,
            "stability/max_attention_logit": 40.0 - 10 * decay,
            "stability/max_activation": 300.0 - 100 * decay,
        }
        if step > 50:
            row["tail/val/loss"] = loss
        if step:
            norm = 100 * math.exp(-20 * lr * decay * kept * step / 100)
            row |= {"lr": lr, "weights/norm": norm, "effective_lr/adamw": lr / norm}
            row |= {"batch/loss": loss, "grad/norm": 0.5}
            row |= {f"replay/{name}/kept_0.05": 0.9 for name in ("foreach", "fused", "nearest", "stochastic", "kahan")}
        rows.append(row)
    run = Run(coordinates, "under_training", rows, data="python_text", **changes)
    for start in (20, 60, 100):
        fall = 0.05 + decay / 10
        before = next(row["val/loss"] for row in rows if row["step"] == start)
        ends = [{**rows[0], "step": start + 10, "epoch": 1.0, "val/loss": before - fall}]
        run.branches[f"tiny_lr-{start:09d}"] = ends
    return run


def grid(**axes: list[Any]) -> list[dict[str, Any]]:
    points: list[dict[str, Any]] = [{}]
    for name, values in axes.items():
        points = [{**point, name.replace("__", "."): value} for point in points for value in values]
    return [{**point, "seed": seed} for point in points for seed in (0, 1)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    strengths = grid(decay__strength=[0.0, 0.05, 0.15])
    matched = [
        {**point, "schedule": "matched_effective_lr", "schedule.reference_strength": 0.05, "schedule.norm": norm}
        for point in grid(decay__strength=[0.0])
        for norm in ("whole", "per_matrix")
    ]
    suite: dict[str, list[Run]] = {
        name: [language_run(point) for point in strengths + (matched if "eff" in name else [])]
        for name in UNDER_TRAINING
        if name not in ("bfloat16_decay_lost", "fig08_bfloat16_divergence")
    }
    precisions = grid(
        optimizer__lr=[1e-2, 4e-2], decay__strength=[0.0, 0.15], precision=["float32", "bfloat16_autocast"]
    )
    suite["fig08_bfloat16_divergence"] = [
        language_run(p, status="diverged" if p["precision"] != "float32" and p["decay.strength"] == 0 else "completed")
        for p in precisions
    ]
    lost = []
    for point in grid(optimizer__lr=[1e-2, 2e-3], decay__strength=[0.0, 0.05, 0.5]):
        exact = {"precision": "float32", "precision.rounding": "kernel", "optimizer.kernel": "fused"}
        lost.append(language_run({**point, **exact}))
        for how, kept in KEPT.items():
            kernel, rounding = (how, "kernel") if how in ("fused", "foreach") else ("fused", how)
            more = {"precision": "bfloat16", "precision.rounding": rounding, "optimizer.kernel": kernel}
            lost.append(language_run({**point, **more}, kept=kept))
    suite["bfloat16_decay_lost"] = lost
    for name, runs in suite.items():
        made = [write_run(folder, run) for run in runs]
        write_experiment(folder, name, made, "under_training", data="python_text", figure=name[3:5])
    assert collect(folder).damaged == []
    return folder


@pytest.fixture(scope="module")
def built(results: Path) -> dict[str, Figure]:
    by_name: dict[str, Figure] = {}

    def build(draw: Draw, folder: Path, name: str) -> Path:
        with matplotlib.rc_context(rc(LIGHT)):
            by_name[name] = draw(LIGHT)
        return folder / f"{name}.png"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save", build)
        paper_figures(results)
    return by_name


def line(figure: Figure, axis: int, label: str) -> dict[float, float]:
    (found,) = (one for one in figure.axes[axis].lines if one.get_label() == label)
    return dict(zip(found.get_xdata(), found.get_ydata(), strict=True))  # type: ignore[arg-type]


def test_every_language_experiment_has_its_figures(built: dict[str, Figure]) -> None:
    assert {f"{name}-micro" for name in UNDER_TRAINING} | {"fig06_language_model-tails-micro"} == set(built)
    for figure in built.values():
        assert any(axis.lines for axis in figure.axes)


def test_the_curves_are_means_over_seeds_of_each_cell(built: dict[str, Figure]) -> None:
    loss = line(built["fig06_language_model-micro"], 3, "λ = 0.15")
    assert loss[100] == pytest.approx(1.5 + 3 * math.exp(-5) - 0.075 + 0.09 + 0.001, rel=1e-5)


def test_the_papers_curves_stand_beside_ours(results: Path, tmp_path: Path) -> None:
    shutil.copytree(results / "tables", tmp_path / "tables")
    shutil.copytree(Path(__file__).resolve().parents[1] / "results" / "reference", tmp_path / "reference")
    by_name: dict[str, Figure] = {}

    def build(draw: Draw, folder: Path, name: str) -> Path:
        with matplotlib.rc_context(rc(LIGHT)):
            by_name[name] = draw(LIGHT)
        return folder / f"{name}.png"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save", build)
        paper_figures(tmp_path)

    def theirs(name: str) -> list[str]:
        return [axis.get_title(loc="left") for axis in by_name[name].axes if "Paper" in axis.get_title(loc="left")]

    assert theirs("fig06_language_model-micro") == ["Paper, Fig. 6 (digitised)", "Paper, Fig. 25b (digitised)"]
    assert theirs("fig06_language_model-tails-micro") == ["Paper, Fig. 6 (digitised)"]
    assert theirs("fig07_effective_lr-micro") == [f"Paper, Fig. 7{part} (digitised)" for part in "abc"]
    assert theirs("fig08_bfloat16_divergence-micro") == ["Paper, Fig. 8 (digitised)"]
    final = line(by_name["fig06_language_model-micro"], 1, "λ = 0.1")
    assert final[max(final)] == pytest.approx(3.278, abs=0.01)  # PAPER.md's number for Fig 6


def test_the_gaps_are_differences_to_the_windows_trained_on(built: dict[str, Figure]) -> None:
    figure = built["fig19_generalisation_gap-micro"]
    assert line(figure, 0, "λ = 0.05")[100] == pytest.approx(0.01)
    assert line(figure, 1, "λ = 0.05")[100] == pytest.approx(0.09)


def test_the_tails_show_what_the_tiny_rate_wins(built: dict[str, Figure]) -> None:
    fall = built["fig06_language_model-tails-micro"].axes[1]
    ends = sorted(float(one.get_ydata()[-1]) for one in fall.lines)  # type: ignore[index]
    assert ends == pytest.approx([0.05, 0.055, 0.065])


def test_cells_of_a_matched_run_are_told_apart(results: Path) -> None:
    curves = tables_of(results, "effective_lr_matching", "micro").main_curves
    names = {name for _, name, _ in cells(curves, LIGHT)}
    assert names == {"λ = 0", "λ = 0.05", "λ = 0.15"} | {
        f"λ = 0, matched to λ = 0.05, {norm}" for norm in ("whole norm", "each matrix")
    }


def test_the_share_of_decay_kept_is_recovered(results: Path) -> None:
    shares = kept_shares(tables_of(results, "bfloat16_decay_lost", "micro").runs)
    assert len(shares) == 4 * 2 * 2 * 2
    assert set(shares["product"]) == {5e-4, 5e-3, 1e-4, 1e-3}
    means: pd.Series = shares.groupby("how")["kept"].mean()
    wanted = {"fused kernel": 0.95, "foreach kernel": 0.0, "stochastic": 1.0, "kahan": 1.0}
    assert means.to_dict() == pytest.approx(wanted, abs=1e-4)


def test_diverged_cells_are_crossed(built: dict[str, Figure]) -> None:
    axis = built["fig08_bfloat16_divergence-micro"].axes[0]
    crossed = [list(one.get_xdata()) for one in axis.lines if one.get_marker() == "x"]  # type: ignore[arg-type]
    assert [0.0] in crossed and [] in crossed


def test_the_difference_panel_pairs_runs_by_seed() -> None:
    """Seeds that differ by a nat from one another, and by .1 between λ: the interval is that of the pairs."""
    from weight_decay.report.figures.differences import DIFFERENCE_METRIC, with_differences

    rows = [
        {"run_id": f"{seed}-{decay}", "seed": seed, "decay.strength": decay, "step": step,
         "batch/loss": seed + 2 * decay}
        for seed in range(3) for decay in (0.0, 0.05) for step in range(50, 5001, 50)
    ]  # fmt: skip
    curves = with_differences(pd.DataFrame(rows), ["decay.strength"])
    decayed = curves[curves["decay.strength"] > 0][DIFFERENCE_METRIC].dropna()
    assert len(decayed) > 100 and decayed.to_numpy() == pytest.approx(0.1)
    assert curves[curves["decay.strength"] == 0][DIFFERENCE_METRIC].isna().all()
    without_base = pd.DataFrame([row for row in rows if row["decay.strength"]])
    assert DIFFERENCE_METRIC not in with_differences(without_base, ["decay.strength"])


def test_a_colour_means_the_same_decay_in_every_figure() -> None:
    from weight_decay.report.figures.style import LIGHT, decay_colors

    several, two = decay_colors(LIGHT, (0.0, 0.05, 0.15)), decay_colors(LIGHT, (0.05, 0.0, 0.05))
    assert two == {decay: several[decay] for decay in (0.0, 0.05)} and len(set(several.values())) == 3
    assert decay_colors(LIGHT, (0.0, 0.1, 0.3))[0.1] == several[0.05]  # the paper's, beside ours
