"""What a Hydra user types, and what is refused before it can hang."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from weight_decay.cli import main, make_plan
from weight_decay.errors import UserError
from weight_decay.experiments.launch.plans import plans_of
from weight_decay.experiments.yaml_file import read_yaml


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["status", "--help"], ["experiments", "over_training"]])
def test_light_commands_load_neither_torch_nor_hydra(words: list[str]) -> None:
    code = (
        "import sys\nfrom weight_decay.cli import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit as left:\n    assert not left.code\n"
        "assert not {'torch', 'hydra'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["seed=range(0,1,0)"], "has no end"),
        (["seed=range(0,1000000000)"], "more than"),
        (["seed=glob(*)"], "glob.. is for config groups"),
        (["optimizer=glob(no*)"], "no such values"),
        (["execution.threads=1,2"], "makes no other run"),
        (["~decay"], "cannot be|not added or removed"),
        (["optimizer.lr=interval(0.1,0.2)"], "hydra/sweeper=optuna"),
        (["seed=" + "[" * 1000], "cannot be read"),
    ],
)
def test_sweeps_that_cannot_be_meant_are_one_sentence(words: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        plans_of(words)


def test_a_glob_over_a_group_is_its_options() -> None:
    plans = plans_of(["optimizer=glob(sgd*)"])
    assert [plan.cells[0].coordinates["optimizer"] for _, plan, _ in plans] == ["sgd", "sgd_momentum"]


def test_a_bomb_of_aliases_and_a_number_of_base_sixty_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "bomb.yaml"
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
    file.write_text("\n".join(lines))
    with pytest.raises(UserError, match="aliases written out"):
        read_yaml(file)
    file.write_text("batch_size: 1:30\n")
    with pytest.raises(UserError, match=r"line 1: .*base 60"):
        read_yaml(file)


def test_the_config_of_a_cell_as_hydra_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--cfg", "job", "optimizer.lr=0.125", "-p", "optimizer"])
    assert left.value.code == 0 and "lr: 0.125" in capsys.readouterr().out


def test_force_add_is_what_it_says_in_hydra() -> None:
    assert make_plan(["++optimizer.lr=0.125"])[0].cells[0].config.optimizer.lr == 0.125


def test_shell_completion_is_hydras() -> None:
    environment = {**os.environ, "COMP_LINE": "weight-decay optimizer=s", "COMP_POINT": "24"}
    line = [sys.executable, "-m", "weight_decay", "-sc", "query=bash"]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert "optimizer=sgd" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "word", ["hydra.sweeper=1", "hydra.launcher=1", "hydra/sweeper=1", "hydra/launcher=1", "hydra.verbose={}"]
)
def test_a_number_where_hydra_wants_a_name_is_one_sentence(
    word: str, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["-m", word, "tracking=disabled"])
    assert left.value.code == 2
    assert capfd.readouterr().err.splitlines()[-1].startswith(f"weight-decay: {word}: ")


@pytest.mark.parametrize("name", ["1", "1e5", "true", "[a]", "a=b"])
def test_an_option_whose_name_yaml_takes_for_something_else_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "decay").mkdir()
    (tmp_path / "decay" / f"{name}.yaml").write_text("kind: l1\nstrength: 0.1\n")
    monkeypatch.setenv("WEIGHT_DECAY_OWN_CONFIGS", str(tmp_path))
    with pytest.raises(UserError, match="has a name that would be read as a number or a list"):
        make_plan([f"decay='{name}'"])
