"""The Makefile repeats nothing that is written elsewhere, and tells of every target."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from weight_decay.errors import UserError
from weight_decay.experiments.catalog import experiments
from weight_decay.experiments.help import list_experiments
from weight_decay.report.figures.paper import OVER_TRAINING, UNDER_TRAINING

ROOT = Path(__file__).resolve().parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = [name for line in re.findall(r"^([a-z][a-z0-9% -]*):(?!=)", MAKEFILE, re.MULTILINE) for name in line.split()]


pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def make(*words: str) -> str:
    line = ["make", "--no-print-directory", *words]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_no_experiment_is_named_and_every_target_has_its_line_of_help() -> None:
    assert not [name for name in experiments() if name in MAKEFILE and not name.startswith("demo_")]
    told = make("help")
    for target in TARGETS:
        assert target.replace("%", "REGIME") in re.findall(r"[\w-]+", told), target
    assert len(TARGETS) == len(set(TARGETS)) > 20


@pytest.mark.parametrize("target", [name for name in TARGETS if "%" not in name] + ["reproduce-over-training"])
def test_every_target_can_be_made(target: str) -> None:
    assert make("-n", target, "EXP=fig03", "FROM=x", "CLAIM=x", "ENTITY=x")


@pytest.mark.parametrize(("regime", "drawn"), [("over-training", OVER_TRAINING), ("under-training", UNDER_TRAINING)])
def test_what_is_reproduced_is_what_has_figures(
    regime: str, drawn: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert list_experiments([regime, "reproduce"]) == 0
    names = capsys.readouterr().out.split()
    assert set(names) == set(drawn)
    assert names[0][:5] == min(name[:5] for name in names if name.startswith("fig"))
    with pytest.raises(UserError, match="perhaps the word reproduce"):
        list_experiments([regime, "all"])
