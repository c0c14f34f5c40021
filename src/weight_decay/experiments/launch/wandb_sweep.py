"""An experiment as a sweep of W&B agents: its cells, one for each run that an agent starts."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from weight_decay.errors import UserError
from weight_decay.experiments.launch.plans import make_plan

OUTCOME = {"over_training": "ema/test/error", "under_training": "ema/val/loss"}
"""What W&B sorts the runs of a regime by; a grid is tried whole, whatever comes out."""


def sweep_yaml(words: Sequence[str]) -> str:
    """The file for `wandb sweep`: a grid over the numbers of the cells that the settings ask for.

    The cells and not their settings are what an agent is given, so that each run is the one that `weight-decay
    experiment=NAME` makes, under the same id, and is skipped where it is finished.

    Raises UserError without an experiment, and for settings that no run could be made of.
    """
    plan, _ = make_plan(words)
    if plan.experiment == "single":
        raise UserError("wandb-sweep: say which experiment: experiment=NAME (`weight-decay --info` lists them).")
    config = plan.cells[0].config
    own = [f"--config-dir={plan.config_dir}"] if plan.config_dir else []
    said = [word for word in words if not word.startswith(("cell=", "tracking=", "jobs="))]
    content = {
        "name": f"{plan.name} at {plan.scale}",
        "description": plan.title,
        "project": config.tracking.project,
        "program": "weight-decay",
        "command": ["${program}", *own, *said, "tracking=online", "${args_no_hyphens}"],
        "method": "grid",
        "metric": {"name": OUTCOME[config.data.regime], "goal": "minimize"},
        "parameters": {"cell": {"values": [cell.index for cell in plan.cells]}},
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
