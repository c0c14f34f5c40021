"""The critical learning rate by bisection."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import forked
from weight_decay.config.run import RunConfig
from weight_decay.errors import UserError

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "critical_lr.py"
sys.path.insert(0, str(SCRIPT.parent))
from critical_lr import at_rate, critical_lr  # noqa: E402


@pytest.mark.parametrize("start", [0.01, 0.1, 3.0])
def test_the_bracket_closes_around_the_rate(start: float) -> None:
    asked: list[float] = []

    def diverges(rate: float) -> bool:
        asked.append(rate)
        return rate > 0.137

    found = critical_lr(diverges, start, 2.0, 4)
    assert found.stable <= 0.137 < found.diverged
    assert found.diverged / found.stable == pytest.approx(2 ** (1 / 16), rel=1e-3)
    assert found.runs == len(asked) == len(set(asked)) and found.stable < found.lr < found.diverged


def test_an_open_bracket_is_said_and_not_guessed() -> None:
    nothing, everything = critical_lr(lambda _: False, 1.0, 2.0, 4), critical_lr(lambda _: True, 1.0, 2.0, 4)
    assert (nothing.stable, nothing.diverged, everything.stable) == (64, math.inf, 0)
    assert everything.diverged == pytest.approx(1 / 64, rel=1e-3)
    assert math.isnan(nothing.lr) and math.isnan(everything.lr)
    with pytest.raises(UserError, match="factor 1"):
        critical_lr(lambda _: True, 1.0, 1.0, 4)


def test_another_rate_keeps_the_decay_per_step(tiny: Callable[..., RunConfig]) -> None:
    config = tiny("text")
    moved = at_rate(config, 0.04)
    assert moved.optimizer.lr * moved.decay.strength == pytest.approx(config.optimizer.lr * config.decay.strength)


def test_the_script_writes_a_table(words: Callable[[str], list[str]], tmp_path: Path) -> None:
    given = words("text", "duration='4 steps' divergence.patience='1 step' probes.evaluate_every='4 steps'")
    done = forked.run([str(SCRIPT), *given])
    assert done.returncode == 0, done.stderr
    (table,) = (tmp_path / "results" / "tables").glob("*.critical_lr.csv")
    (row,) = csv.DictReader(table.open())
    assert float(row["stable"]) > 0 and int(row["runs"]) >= 1
    refused = forked.run([str(SCRIPT), "scale=none"])
    assert refused.returncode == 2 and refused.stderr.startswith("critical_lr: ")
