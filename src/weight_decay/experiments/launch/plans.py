"""From settings to a plan: the cells of an experiment, each a validated run.

Hydra composes the groups, the setting and the experiment; over that the values of the grid's point are laid, and last
what the user typed, which always wins.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from weight_decay.config.execution import is_execution_setting
from weight_decay.config.registry import DATA
from weight_decay.config.run import RunConfig, build, run_id
from weight_decay.errors import UserError
from weight_decay.experiments.catalog import OWN_CONFIGS, declared, groups, read_option
from weight_decay.experiments.declared import Declared
from weight_decay.experiments.launch.compose import assign, composed, grid_of, options_of, resolved
from weight_decay.experiments.launch.words import choices_and_values, combinations
from weight_decay.experiments.plan import Cell, Plan, expand, read_seeds, with_seeds
from weight_decay.experiments.steering import COMMAND_KEYS, DECLARED_KEYS, Steering
from weight_decay.runs.read import is_coordinate

WHICH = ("scale", "experiment")
"""The groups that say which cells, not what is in them."""


def make_plan(words: Sequence[str]) -> tuple[Plan, Steering]:
    """Turn `key=value` words into a validated plan and what steers the command.

    Raises UserError, with one sentence, on anything that no run could be made of.
    """
    chosen, values = choices_and_values(words)
    for key in values:
        if key.partition(".")[0] in DECLARED_KEYS:
            raise UserError(f"{key}: belongs into the file of an experiment; docs/own-experiment.md shows one.")
    what, base = experiment_of(chosen)
    typed = {group: option for group, option in chosen.items() if group not in WHICH}
    head = composed(base)
    steering = {key: values.pop(key) if key in values else head[key] for key in COMMAND_KEYS if key not in WHICH}
    # What the experiment would choose anyway changes nothing, also when it is typed.
    own = options_of(base) if what is not None and typed else {}
    overrides = tuple(
        plain
        for word in words
        if (key := (plain := word.removeprefix("++")).partition("=")[0]) not in COMMAND_KEYS
        and not (key in typed and own.get(key) == typed[key])
    )
    seeds = read_seeds(steering["seeds"])
    if seeds is not None and "seed" in values:
        raise UserError(f"seeds: seed={values['seed']} was typed too, which would win; give one of the two.")
    # The grid may refer to lists of a setting, which another setting would bring along.
    grid = grid_of({**base, **typed} if "setting" in typed else base)
    points = expand(with_seeds(grid, seeds), {**typed, **values})
    # Other seeds than the experiment's own add to it: its record, and so its tables, keep all of them.
    others = [] if seeds is None else expand(grid, {**typed, **values})
    cells: list[Cell] = []
    asked: set[str] = set()
    for point in [*points, *others]:
        run = _run(base, point, typed, values)
        if what is not None:
            _check_regime(what, run)
        identity = run_id(run)
        if len(cells) < len(points):
            asked.add(identity)
        elif identity in asked:  # one of the experiment's own seeds was asked for
            continue
        cells.append(Cell(len(cells), run, {key: value for key, value in point.items() if is_coordinate(key, value)}))
    everything = _distinct(cells, collapsing=any(not is_execution_setting(key) for key in (*typed, *values)))
    now = tuple(cell for cell in everything if run_id(cell.config) in asked)
    name, title, figure = (what.name, what.title, what.figure) if what else ("single", "A single run", None)
    scale, mine = head["scale"]["name"], os.environ.get(OWN_CONFIGS) or None
    plan = Plan(name, scale, title, figure, overrides, now, everything, mine)
    return _select(plan, steering["cell"]), Steering.read(steering)


def experiment_of(chosen: Mapping[str, str]) -> tuple[Declared | None, dict[str, str]]:
    """The chosen experiment, if any, and the choices that Hydra composes before anything else was typed.

    Without an experiment these are what was typed, and the regime of its data, which brings what was not chosen.
    """
    name = chosen.get("experiment", "none")
    if name == "none":
        alone = {group: option for group, option in chosen.items() if group != "experiment"}
        brought = {"regime": _regime(chosen["data"])} if "data" in chosen and "setting" not in chosen else {}
        return None, {**brought, **alone}
    what = declared(name)
    scale = chosen.get("scale") or next(iter(what.files))
    option = what.option(scale)
    what.check(scale)
    return what, {"experiment": option, "scale": scale}


def plans_of(words: Sequence[str]) -> list[tuple[list[str], Plan, Steering]]:
    """One plan, with its words, for each combination of what is swept; every one is validated before anything runs."""
    plans = []
    for combined, swept in combinations(words):
        plan, steering = make_plan(combined)
        if plan.experiment == "single":
            cell = dataclasses.replace(plan.cells[0], coordinates=_swept(swept, combined))
            plan = dataclasses.replace(plan, cells=(cell,), all_cells=(cell,))
        plans.append((combined, plan, steering))
    return plans


def unions(plans: Sequence[Plan], words: Sequence[str]) -> list[Plan]:
    """All plans of the same experiment and scale as one: what a multirun is recorded as."""
    told = tuple(word for word in words if word.partition("=")[0] not in COMMAND_KEYS)
    together = []
    for which in dict.fromkeys((plan.experiment, plan.scale) for plan in plans):
        alike = [plan for plan in plans if (plan.experiment, plan.scale) == which]
        if len(alike) == 1:
            together.append(alike[0])
            continue
        seen: dict[str, int] = {}
        for number, plan in enumerate(alike):
            for cell in plan.cells:
                if seen.setdefault(run_id(cell.config), number) != number:
                    raise UserError(f"-m: two of the combinations are the same run, {_name(cell)}; leave one out.")
        everything = {run_id(cell.config): cell for plan in alike for cell in plan.all_cells}
        all_cells = {
            name: dataclasses.replace(cell, index=index) for index, (name, cell) in enumerate(everything.items())
        }
        cells = tuple(all_cells[name] for name in all_cells if name in seen)
        # Without sweeps over the run's own settings they are the cells of one declared experiment.
        overrides = told if len({plan.overrides for plan in alike}) > 1 else alike[0].overrides
        together.append(
            dataclasses.replace(alike[0], cells=cells, all_cells=tuple(all_cells.values()), overrides=overrides)
        )
    return together


def _run(
    base: Mapping[str, str], point: Mapping[str, Any], typed: Mapping[str, str], values: Mapping[str, Any]
) -> RunConfig:
    choices = {key: str(value) for key, value in point.items() if key in groups()}
    config = composed({**base, **choices, **typed})
    for key, value in ({key: value for key, value in point.items() if key not in choices} | dict(values)).items():
        assign(config, key, value)
    config = resolved(config)
    return build({key: value for key, value in config.items() if key not in COMMAND_KEYS | DECLARED_KEYS})


def _regime(data: str) -> str:
    """The regime of a data set, which its kind says."""
    kind = str(read_option("data", data).get("kind"))
    return DATA[kind].regime if kind in DATA.names() else "over_training"  # what the kind must be is said later


def _swept(swept: Mapping[str, str], words: Sequence[str]) -> dict[str, Any]:
    chosen, values = choices_and_values([word for word in words if word.partition("=")[0] in swept])
    return {key: value for key, value in {**chosen, **values}.items() if is_coordinate(key, value)}


def _check_regime(file: Declared, run: RunConfig) -> None:
    if file.regime != run.data.regime:
        raise UserError(
            f"experiment: {file.name} is declared for {file.regime}, but its {run.data.kind} data with the model "
            f"{run.model.kind} are of {run.data.regime}; choose data and model of its regime, or correct the file."
        )


def _distinct(cells: Iterable[Cell], collapsing: bool) -> tuple[Cell, ...]:
    """The cells, numbered anew without those that are another one's run.

    That may be so because the user has set what told them apart (`collapsing`); a file that says the same run twice
    would give one number to two rows, and is refused.
    """
    first: dict[str, Cell] = {}
    for cell in cells:
        same = first.setdefault(run_id(cell.config), cell)
        if same is not cell and not collapsing:
            raise UserError(
                f"experiment: its cells {same.index} ({_name(same)}) and {cell.index} ({_name(cell)}) are the same "
                "run; leave one of them out of the grid."
            )
    return tuple(dataclasses.replace(cell, index=index) for index, cell in enumerate(first.values()))


def _name(cell: Cell) -> str:
    return cell.title or run_id(cell.config)


def _select(plan: Plan, cell: Any) -> Plan:
    if cell is None:
        return plan
    indices = cell if isinstance(cell, list) else [cell]
    if not indices or any(isinstance(index, bool) or not isinstance(index, int) for index in indices):
        raise UserError(f"cell: must be a number or a list of numbers such as [0,2], got {cell!r}.")
    if len(set(indices)) < len(indices):
        raise UserError(f"cell: the same cell is listed twice in {indices}.")
    return plan.only(indices)
