"""What a command would do: its cells with their exact settings, and what each would cost, without doing it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from weight_decay.config.groups import BranchConfig
from weight_decay.config.run import RunConfig, folder_name
from weight_decay.config.text import TokenData
from weight_decay.data.where import folder_of, how_to_make, is_there
from weight_decay.experiments.as_words import quoted, settings
from weight_decay.experiments.cost import Cost, clock_of, estimate, forward_operations, how_often
from weight_decay.experiments.plan import Cell, Plan
from weight_decay.experiments.throughput import Assumptions, Throughput
from weight_decay.experiments.what_decays import what_decays
from weight_decay.training.build import check

COST_PARTS = ("training", "evaluation", "probes")


def describe(plan: Plan, assumed: Assumptions = Assumptions()) -> str:  # noqa: B008 (frozen)
    """Text: the settings that all cells share, then for each cell those that are its own; all as words of a shell."""
    for cell in plan.cells:
        check(cell.config)
    words = [settings(cell.config) for cell in plan.cells]
    shared = {key: value for key, value in words[0].items() if all(other.get(key) == value for other in words)}
    first = plan.cells[0].config
    throughput = assumed.throughput(plan.scale, first, Path(first.execution.results))
    costs = [estimate(cell.config) for cell in plan.cells]
    lines = [
        f"{plan.experiment} at scale {plan.scale}: {plan.title}",
        f"figure {plan.figure}, {len(plan.cells)} cell(s), command: {plan.command}",
        "",
        "settings of all cells; `weight-decay` with these and those of a cell, alone or in its group, is that run",
        *(f"  {quoted(key, value)}" for key, value in shared.items()),
        "",
        "cells",
    ]
    above = ""
    for cell, said, cost in zip(plan.cells, words, costs, strict=True):
        varied = {key: quoted(key, value) for key, value in said.items() if key not in shared}
        own = [word for key, word in varied.items() if key.removesuffix(".kind") in {*cell.coordinates, "data.seed"}]
        if (group := " ".join(word for word in varied.values() if word not in own)) != above:
            lines.append(f"  with {group}:")
            above = group
        lines.append(f"  {cell.index:4d}  {_cell(cell, own, cost, throughput)}")
        # Where there is no GPU, `check` cannot know that the cell is meant for one.
        if plan.scale != "micro" and (problem := cell.config.model.impossible_on("cuda", cell.config.precision)):
            lines.append(f"        refused on a GPU: {problem}")
    lines += _shared_among(plan.cells, "branches", _branches)
    lines += _shared_among(plan.cells, "what decays (of decay.rules the first that matches)", what_decays)
    return "\n".join(
        [*lines, "", *_cost_lines(costs, throughput), *_tokens(plan, costs), f"data: {_data_needed(first)}"]
    )


def _cell(cell: Cell, own: list[str], cost: Cost | None, throughput: Throughput) -> str:
    hours = "" if cost is None else f"  about {cost.hours(throughput):.2g} {throughput.unit}"
    return f"{' '.join(own) or cell.title or 'the only one'}{hours}  -> {folder_name(cell.config)}"


def _shared_among(cells: Iterable[Cell], title: str, say: Callable[[RunConfig], Iterable[str]]) -> list[str]:
    """What is said of cells, once for all of whom the same is said."""
    indices: dict[tuple[str, ...], list[int]] = {}
    for cell in cells:
        indices.setdefault(tuple(say(cell.config)), []).append(cell.index)
    blocks = []
    for said, those in indices.items():
        if said:
            of = "" if len(indices) == 1 else f"cells {_ranges(those)}: "
            blocks += [f"  {of}{said[0]}", *(f"  {' ' * len(of)}{line}" for line in said[1:])]
    return ["", title, *blocks] if blocks else []


def _ranges(numbers: list[int]) -> str:
    """`0-3, 7`."""
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def _branches(config: RunConfig) -> list[str]:
    """A line for each branch, with its steps where they are known."""
    return [f"{branch.name}: {_starts(config, branch)}, {_of_branch(branch)}" for branch in config.branches]


def _starts(config: RunConfig, branch: BranchConfig) -> str:
    clock = clock_of(config)
    if clock is None:
        return f"from {branch.start}" + ("" if branch.every is None else f", every {branch.every}")
    start = branch.start.steps(clock)
    count = how_often(branch.every, start, clock.total_steps, clock)
    if count < 2 or branch.every is None:
        return f"from step {start:,}, " + (f"{branch.duration.steps(clock):,} steps" if count else "which never comes")
    every = branch.every.every(clock)
    last = start + (count - 1) * every
    return f"{count} from steps {start:,}, {start + every:,} ... {last:,}, {branch.duration.steps(clock):,} steps each"


def _of_branch(branch: BranchConfig) -> str:
    kept = "kept" if branch.keep_optimizer_state else "new"
    return f"lr {branch.lr:g}, decay {branch.strength:g}, optimizer state {kept}"


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


def _data_needed(config: RunConfig) -> str:
    """What the runs need, whether it is there, and how it is made."""
    data = config.data
    if data.home is None:
        return f"{data.kind}, made on the spot, in {data.root}"
    what = f"{data.home.what} in {folder_of(data)}"
    return f"{what}: there" if is_there(data) else f"{what}: not there, make it with `{how_to_make(data)}`"
