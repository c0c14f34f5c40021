"""The claims as HTML: one sortable row for each, its verdict at every scale first, the runs behind it folded away."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from html import escape

from weight_decay.report.claims.paper import SCALES
from weight_decay.report.claims.verdict import Claim, Result, Verdict

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


Order = tuple[object, ...] | float | str | None


@dataclass(frozen=True)
class Column:
    """A column of the table: by what it is sorted (None comes last, whichever way), and what is in a cell."""

    name: str
    style: str
    order: Callable[[Row], Order]
    cell: Callable[[Row], str]
    label: str = ""
    """Its name on a small screen, where every claim is a card; empty for the name itself."""


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


def claims_html(results: Sequence[Result], drawn: Collection[str] = ()) -> str:
    """The count, a filter and the table of all claims; the figure of an experiment in `drawn` is a link to it.

    Without script the table is complete and the filter works; the headers then do not sort.
    """
    if not results:
        return '<p class="caution">No claim is written down yet.</p>\n'
    rows = rows_of(results)
    columns = _columns(drawn, rows)
    head = "".join(
        f'<th scope="col" role="columnheader" class="{column.style}" aria-sort="none">'
        f'<button type="button" disabled>{escape(column.name)}</button></th>'
        for column in columns
    )
    ranks = [_ranks(column, rows) for column in columns]
    body = "".join(_row(row, columns, [column[row.number] for column in ranks]) for row in rows)
    return (
        f'<p class="counts">{escape(count_line(results))}</p>\n<div class="claims">{_filter(rows)}'
        '<div class="scroll" role="region" aria-label="The claims" tabindex="0"><table role="table">'
        f'<thead role="rowgroup"><tr role="row">{head}</tr></thead><tbody role="rowgroup">\n{body}</tbody></table>'
        "</div></div>\n"
    )


def _ranks(column: Column, rows: list[Row]) -> dict[int, int | None]:
    """Per claim its place in the order of a column, equal ones sharing it; the script only compares these."""
    orders = {row.number: column.order(row) for row in rows}
    places = {order: place for place, order in enumerate(sorted({o for o in orders.values() if o is not None}))}
    return {number: None if order is None else places[order] for number, order in orders.items()}


def _row(row: Row, columns: list[Column], ranks: list[int | None]) -> str:
    cells = []
    for column, rank in zip(columns, ranks, strict=True):
        tag, role = ('th scope="row"', "rowheader") if column.style == "claim" else ("td", "cell")
        place = "" if rank is None else f' data-rank="{rank}"'
        cells.append(
            f'<{tag} role="{role}" class="{column.style}" data-label="{escape(column.label or column.name)}"{place}>'
            f"{column.cell(row)}</{tag[:2]}>"
        )
    classes = " ".join(sorted(_classes(row)))
    return f'<tr role="row" class="{classes}" data-claim="{escape(row.claim.key)}">{"".join(cells)}</tr>\n'


def _classes(row: Row) -> set[str]:
    return {_class(result.verdict) for result in row.results.values()} or {_class(Verdict.NOT_RUN)}


def _class(verdict: Verdict) -> str:
    return verdict.value.replace(" ", "-")


def _filter(rows: list[Row]) -> str:
    """Radio buttons that the style sheet acts upon: which claims to show, by their verdict at any scale."""
    present = set().union(*(_classes(row) for row in rows))
    choices = [("all", "all"), *((_class(verdict), verdict.value) for verdict in Verdict if _class(verdict) in present)]
    buttons = "".join(
        f'<label><input type="radio" name="show" id="show-{key}" aria-label="Show: {words}"'
        f"{' checked' if key == 'all' else ''}> {words}</label>"
        for key, words in choices
    )
    return f'<fieldset class="filter"><legend>Show, by the verdict at any scale</legend>{buttons}</fieldset>\n'


def _columns(drawn: Collection[str], rows: Sequence[Row]) -> list[Column]:
    """The columns; a scale at which nothing was run has none."""
    scales = [scale for scale in SCALES if any(scale in row.results for row in rows)]
    several = [Column("Scale", "", _scale_order, lambda row: escape(row.largest.scale) if row.largest else "")]
    return [
        *(_verdict_column(scale) for scale in scales),
        Column("Claim", "claim", lambda row: row.number, _statement),
        Column("Figure", "", lambda row: paper_order(row.claim.figure), lambda row: _figure(row.claim, drawn)),
        Column("Effect [95 %]", "effect", _effect_order, lambda row: _effect(row.largest)),
        Column("Holds if", "criterion", lambda row: row.claim.criterion, lambda row: _together(row.claim.criterion)),
        *(several if len(scales) > 1 else []),
        Column("Seeds", "", _seeds_order, lambda row: _seeds(row.largest)),
        Column("q", "", lambda row: _q(row.largest), lambda row: _small(_q(row.largest))),
        Column("Paper", "", _paper_order, lambda row: _paper(row.claim)),
    ]


def _q(result: Result | None) -> float | None:
    return None if result is None or math.isnan(result.q) else result.q


def _small(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def _paper(claim: Claim) -> str:
    return "" if claim.paper is None else f'<span class="bounds">{escape(claim.unit.write(claim.paper))}</span>'


def _paper_order(row: Row) -> Order:
    return None if row.claim.paper is None else (row.claim.unit.name, row.claim.paper)


def _verdict_column(scale: str) -> Column:
    def order(row: Row) -> Order:
        return list(Verdict).index(row.results[scale].verdict) if scale in row.results else None

    def cell(row: Row) -> str:
        return _pill(row.results[scale].verdict) if scale in row.results else _DASH

    return Column(f"Verdict\N{NO-BREAK SPACE}at {scale}", "at", order, cell, label=scale)


_DASH = '<span class="dash"><span aria-hidden="true">–</span><span class="unseen">not run</span></span>'


def _pill(verdict: Verdict) -> str:
    color = {Verdict.HOLDS: "yes", Verdict.FAILS: "no", Verdict.NO_EFFECT: "no"}.get(verdict, "unknown")
    return f'<span class="{color}"><span class="verdict">{escape(verdict.value)}</span></span>'


def _statement(row: Row) -> str:
    if not row.results:
        return escape(row.claim.statement)
    details = "".join(_details(result) for result in reversed(row.results.values()))
    return f"{escape(row.claim.statement)}<details><summary>Numbers and runs</summary>{details}</details>"


def _details(result: Result) -> str:
    write = result.claim.unit.write
    facts = [("Endpoint", escape(result.claim.endpoint)), ("Holds if", _together(result.claim.criterion))]
    facts.insert(1, ("Effect", _effect(result)))
    if result.stage is not None and not math.isnan(result.p):
        words = f"p {result.p:.2g}, q {result.q:.2g} at the level {result.stage.level:g}; {result.claim.test}"
        facts.append(("Test", escape(words)))
    if result.pilot:
        facts.append(("Pilot", "these runs were made before the protocol"))
    if result.reason:
        facts.append(("Open because", escape(result.reason)))
    if result.measured is not None:
        each = [
            f"{seed}: {'not measured' if math.isnan(effect) else write(effect)}"
            for seed, effect in zip(result.measured.seeds, result.measured.effects, strict=False)
        ]
        facts += [
            ("By seed", escape(f"{'; '.join(each)} {result.claim.unit.name}")),
            ("Runs", " ".join(f"<code>{escape(run)}</code>" for run in result.measured.runs)),
        ]
    words = escape(result.measured.words) if result.measured is not None else ""
    listed = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts)
    return (
        f'<div class="scale">{_pill(result.verdict)} <span class="stamp">{escape(result.stamp)}</span>'
        f"<p>{words}</p><dl>{listed}</dl></div>"
    )


def _figure(claim: Claim, drawn: Collection[str]) -> str:
    text = escape(claim.figure)
    return f'<a href="#{escape(claim.experiment)}">{text}</a>' if claim.experiment in drawn else text


def _effect(result: Result | None) -> str:
    """The mean, then its interval and unit, which stay together on one line."""
    if result is None or result.interval is None:
        return "–"
    mean, _, bounds = result.effect.partition(" [")
    return f'<span><span class="mean">{escape(mean)}</span> <span class="bounds">[{escape(bounds)}</span></span>'


def _together(criterion: str) -> str:
    """Escaped, with its number and unit on one line."""
    word, _, rest = escape(criterion).partition(" ")
    return f"{word} {rest.replace(' ', '&nbsp;')}"


def _seeds(result: Result | None) -> str:
    if result is None or result.measured is None:
        return ""
    counted = result.interval.count if result.interval is not None else 0
    total = len(result.measured.seeds)
    return str(total) if counted == total else f"{counted} of {total}"


def _effect_order(row: Row) -> Order:
    """By size within a unit: points and nats cannot be compared."""
    if row.largest is None or row.largest.interval is None:
        return None
    return (row.claim.unit.name, row.largest.interval.mean)


def _scale_order(row: Row) -> Order:
    return scale_order(row.largest.scale) if row.largest else None


def _seeds_order(row: Row) -> Order:
    return row.largest.interval.count if row.largest and row.largest.interval else None
