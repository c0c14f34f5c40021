"""What a command would do: its cells with their exact settings, and what each would cost, without doing it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from weight_decay.config.identity import folder_name, to_dict
from weight_decay.config.run import RunConfig
from weight_decay.config.text import TokenData
from weight_decay.data.where import folder_of, how_to_make, is_there
from weight_decay.experiments.cost import Cost, estimate, forward_operations
from weight_decay.experiments.plan import Plan
from weight_decay.experiments.throughput import Assumptions, Throughput, take_assumptions
from weight_decay.training.build import check

__all__ = ["describe", "take_assumptions"]

COST_PARTS = ("training", "evaluation", "probes")


def describe(plan: Plan, assumed: Assumptions = Assumptions()) -> str:  # noqa: B008 (frozen)
    """Text: the settings that all cells share, then one line for each cell with what is its own."""
    for cell in plan.cells:
        check(cell.config)
    flat = [_flat(to_dict(cell.config)) for cell in plan.cells]
    shared = {key: value for key, value in flat[0].items() if all(other.get(key) == value for other in flat)}
    lines = [
        f"{plan.experiment} at scale {plan.scale}: {plan.title}",
        f"figure {plan.figure}, {len(plan.cells)} cell(s), command: {plan.command}",
        "",
        "settings of all cells",
        *(f"  {key} = {value}" for key, value in shared.items()),
        "",
        "cells",
    ]
    first = plan.cells[0].config
    throughput = assumed.throughput(plan.scale, first, Path(first.execution.results))
    costs = [estimate(cell.config) for cell in plan.cells]
    for cell, cost in zip(plan.cells, costs, strict=True):
        hours = "" if cost is None else f"  about {cost.hours(throughput):.2g} {throughput.unit}"
        lines.append(f"  {cell.index:4d}  {cell.title or 'the only one'}{hours}  -> {folder_name(cell.config)}")
        # Where there is no GPU, `check` cannot know that the cell is meant for one.
        if plan.scale != "micro" and (problem := cell.config.model.impossible_on("cuda", cell.config.precision)):
            lines.append(f"        refused on a GPU: {problem}")
    return "\n".join(
        [
            *lines,
            "",
            *_cost_lines(costs, throughput),
            *_tokens(plan, costs),
            f"data: {_data_needed(plan.cells[0].config)}",
        ]
    )


def _cost_lines(costs: list[Cost | None], throughput: Throughput) -> list[str]:
    known = [cost for cost in costs if cost is not None]
    if len(known) < len(costs):
        return ["cost: not known before the data are prepared (it depends on how much there is)"]
    total = sum(cost.hours(throughput) for cost in known)
    shares = [sum(values) for values in zip(*(cost.seconds(throughput) for cost in known), strict=True)]
    parts = [f"{100 * share / sum(shares):.0f} % {name}" for share, name in zip(shares, COST_PARTS, strict=True)]
    return [
        f"cost: about {total:.3g} {throughput.unit} ({', '.join(parts)})",
        f"  {throughput.source}: {throughput.operations / 1e12:g} tera-operations a second, and "
        f"{1000 * throughput.step:g} ms a step at least, sustained on {throughput.device}; counted on the model's "
        "shapes, without data loading",
    ]


def _tokens(plan: Plan, costs: list[Cost | None]) -> list[str]:
    """The tokens that text runs are trained on, branches included."""
    trained = []
    for cell, cost in zip(plan.cells, costs, strict=True):
        if not isinstance(cell.config.data, TokenData) or cost is None:
            return []
        # A backward pass costs two forward ones, so a sequence of training is three.
        trained.append(cost.training / (3 * forward_operations(cell.config)) * cell.config.data.context)
    return [f"tokens: {max(trained):.3g} in the longest run, {sum(trained):.3g} in all"]


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict) or not values:
        return {prefix: values}
    return {
        name: leaf
        for key, value in values.items()
        for name, leaf in _flat(value, f"{prefix}.{key}" if prefix else key).items()
    }


def _data_needed(config: RunConfig) -> str:
    """What the runs need, whether it is there, and how it is made."""
    data = config.data
    if data.home is None:
        return f"{data.kind}, made on the spot, in {data.root}"
    what = f"{data.home.what} in {folder_of(data)}"
    return f"{what}: there" if is_there(data) else f"{what}: not there, make it with `{how_to_make(data)}`"
