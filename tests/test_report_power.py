"""`weight-decay power` and `verify`: what seeds can see, and whether a verdict stands in fresh runs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from weight_decay.errors import UserError
from weight_decay.report import statistics
from weight_decay.report.claims import declared
from weight_decay.report.commands import COMMANDS
from weight_decay.report.tables.read import tables_of

RATES = {0.0: 1.70, 0.05: 1.68}


FIG06 = "fig06_language_model"


def write(
    results: Path, seeds: int, gain: float = 0.0, spread: float = 0.001, first: int = 0, name: str = FIG06
) -> Path:
    """Tables of `name` at micro: λ = .05 ends `gain` lower, give or take `spread` from seed to seed."""
    summary, curves = [], []
    for seed in range(first, first + seeds):
        for decay in (0.0, 0.05):
            run = f"{name}-{seed}-{decay}"
            shift = (gain + spread * (-1) ** seed) if decay else 0.0
            row = {"run_id": run, "experiment": name, "scale": "micro", "data": "made up"}
            row |= {"seed": seed, "decay.strength": decay, "branch": "main", "git_commit": "c0ffee"}
            summary.append({**row, "status": "completed", "seconds": 1800.0, "start_step": 0, "val/loss": 1.7 - shift})
            curves += [{**row, "step": step, "batch/loss": 1.7 - shift} for step in (0, 50, 96, 100)]
    (results / "tables").mkdir(parents=True, exist_ok=True)
    for kind, rows in (("summary", summary), ("curves", curves)):
        pd.DataFrame(rows).to_csv(results / "tables" / f"{name}-micro.{kind}.csv", index=False)
    return results


def test_power_is_that_of_the_noncentral_t_at_the_planned_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(declared, "_declared", lambda *_: frozenset())  # the third λ is left out here
    write(tmp_path, 4, gain=0.02, spread=0.003)
    write(tmp_path, 2, name="fig22_sgd_momentum")
    assert COMMANDS["power"]([f"results={tmp_path}"]) == 0
    text = capsys.readouterr().out
    assert "2.00 core-hours a seed, 20.0 for all" in text  # an hour of a seed in both, of four and of two
    line = next(line for line in text.splitlines() if line.startswith("lower_end "))
    deviation = statistics.paired_interval([0.023, 0.017, 0.023, 0.017]).deviation
    assert f"{statistics.detectable(deviation, 10, 0.04):.3f} [" in line
    assert line.endswith("10.00")  # two runs of half an hour, ten seeds
    with pytest.raises(UserError, match="seeds must be a number"):
        COMMANDS["power"](["seeds=1", f"results={tmp_path}"])


def test_a_verdict_stands_or_falls_with_fresh_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(declared, "_declared", lambda *_: frozenset())  # the third λ is left out here
    old = write(tmp_path / "old", 10, gain=0.02)
    assert COMMANDS["verify"](["lower_end", f"results={old}"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "fig06_language_model 1000..1009"
    same = write(tmp_path / "same", 10, gain=0.018, first=1000)
    assert COMMANDS["verify"](["lower_end", f"results={old}", f"fresh={same}"]) == 0
    assert "The verdict stands" in capsys.readouterr().out
    other = write(tmp_path / "other", 10, gain=-0.02, first=1000)
    assert COMMANDS["verify"](["lower_end", f"results={old}", f"fresh={other}"]) == 1
    assert "does not stand" in capsys.readouterr().out
    with pytest.raises(UserError, match="name one claim"):
        COMMANDS["verify"](["lower", f"results={old}"])
    with pytest.raises(UserError, match=r"20 of the runs .* are those that the verdict rests on"):
        COMMANDS["verify"](["lower_end", f"results={old}", f"fresh={old}"])
    with pytest.raises(UserError, match="no fresh run"):
        COMMANDS["verify"](["lower_end", f"results={old}", f"fresh={tmp_path / 'none'}"])


def test_a_table_under_another_name_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 2)
    tables = tmp_path / "tables"
    for kind in ("summary", "curves"):
        shutil.copy(tables / f"{FIG06}-micro.{kind}.csv", tables / f"fig06_language_model-paper.{kind}.csv")
        shutil.copy(tables / f"{FIG06}-micro.{kind}.csv", tables / f"constant_lr-micro.{kind}.csv")
    with pytest.raises(UserError, match="holds rows of the scale micro: it was renamed or copied"):
        tables_of(tmp_path, "fig06_language_model", "paper")
    with pytest.raises(UserError, match="holds rows of the experiment fig06_language_model"):
        tables_of(tmp_path, "constant_lr", "micro")


def test_the_claims_are_judged_without_loading_torch_or_matplotlib() -> None:
    """Each would cost as much as all of the judging."""
    code = "import sys, weight_decay.report.claims.table as _, weight_decay.report.claims.measures as _; "
    done = subprocess.run([sys.executable, "-c", f"{code}sys.exit(bool({{'torch', 'matplotlib'}} & set(sys.modules)))"])
    assert done.returncode == 0
