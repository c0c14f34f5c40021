"""`data.root` is the folder of all data sets; what is missing is found once, before any cell starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import forked
from conftest import exit_code
from text_helpers import load_tokens
from weight_decay.cli import make_plan
from weight_decay.config.plain import to_dict
from weight_decay.config.registry import DATA
from weight_decay.config.run import RunConfig, run_id
from weight_decay.data.where import how_to_make, is_there, require_data
from weight_decay.errors import UserError
from weight_decay.experiments.catalog import groups
from weight_decay.experiments.dry_run import describe
from weight_decay.experiments.sweep import prepare, run_cells

MODEL = {"over_training": ["model=resnet18_micro"], "under_training": ["model=gpt_micro", "probes=language"]}
SCRIPT = Path(__file__).parents[1] / "scripts" / "prepare_text.py"


def test_every_data_set_is_made_on_the_spot_or_has_a_home() -> None:
    made = {kind for kind in DATA.names() if DATA[kind].home is None}
    assert made == {"procedural", "python_text", "synthetic_text"}
    assert set(groups()["data"]) - {"text_bytes"} == set(DATA.names())


@pytest.mark.parametrize("kind", [kind for kind in DATA.names() if DATA[kind].home is not None])
def test_absent_data_are_named_with_the_command_that_makes_them(kind: str, tmp_path: Path) -> None:
    data = make_plan([f"data={kind}", f"data.root={tmp_path}", *MODEL[DATA[kind].regime]])[0].cells[0].config.data
    assert not is_there(data)
    with pytest.raises(
        UserError, match=r"data\.root: .* is not in .*; make it with `[^`]+`, or set data\.root"
    ) as caught:
        require_data(data)
    assert "\n" not in str(caught.value) and "{" not in str(caught.value)


def test_a_sweep_without_its_data_starts_no_cell_and_says_so_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["experiment=fig02_real_images", "scale=micro", f"data.root={tmp_path}", "jobs=2", "tracking=disabled"]
    assert exit_code([*words, f"execution.results={tmp_path / 'results'}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Fashion-MNIST" in said and "download=True" in said
    assert not (tmp_path / "results").exists()


def test_data_that_went_away_are_missed_before_the_run_starts(
    words: Callable[[str, str], list[str]], tmp_path: Path
) -> None:
    root = tmp_path / "data"
    (root / "nanogpt").mkdir(parents=True)
    for split in ("train", "val"):
        (np.arange(4000) % 50).astype("<u2").tofile(root / "nanogpt" / f"{split}.bin")
    plan = make_plan(words("text", f"data=nanogpt data.context=16 data.evaluation_windows=8 data.root={root}"))[0]
    prepare(plan, "refuse")
    (root / "nanogpt").rename(root / "elsewhere")
    with pytest.raises(UserError, match=r"train\.bin and val\.bin \(nanogpt\) is not in"):
        prepare(plan, "refuse")


@pytest.mark.parametrize("kind", ["text", "nanogpt"])
def test_the_folder_itself_as_root_is_answered_with_the_right_settings(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / ("train.bin" if kind == "nanogpt" else "manifest.json")).write_text("{}")
    with pytest.raises(UserError, match=rf"set data\.root={tmp_path} data\.name=mine"):
        load_tokens(kind, "train", folder)


def test_the_dry_run_says_whether_the_data_are_there(tmp_path: Path) -> None:
    plan = make_plan(["experiment=fig02_real_images", "scale=micro", f"data.root={tmp_path}"])[0]
    assert "not there, make it with `python -c" in describe(plan)
    (tmp_path / "FashionMNIST" / "raw").mkdir(parents=True)
    (tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte.gz").write_bytes(b"")
    assert describe(plan).splitlines()[-1].endswith(": there")


@pytest.mark.parametrize("name", ["/etc", "../up", "a/../../b"])
def test_a_name_stays_below_the_root(name: str, tiny: Callable[[str, str], RunConfig]) -> None:
    with pytest.raises(UserError, match=r"data\.name: must be a folder below data\.root"):
        tiny("text", f"data=text data.name={name}")
    with pytest.raises(UserError, match=r"data\.name: cifar10 data have a folder of their own"):
        tiny("vision", "data=cifar10 data.name=mine")


def test_a_name_is_part_of_what_a_run_is_and_none_leaves_old_runs_alone(tiny: Callable[[str, str], RunConfig]) -> None:
    plain, named = tiny("text", "data=text"), tiny("text", "data=text data.name=mine")
    assert run_id(plain) != run_id(named)
    assert "name" not in to_dict(plain, identity_only=True)["data"]


def test_a_byte_text_of_ones_own_trains_with_one_choice(words: Callable[[str, str], list[str]], tmp_path: Path) -> None:
    source = tmp_path / "mine.txt"
    source.write_text("".join(f"line {number}: the quick brown fox\n" for number in range(60_000)))
    target = tmp_path / "data" / "fox"
    command = [str(SCRIPT), "--from", str(source), "--target", str(target), "--encoding", "bytes"]
    more = ["--workers", "1", "--validation-fraction", "0.3"]
    done = forked.run([*command, *more])
    assert done.returncode == 0, done.stderr
    # The script ends with the command that trains on what it made, complete.
    assert f"data=text_bytes data.root={tmp_path / 'data'} data.name=fox" in done.stdout
    shown = done.stdout.rsplit("weight-decay ", 1)[1].split()
    assert make_plan(shown)[0].cells[0].config.data.vocabulary == 257  # type: ignore[union-attr]
    settings = f"data=text_bytes data.root={tmp_path / 'data'} data.name=fox data.context=16 data.evaluation_windows=8"
    assert run_cells(make_plan(words("text", settings))[0], 1, "refuse") == 0


@pytest.mark.parametrize("data", ["text", "text_bytes", "nanogpt", "python_text", "openwebtext"])
def test_a_text_brings_what_fits_it(data: str) -> None:
    (cell,) = make_plan([f"data={data}", "duration=20 steps"])[0].cells
    run = cell.config
    assert (run.model.kind, run.optimizer.kind, run.schedule.kind) == ("gpt", "adamw", "warmup_cosine")
    assert run.probes.jacobian_every is None and run.batch_size == 32  # type: ignore[union-attr]
    assert run.decay.rules[0].match == "norm"


@pytest.mark.parametrize("data", ["image_folder", "npz", "procedural"])
def test_images_bring_what_fits_them(data: str) -> None:
    (cell,) = make_plan([f"data={data}"])[0].cells
    assert (cell.config.model.kind, cell.config.optimizer.kind) == ("resnet", "sgd")


def test_what_is_chosen_wins_over_what_the_data_bring() -> None:
    words = ["data=python_text", "optimizer=sgd", "schedule=constant", "batch_size=4", "model.width=16"]
    run = make_plan(words)[0].cells[0].config
    assert (run.optimizer.kind, run.schedule.kind, run.batch_size, run.model.width) == ("sgd", "constant", 4, 16)  # type: ignore[attr-defined]


def test_an_experiment_takes_nothing_from_its_data() -> None:
    run = make_plan(["experiment=demo_under_training", "scale=micro", "data=text_bytes"])[0].cells[0].config
    assert (run.batch_size, str(run.schedule.warmup)) == (8, "3%")  # type: ignore[union-attr]
    with pytest.raises(UserError, match="needs a model for text, got resnet"):
        make_plan(["experiment=demo_over_training", "scale=micro", "data=text_bytes"])


def test_a_run_on_a_text_needs_no_other_word(tmp_path: Path) -> None:
    words = ["data=synthetic_text", "data.train_tokens=20000", "data.evaluation_windows=8", f"data.root={tmp_path}"]
    words += ["model.width=16", "batch_size=4", "duration=40 steps", "probes.evaluation_train_samples=8"]
    words += [f"execution.results={tmp_path}", "tracking=disabled", "execution.progress=false"]
    assert run_cells(make_plan(words)[0], 1, "refuse") == 0


def test_a_text_wanted_as_bytes_is_made_as_bytes() -> None:
    told = [how_to_make(make_plan([f"data={name}"])[0].cells[0].config.data) for name in ("text", "text_bytes")]
    assert told == ["make data-text FROM=PATH NAME=text", "make data-text FROM=PATH NAME=text ENCODING=bytes"]
