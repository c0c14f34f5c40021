"""What the planned seeds can see: each claim's detectable effect from the spread of the runs at hand, and the cost."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

from weight_decay.report import statistics
from weight_decay.report.claims.protocol import protocol
from weight_decay.report.claims.verdict import Result
from weight_decay.report.tables.read import tables_of


def power_text(results: Path, judged: list[Result], seeds: int | None = None) -> str:
    """A line for each claim that was run: spread, effect seen with POWER at `seeds` (the last stage's), core-hours."""
    stage = protocol().stages[-1]
    count = seeds or stage.seeds
    lines = [
        f"With {count} seeds at the level {stage.level:g}, found in {100 * statistics.POWER:.0f} % of all cases. sd:",
        "between the seeds at hand, whose own uncertainty makes the range in brackets.",
        "",
        f"{'claim':24}{'n':>3} {'detectable effect [range]':34}{'worth':>8}  {'core-h':>6}",
    ]
    for result in judged:
        if result.interval is None:
            continue
        claim, known = result.claim, result.interval
        hours = _core_hours(results, {(claim.experiment, result.scale)}) * count
        if claim.test == "share":
            words = f"all or none of {_unanimous(stage.level)} seeds"
        elif not known.deviation > 0:
            words = "no spread between seeds" if known.count > 1 else "one seed has no spread"
        else:
            one = statistics.detectable(1.0, count, stage.level)
            low, high = statistics.deviation_interval(known.deviation, known.count)
            written = [claim.unit.write(value * one).lstrip("+") for value in (known.deviation, low, high)]
            words = f"{written[0]} [{written[1]}, {written[2]}] {claim.unit.name}"
        worth = claim.unit.write(claim.margin or claim.smallest).lstrip("+") if claim.test != "share" else ""
        name = claim.key if result.scale == "micro" else f"{claim.key} ({result.scale})"
        lines.append(f"{name:24}{known.count:>3} {words:34}{worth:>8}  {hours:>6.2f}")
    experiments = {(result.claim.experiment, result.scale) for result in judged if result.interval is not None}
    if experiments:
        each = _core_hours(results, experiments)
        words = f"{each:.2f} core-hours a seed, {each * count:.1f} for all"
        lines += ["", f"All of them, shared runs counted once: {words}."]
    return "\n".join(lines)


def _core_hours(results: Path, experiments: Collection[tuple[str, str]]) -> float:
    """Of one seed of all experiments: of each what no other before it has run, over its own number of seeds."""
    counted: set[str] = set()
    hours = 0.0
    for place in sorted(experiments):
        tables = tables_of(results, *place)
        seconds = tables.summary.groupby("run_id")["seconds"].max()
        hours += sum(seconds[~seconds.index.isin(counted)]) / 3600 / max(1, tables.seeds)
        counted.update(seconds.index)
    return hours


def _unanimous(level: float) -> int:
    """The fewest yes-or-no outcomes that, all alike, are significant."""
    return math.ceil(1 - math.log2(level))
