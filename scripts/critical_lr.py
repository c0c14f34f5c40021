"""Find the learning rate at which each cell of an experiment begins to diverge, by bisection.

    .venv/bin/python scripts/critical_lr.py experiment=backends scale=micro [key=value ...]

Runs are kept as any others under execution.results and are not made again; decay per step, λ·η, stays what the cell
declares. Writes results/tables/EXPERIMENT-SCALE.critical_lr.csv.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from weight_decay.cli import make_plan
from weight_decay.config.run import RunConfig, folder_name
from weight_decay.errors import UserError
from weight_decay.experiments.plan import Cell
from weight_decay.runs.files import write_if_changed
from weight_decay.runs.folder import Labels
from weight_decay.training.run import run

FACTOR, BISECTIONS = 2.0, 4


@dataclass(frozen=True)
class Critical:
    """The bracket: `stable` completed (0: no rate did), `diverged` did so (infinite: no rate did)."""

    stable: float
    diverged: float
    runs: int

    @property
    def lr(self) -> float:
        """The geometric middle of the bracket; NaN if it is open."""
        return math.sqrt(self.stable * self.diverged) if self.stable > 0 and math.isfinite(self.diverged) else math.nan


def at_rate(config: RunConfig, lr: float) -> RunConfig:
    """The same cell at another peak learning rate; the decay per step, λ·η, stays what it was.

    Otherwise the rate that diverges would also be a measurement of stronger decay.
    """
    strength = config.decay.strength * config.optimizer.lr / lr
    return dataclasses.replace(
        config,
        optimizer=dataclasses.replace(config.optimizer, lr=lr),
        decay=dataclasses.replace(config.decay, strength=float(f"{strength:.6g}")),
    )


def critical_lr(diverges: Callable[[float], bool], start: float, factor: float, bisections: int) -> Critical:
    """Bracket the critical rate from `start` in steps of `factor`, then halve the bracket `bisections` times.

    Halves are of the logarithm. Rates are rounded to four digits, so that an interrupted search meets the same runs
    again. At most six steps are made in search of a bracket. UserError for a start or factor that brackets nothing.
    """
    if not (factor > 1 and bisections >= 0 and start > 0):
        raise UserError(
            f"critical_lr: start {start}, factor {factor} and bisections {bisections} must be above 0, 1, -1."
        )
    stable, diverged, runs, rate = 0.0, math.inf, 0, start
    while runs < 7 and not (stable > 0 and math.isfinite(diverged)):
        runs += 1
        if diverges(rate):
            diverged = rate
        else:
            stable = rate
        rate = _four(diverged / factor if math.isfinite(diverged) else stable * factor)
    if stable > 0 and math.isfinite(diverged):
        for _ in range(bisections):
            middle, runs = _four(math.sqrt(stable * diverged)), runs + 1
            stable, diverged = (stable, middle) if diverges(middle) else (middle, diverged)
    return Critical(stable, diverged, runs)


def _four(value: float) -> float:
    return float(f"{value:.4g}")


def main(words: list[str]) -> None:
    """Search every cell that the words name and write the table."""
    plan = make_plan(words)[0]
    results = Path(plan.cells[0].config.execution.results)
    names = list(dict.fromkeys(name for cell in plan.cells for name in cell.coordinates))
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow([*names, "critical_lr", "stable", "diverged", "runs"])
    for cell in plan.cells:
        diverges = functools.partial(_diverges, cell, plan.name, plan.scale)
        found = critical_lr(diverges, cell.config.optimizer.lr, FACTOR, BISECTIONS)
        print(f"{cell.title}: critical lr {found.lr:.3g} ({found.stable:g} completes, {found.diverged:g} diverges)")
        values = [cell.coordinates.get(name, "") for name in names]
        writer.writerow([*values, f"{found.lr:.4g}", found.stable, found.diverged, found.runs])
    (results / "tables").mkdir(parents=True, exist_ok=True)
    write_if_changed(results / "tables" / f"{plan.name}-{plan.scale}.critical_lr.csv", table.getvalue().encode())


def _diverges(cell: Cell, experiment: str, scale: str, rate: float) -> bool:
    config = at_rate(cell.config, rate)
    run(config, Labels(experiment, scale, f"{cell.title} lr={rate:g}"))
    summary = Path(config.execution.results) / "runs" / folder_name(config) / "summary.json"
    status = json.loads(summary.read_text())["status"]
    if status not in ("completed", "diverged"):
        raise UserError(f"critical_lr: the run at lr={rate:g} of {cell.title} {status}; start the search again.")
    return bool(status == "diverged")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"critical_lr: {error}", file=sys.stderr)
        raise SystemExit(2) from None
