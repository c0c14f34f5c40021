"""Find the learning rate at which each cell of an experiment begins to diverge, by bisection.

    .venv/bin/python scripts/critical_lr.py experiment=backends scale=micro [key=value ...]

Runs are kept as any others under execution.results and are not made again; decay per step, λ·η, stays what the cell
declares. Writes results/tables/EXPERIMENT-SCALE.critical_lr.csv.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

from weight_decay.cli import make_plan
from weight_decay.config.run import folder_name
from weight_decay.errors import UserError
from weight_decay.experiments.critical import at_rate, critical_lr
from weight_decay.experiments.plan import Cell
from weight_decay.runs.files import write_if_changed
from weight_decay.runs.folder import Labels
from weight_decay.training.run import run

FACTOR, BISECTIONS = 2.0, 4


def main(words: list[str]) -> None:
    """Search every cell that the words name and write the table."""
    plan = make_plan(words)[0]
    results = Path(plan.cells[0].config.execution.results)
    names = list(dict.fromkeys(name for cell in plan.cells for name in cell.coordinates))
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow([*names, "critical_lr", "stable", "diverged", "runs"])
    for cell in plan.cells:
        found = critical_lr(lambda rate, cell=cell: _diverges(cell, plan.name, plan.scale, rate),
                            cell.config.optimizer.lr, FACTOR, BISECTIONS)  # fmt: skip
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
