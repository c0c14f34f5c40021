from __future__ import annotations

import gzip
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from synthetic_runs import (
    OVER_TRAINING,
    Run,
    over_training_run,
    under_training_run,
    write_demo,
    write_experiment,
    write_run,
)
from weight_decay.errors import UserError
from weight_decay.report.tables.collect import collect
from weight_decay.report.tables.read import band, large_rate_phase_end, mean_between, tables_of
from weight_decay.runs.read import DamagedRunError, read_record, rows_of


def test_tables_hold_every_run_and_every_row_with_its_provenance(tmp_path: Path) -> None:
    write_demo(tmp_path, seeds=(0, 1))
    collected = collect(tmp_path)
    assert collected.finished == 14 and collected.unfinished == 0 and not collected.damaged
    summary = pd.read_csv(tmp_path / "tables" / "demo_over_training-micro.summary.csv")
    curves = pd.read_csv(tmp_path / "tables" / "demo_over_training-micro.curves.csv.gz")
    assert len(summary) == 8 and len(curves) == 8 * 25
    for frame in (summary, curves):
        provenance = ["run_id", "experiment", "scale", "data", "seed", "optimizer.lr", "decay.strength"]
        assert frame[[*provenance, "git_commit"]].notna().all().all()
        assert set(frame["data"]) == {"procedural"} and set(frame["scale"]) == {"micro"}
    assert "time/seconds" not in curves
    for (lr, decay), numbers in OVER_TRAINING.items():
        row = summary[(summary["optimizer.lr"] == lr) & (summary["decay.strength"] == decay) & (summary["seed"] == 0)]
        assert row["test/error"].item() == pytest.approx(numbers[2])
    original = over_training_run(0.3, 0.015, seed=1)
    ours = curves[curves["run_id"] == original.run_id]
    for name in ("test/error", "weights/norm", "samples"):
        assert ours[name].tolist() == pytest.approx([row[name] for row in original.rows], rel=1e-5)


def test_sparse_metrics_keep_their_column_whatever_the_order_of_discovery(tmp_path: Path) -> None:
    first = [
        {"step": 0, "lr": 0.5},
        {"step": 1, "test/error": 0.25},
        {"step": 2, "lr": 0.125, "weights/norm": 3},
    ]
    second = [{"step": 0, "weights/norm": None}, {"step": 1, "noise/scale": 2.5, "lr": 0.75}]
    cells = []
    for seed, rows in enumerate((first, second)):
        cells.append(write_run(tmp_path, Run({"seed": seed, "note": 'a "b", c'}, "over_training", rows)))
    write_experiment(tmp_path, "sparse", cells, "over_training")
    collect(tmp_path)
    curves = pd.read_csv(tmp_path / "tables" / "sparse-micro.curves.csv.gz", keep_default_na=False, dtype=str)
    assert curves["note"].unique().tolist() == ['a "b", c']
    for rows, run in ((first, curves[curves["seed"] == "0"]), (second, curves[curves["seed"] == "1"])):
        for expected, (_, row) in zip(rows, run.iterrows(), strict=True):
            for name in ("lr", "test/error", "weights/norm", "noise/scale"):
                if name not in expected:
                    assert row[name] == ""
                elif expected[name] is None:
                    assert row[name] == "nan"
                else:
                    assert float(row[name]) == expected[name]


def test_runs_on_other_data_of_the_same_name_are_named(tmp_path: Path) -> None:
    cells, rows = [], [{"step": 1, "test/error": 0.5}]
    for seed, (size, content) in enumerate([(8, "aa"), (8, "bb"), (9, "bb")]):
        data = {"name": "mine", "fingerprint": content * 8}
        extra = {"identity": {"data": {"kind": "npz", "train_size": size}}, "data": data}
        cells.append(write_run(tmp_path, Run({"seed": seed}, "over_training", rows, extra=extra)))
    write_experiment(tmp_path, "mixed", cells, "over_training")
    collected = collect(tmp_path)
    assert collected.other_data == {"mixed-micro": [cells[1]["run_id"]]}
    assert "mixed-micro: 1 run(s) trained on other data than the rest, under the same name" in collected.describe()


def test_branches_are_rows_of_their_own(tmp_path: Path) -> None:
    run = under_training_run(0.05, branches={"tiny-1000": [{"step": 10, "finetuned/val/loss": 1.25}]})
    write_experiment(tmp_path, "branches", [write_run(tmp_path, run)], "under_training")
    collect(tmp_path)
    tables = tables_of(tmp_path, "branches", "micro")
    assert tables.summary["branch"].tolist() == ["main", "tiny-1000"]
    assert tables.summary["finetuned/val/loss"].tolist()[1] == 1.25
    assert len(tables.runs) == 1 and "tiny-1000" not in set(tables.main_curves["branch"])
    assert tables.curves[tables.curves["branch"] == "tiny-1000"]["step"].tolist() == [10]


def _truncate(folder: Path) -> None:
    path = folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-20])


def _text_value(folder: Path) -> None:
    (folder / "metrics.jsonl").write_text('{"step": 0, "lr": "high"}\n')


def _other_run(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**summary, "run_id": "ffffffffffff"}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda folder: (folder / "summary.json").write_text('{"status": "comp'),
            "summary.json cannot be read",
        ),
        (lambda folder: (folder / "summary.json").write_text("[]"), "no known status"),
        (lambda folder: (folder / "summary.json").unlink(), "summary.json is missing"),
        (lambda folder: (folder / "summary.json").write_text('{"status": "completed"}'), "lacks run_id"),
        (lambda folder: (folder / "metrics.jsonl").unlink(), "metrics.jsonl is missing"),
        (lambda folder: (folder / "metrics.jsonl").write_text(""), "metrics.jsonl is empty"),
        (_truncate, "line 51 of metrics.jsonl"),
        (_text_value, "not a number"),
        (_other_run, "belongs to run ffffffffffff"),
    ],
)
def test_a_damaged_folder_is_named_and_left_out(tmp_path: Path, damage, words: str) -> None:
    cells = [write_run(tmp_path, under_training_run(decay)) for decay in (0.0, 0.05)]
    write_experiment(tmp_path, "some", cells, "under_training")
    folder = tmp_path / "runs" / cells[0]["folder"]
    damage(folder)
    collected = collect(tmp_path)
    assert [item.folder for item in collected.damaged] == [folder]
    assert words in collected.damaged[0].reason
    assert str(folder) in collected.describe()
    assert tables_of(tmp_path, "some", "micro").summary["run_id"].tolist() == [cells[1]["run_id"]]


def test_unfinished_runs_are_counted_and_diverged_ones_are_results(tmp_path: Path) -> None:
    cells = [
        write_run(tmp_path, under_training_run(0.0, seed=0, status="diverged")),
        write_run(tmp_path, under_training_run(0.0, seed=1, status="failed")),
        write_run(tmp_path, under_training_run(0.0, seed=2, status="running")),
        {"run_id": "0" * 12, "folder": "never-started-000000000000", "coordinates": {"seed": 3}},
    ]
    write_experiment(tmp_path, "mixed", cells, "under_training")
    collected = collect(tmp_path)
    assert (collected.finished, collected.unfinished) == (1, 3)
    row = tables_of(tmp_path, "mixed", "micro").summary
    assert row["status"].tolist() == ["diverged"] and row["divergence_step"].tolist() == [2000]


def test_collecting_twice_changes_no_file(tmp_path: Path) -> None:
    write_demo(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in collect(tmp_path).tables}
    assert len(before) == 6
    assert {path: path.stat().st_mtime_ns for path in collect(tmp_path).tables} == before
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == sorted(path.name for path in before)


def test_moved_results_are_still_found(tmp_path: Path) -> None:
    write_demo(tmp_path / "old")
    shutil.move(tmp_path / "old", tmp_path / "new")
    assert collect(tmp_path / "new").finished == 7


def test_only_named_experiments_are_collected_and_unknown_names_are_refused(tmp_path: Path) -> None:
    write_demo(tmp_path)
    assert len(collect(tmp_path, ["demo_over_training"]).tables) == 2
    with pytest.raises(UserError, match="No experiment named 'fig99'"):
        collect(tmp_path, ["fig99"])
    declared = tmp_path / "experiments" / "demo_under_training-micro.json"
    record = json.loads(declared.read_text())
    declared.with_name("demo_under_training+3b692c-micro.json").write_text(
        json.dumps({**record, "experiment": "demo_under_training+3b692c"})
    )
    declared.unlink()
    with pytest.raises(UserError, match=r"changed settings are named demo_under_training\+3b692c: give that name"):
        collect(tmp_path, ["demo_under_training"])
    (tmp_path / "experiments" / "demo_over_training-micro.json").write_text("{}")
    with pytest.raises(UserError, match=r"demo_over_training-micro\.json cannot be read"):
        collect(tmp_path)


def test_rows_recorded_again_after_a_resume_replace_the_first(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    steps = [(0, 1.0), (10, 2.0), (20, 3.0), (10, 20.0), (30, 40.0)]
    path.write_text("".join(json.dumps({"step": step, "lr": lr}) + "\n" for step, lr in steps))
    assert [(row["step"], row["lr"]) for row in rows_of(read_record(path))] == [(0, 1.0), (10, 20.0), (30, 40.0)]
    path.write_text('{"step": 5, "lr": 1.0}\n{"step": 5, "test/error": null}\n')
    (row,) = rows_of(read_record(path))
    assert row["lr"] == 1.0 and math.isnan(row["test/error"])
    path.write_text("[1]\n")
    with pytest.raises(DamagedRunError, match="line 1"):
        rows_of(read_record(path))


def test_phase_end_middle_and_band_on_small_tables() -> None:
    curves = pd.DataFrame(
        {
            "run_id": ["a"] * 5 + ["b"] * 5,
            "step": [0, 1, 2, 3, 4] * 2,
            "lr": [0.1, None, 0.1, 0.01, None, 0.2, 0.2, 0.2, 0.2, 0.02],
            "error": [9.0, 5.0, None, 2.0, 1.0, 8.0, 7.0, 6.0, 5.0, 4.0],
        }
    )
    assert large_rate_phase_end(curves, "error").to_dict() == {"a": 5.0, "b": 5.0}
    assert mean_between(curves, "error", 0.5, 1.0).to_dict() == {"a": 1.5, "b": 5.0}
    drawn = band(curves, "step", "error")
    assert drawn["mean"].tolist() == [8.5, 6.0, 6.0, 3.5, 2.5]
    assert drawn["std"].tolist() == pytest.approx([math.sqrt(0.5), math.sqrt(2), 0, math.sqrt(4.5), math.sqrt(4.5)])


def test_the_report_side_never_imports_torch_nor_the_training_side() -> None:
    code = (
        "import sys, pkgutil, importlib, weight_decay.report as report\n"
        "for module in pkgutil.iter_modules(report.__path__):\n"
        "    if module.name != 'dashboard': importlib.import_module(f'weight_decay.report.{module.name}')\n"
        "walls = ('torch', 'wandb', 'hydra', 'omegaconf')\n"
        "bad = [name for name in sys.modules if name.split('.')[0] in walls]\n"
        "bad += [name for name in sys.modules if name.startswith('weight_decay.')\n"
        "        and name.split('.')[1] not in ('report', 'errors', 'extras', 'runs', 'config')]\n"
        "print(bad)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _collected_seeds(results: Path, *seeds: int) -> None:
    """Run folders and tables of a results folder that holds both λ at these seeds."""
    cells = [write_run(results, under_training_run(decay, seed)) for decay in (0.0, 0.05) for seed in seeds]
    write_experiment(results, "some", cells, "under_training")
    collect(results)


def _files(results: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((results / "tables").iterdir())}


def test_one_run_folder_does_not_push_the_runs_of_a_table_out(tmp_path: Path) -> None:
    """As in a fresh clone: the table is committed, and the run folder of one cell alone is there."""
    _collected_seeds(tmp_path, 0, 1, 2)
    whole = _files(tmp_path)
    shutil.rmtree(tmp_path / "runs")
    cell = write_run(tmp_path, under_training_run(0.05, 1))
    collected = collect(tmp_path)
    assert _files(tmp_path) == whole
    assert len(collected.kept["some-micro"]) == 5 and cell["run_id"] not in collected.kept["some-micro"]
    assert "drop=yes" in collected.describe() and collected.kept["some-micro"][0] in collected.describe()
    write_experiment(tmp_path, "some", [cell], "under_training")
    collect(tmp_path)
    assert _files(tmp_path) == whole


def test_runs_leave_a_table_only_on_a_yes_and_are_named(tmp_path: Path) -> None:
    _collected_seeds(tmp_path, 0, 1)
    everything = set(tables_of(tmp_path, "some", "micro").summary["run_id"])
    shutil.rmtree(tmp_path / "runs")
    cell = write_run(tmp_path, under_training_run(0.05, 1))
    collected = collect(tmp_path, drop=True)
    assert set(collected.dropped["some-micro"]) == everything - {cell["run_id"]}
    assert tables_of(tmp_path, "some", "micro").summary["run_id"].tolist() == [cell["run_id"]]
    assert set(tables_of(tmp_path, "some", "micro").curves["run_id"]) == {cell["run_id"]}


def test_new_seeds_are_added_and_new_and_old_columns_stand_side_by_side(tmp_path: Path) -> None:
    _collected_seeds(tmp_path, 0)
    shutil.rmtree(tmp_path / "runs")
    run = under_training_run(0.05, 3)
    run.rows = [{name: value for name, value in row.items() if name != "weights/norm"} for row in run.rows]
    run.rows[-1]["noise/scale"] = 0.5
    run.coordinates["model.qk_norm"] = True
    write_experiment(tmp_path, "some", [write_run(tmp_path, run)], "under_training")
    collect(tmp_path)
    summary = tables_of(tmp_path, "some", "micro").summary
    assert summary["seed"].tolist() == [0, 0, 3]
    assert summary["weights/norm"].isna().tolist() == [False, False, True]
    assert summary["noise/scale"].isna().tolist() == [True, True, False]
    assert summary["model.qk_norm"].isna().tolist() == [True, True, False]
    assert len(tables_of(tmp_path, "some", "micro").curves) == 3 * 51


def test_tables_of_other_machines_are_merged_and_a_disagreement_is_named(tmp_path: Path) -> None:
    _collected_seeds(tmp_path / "one", 0, 1)
    _collected_seeds(tmp_path / "two", 1, 2)
    whole = tmp_path / "whole"
    _collected_seeds(whole, 0, 1, 2)
    collected = collect(tmp_path / "one", others=[tmp_path / "two" / "tables"])
    assert not collected.other_numbers
    expected = tables_of(whole, "some", "micro")
    for kind in ("summary", "curves"):
        got = getattr(tables_of(tmp_path / "one", "some", "micro"), kind).sort_values(["run_id"], kind="stable")
        want = getattr(expected, kind).sort_values(["run_id"], kind="stable")
        pd.testing.assert_frame_equal(got.reset_index(drop=True), want.reset_index(drop=True), check_dtype=False)
    fresh = tmp_path / "fresh"
    (fresh / "experiments").mkdir(parents=True)
    collect(fresh, ["some"], others=[tmp_path / "one" / "tables"])
    assert len(tables_of(fresh, "some", "micro").summary) == 6
    other = tmp_path / "two" / "tables" / "some-micro.summary.csv"
    run_id = under_training_run(0.05, 1).run_id
    other.write_text(other.read_text().replace("1.514", "1.999"))
    assert collect(tmp_path / "one", others=[tmp_path / "two" / "tables"]).other_numbers["some-micro"] == [run_id]
    kept = tables_of(tmp_path / "one", "some", "micro").summary.set_index("run_id")
    assert kept.loc[run_id, "val/loss"] == pytest.approx(1.514)


def test_a_run_with_another_id_in_the_same_cell_is_named(tmp_path: Path) -> None:
    _collected_seeds(tmp_path, 0)
    cell = write_run(tmp_path, under_training_run(0.05, 0))
    folder = tmp_path / "runs" / cell["folder"]
    summary = json.loads((folder / "summary.json").read_text())
    old = cell["run_id"]
    (folder / "summary.json").write_text(json.dumps({**summary, "run_id": "f" * 12}))
    write_experiment(tmp_path, "some", [{**cell, "run_id": "f" * 12}], "under_training")
    assert collect(tmp_path).twice == {"some-micro": [old]}


def test_a_table_that_is_none_stops_the_merge_with_a_sentence_and_stays(tmp_path: Path) -> None:
    _collected_seeds(tmp_path, 0)
    path = tmp_path / "tables" / "some-micro.summary.csv"
    path.write_text("<<<<<<< ours\n")
    with pytest.raises(UserError, match=r"some-micro\.summary\.csv cannot be merged .* drop=yes"):
        collect(tmp_path)
    assert path.read_text() == "<<<<<<< ours\n"
    collect(tmp_path, drop=True)
    assert len(tables_of(tmp_path, "some", "micro").summary) == 2


def test_merging_the_committed_tables_with_themselves_changes_no_byte(tmp_path: Path) -> None:
    committed = Path(__file__).resolve().parents[1] / "results" / "tables"
    (tmp_path / "experiments").mkdir()
    collected = collect(tmp_path, others=[committed])
    assert collected.tables
    for path in collected.tables:
        assert path.read_bytes() == (committed / path.name).read_bytes(), path.name


def test_curves_from_before_they_were_compressed_are_merged_and_go(tmp_path: Path) -> None:
    _collected_seeds(tmp_path, 0)
    packed = tmp_path / "tables" / "some-micro.curves.csv.gz"
    before, plain = packed.read_bytes(), packed.with_suffix("")
    plain.write_bytes(gzip.decompress(before))
    packed.unlink()
    assert len(tables_of(tmp_path, "some", "micro").curves) > 0
    collect(tmp_path)
    assert packed.read_bytes() == before and not plain.exists()
