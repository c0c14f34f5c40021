"""The claims as a table: a sortable row for each, its verdict at every scale first, the runs behind it folded away."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from weight_decay.report.claims.measures import SCALES
from weight_decay.report.claims.verdict import Claim, Result, Verdict
from weight_decay.report.page.templates import render
from weight_decay.report.statistics import Interval

_IN_WORDS = {
    Verdict.HOLDS: ("holds", "hold"),
    Verdict.FAILS: ("fails", "fail"),
    Verdict.NO_EFFECT: ("shows no effect", "show no effect"),
    Verdict.INCONCLUSIVE: ("inconclusive", "inconclusive"),
    Verdict.NOT_RUN: ("not run", "not run"),
}


@dataclass(frozen=True)
class Row:
    """A claim with its results at those scales at which it was run, by scale, the smallest first."""

    number: int
    claim: Claim
    results: dict[str, Result]

    @property
    def largest(self) -> Result | None:
        """The result at the largest scale that was run: the one whose numbers stand in the row."""
        return next(reversed(self.results.values()), None)

    @property
    def interval(self) -> Interval | None:
        """The interval of the effect there."""
        return self.largest.interval if self.largest else None

    @property
    def classes(self) -> set[str]:
        """By what the filter shows it: its verdicts."""
        return {_class(result.verdict) for result in self.results.values()} or {_class(Verdict.NOT_RUN)}


Order = tuple[object, ...] | float | str | None


@dataclass(frozen=True)
class Column:
    """A column of the table: by what it is sorted (None comes last, whichever way); claims.html knows what is in it."""

    name: str
    style: str
    order: Callable[[Row], Order]
    text: Callable[[Row], str] | None = None
    """What is in a cell, where it is text and nothing else."""
    scale: str = ""
    """The scale whose verdicts stand in it: its name on a small screen, where every claim is a card."""


def rows_of(results: Sequence[Result]) -> list[Row]:
    """The results of each claim together, claims in the order in which they come."""
    by_claim: dict[str, dict[str, Result]] = {}
    for result in results:
        by_claim.setdefault(result.claim.key, {})[result.scale] = result
    return [
        Row(
            number,
            next(iter(found.values())).claim,
            {
                scale: found[scale]
                for scale in sorted(found, key=scale_order)
                if found[scale].verdict is not Verdict.NOT_RUN
            },
        )
        for number, found in enumerate(by_claim.values())
    ]


def scale_order(scale: str) -> tuple[int, str]:
    """The smallest scale first; one that is not of SCALES before them all, since nothing is known of it."""
    return (SCALES.index(scale) if scale in SCALES else -1, scale)


def paper_order(name: str) -> tuple[int, int, str]:
    """Sorts `2`, `2d`, `Fig. 3`, `fig05_finetune`, `tables 2, 3`, `ours` as in the paper: figures, tables, the rest."""
    found = re.match(r"(?:fig(?:ure)?s?|(tab(?:le)?s?))?[.\s]*(\d+)([a-z]?)", name.lower())
    if found is None:
        return (2, 0, "")
    return (1 if found[1] else 0, int(found[2]), found[3])


def count_line(results: Sequence[Result]) -> str:
    """How many claims have which verdict at each scale: `12 hold, 1 fails at micro; small and paper: not run`."""
    parts, empty = [], []
    for scale in SCALES:
        counts = Counter(result.verdict for result in results if result.scale == scale)
        if not set(counts) - {Verdict.NOT_RUN}:
            empty.append(scale)
            continue
        words = [f"{count} {_IN_WORDS[verdict][count > 1]}" for verdict in Verdict if (count := counts[verdict])]
        parts.append(f"{', '.join(words)} at {scale}")
    if empty:
        parts.append(f"{' and '.join([*filter(None, [', '.join(empty[:-1])]), empty[-1]])}: not run")
    return "; ".join(parts)


def claims_html(results: Sequence[Result], drawn: Collection[str] = ()) -> Markup:
    """The count, a filter and the table of all claims; the figure of an experiment in `drawn` is a link to it."""
    if not results:
        return Markup('<p class="caution">No claim is written down yet.</p>\n')
    rows = rows_of(results)
    columns = _columns(rows)
    present = set().union(*(row.classes for row in rows))
    choices = [("all", "all"), *((_class(verdict), verdict.value) for verdict in Verdict if _class(verdict) in present)]
    ranks = {column.name: _ranks(column, rows) for column in columns}
    return render(
        "claims.html", counts=count_line(results), choices=choices, rows=rows, columns=columns, ranks=ranks,
        drawn=drawn, facts=_facts,
    )  # fmt: skip


def _ranks(column: Column, rows: list[Row]) -> dict[int, int | None]:
    """Per claim its place in the order of a column, equal ones sharing it; the script only compares these."""
    orders = {row.number: column.order(row) for row in rows}
    places = {order: place for place, order in enumerate(sorted({o for o in orders.values() if o is not None}))}
    return {number: None if order is None else places[order] for number, order in orders.items()}


def _class(verdict: Verdict) -> str:
    return verdict.value.replace(" ", "-")


def _columns(rows: Sequence[Row]) -> list[Column]:
    """The columns; a scale at which nothing was run has none."""
    scales = [scale for scale in SCALES if any(scale in row.results for row in rows)]
    several = [Column("Scale", "", _scale_order, text=lambda row: row.largest.scale if row.largest else "")]
    return [
        *(_verdict_column(scale) for scale in scales),
        Column("Claim", "claim", lambda row: row.number),
        Column("Figure", "", lambda row: paper_order(row.claim.figure)),
        # By size within a unit: points and nats cannot be compared.
        Column("Effect [95 %]", "effect", _effect_order),
        Column("Holds if", "criterion", lambda row: row.claim.criterion),
        *(several if len(scales) > 1 else []),
        Column("Seeds", "", lambda row: row.interval.count if row.interval else None, text=_seeds),
        Column("q", "", _q, text=lambda row: "" if (q := _q(row)) is None else f"{q:.2g}"),
        Column("Paper", "", _paper_order),
    ]


def _verdict_column(scale: str) -> Column:
    def order(row: Row) -> Order:
        return list(Verdict).index(row.results[scale].verdict) if scale in row.results else None

    return Column(f"Verdict\N{NO-BREAK SPACE}at {scale}", "at", order, scale=scale)


def _facts(result: Result) -> list[tuple[str, str]]:
    """What else is to be known of a verdict, by name."""
    facts = []
    if result.stage is not None and not math.isnan(result.p):
        words = f"p {result.p:.2g}, q {result.q:.2g} at the level {result.stage.level:g}; {result.claim.test}"
        facts.append(("Test", words))
    if result.pilot:
        facts.append(("Pilot", "these runs were made before the protocol"))
    if result.reason:
        facts.append(("Open because", result.reason))
    if result.measured is not None:
        each = [
            f"{seed}: {'not measured' if math.isnan(effect) else result.claim.unit.write(effect)}"
            for seed, effect in zip(result.measured.seeds, result.measured.effects, strict=False)
        ]
        facts.append(("By seed", f"{'; '.join(each)} {result.claim.unit.name}"))
    return facts


def _seeds(row: Row) -> str:
    result = row.largest
    if result is None or result.measured is None:
        return ""
    counted = row.interval.count if row.interval is not None else 0
    total = len(result.measured.seeds)
    return str(total) if counted == total else f"{counted} of {total}"


def _q(row: Row) -> float | None:
    return None if row.largest is None or math.isnan(row.largest.q) else row.largest.q


def _paper_order(row: Row) -> Order:
    return None if row.claim.paper is None else (row.claim.unit.name, row.claim.paper)


def _effect_order(row: Row) -> Order:
    """By size within a unit: points and nats cannot be compared."""
    return (row.claim.unit.name, row.interval.mean) if row.interval else None


def _scale_order(row: Row) -> Order:
    return scale_order(row.largest.scale) if row.largest else None
