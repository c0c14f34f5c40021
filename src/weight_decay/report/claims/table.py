"""The claims as one table: for the terminal, in Markdown for README.md, as CSV from which each can be recomputed."""

from __future__ import annotations

import csv
import functools
import io
import math
import textwrap
from pathlib import Path

from weight_decay.report.claims.verdict import Result, Verdict
from weight_decay.report.page.claims import count_line
from weight_decay.report.statistics import bootstrap_interval
from weight_decay.report.tables.text_table import markdown_table
from weight_decay.runs.files import write_if_changed

WIDTH = 80
HEADER = (
    "claim", "statement", "figure", "experiment", "scale", "verdict", "effect", "low", "high", "unit", "criterion",
    "test", "threshold", "margin", "smallest", "seeds", "level", "p", "q", "effect_sd", "improvement",
    "bootstrap_low", "bootstrap_high", "turned_by_one_seed", "paper", "pilot", "open_because", "effects", "endpoint",
    "reads", "numbers", "stamp", "runs",
)  # fmt: skip


def claims_text(results: list[Result]) -> str:
    """Counts, then three lines or so for each claim that was run, at most 80 columns wide; for the terminal."""
    blocks = [textwrap.fill(_counts(results), WIDTH)]
    fill = functools.partial(textwrap.fill, width=WIDTH, subsequent_indent=" " * 14, break_on_hyphens=False)
    for result in results:
        if result.verdict is not Verdict.NOT_RUN:
            statement = f"{result.claim.statement} ({result.scale}, {_figure(result.claim.figure)})"
            first = fill(statement, initial_indent=f"{result.verdict.upper():<14}")
            blocks.append(f"{first}\n{fill('; '.join(_facts(result)), initial_indent=' ' * 14)}")
    return "\n\n".join(blocks)


def _counts(results: list[Result]) -> str:
    counts = count_line(results)
    pilots = sum(result.pilot for result in results if result.verdict is not Verdict.NOT_RUN)
    early = f" {pilots} of these results are from runs made before the protocol (pilots)." if pilots else ""
    return f"{counts[:1].upper()}{counts[1:]}.{early}"


def _figure(figure: str) -> str:
    return f"Fig. {figure}" if figure[:1].isdigit() else figure


def _facts(result: Result) -> list[str]:
    """Effect, criterion, seeds, p, q, size, and the paper's own effect, as far as there are any."""
    facts = [result.effect, f"holds if {result.claim.criterion}"]
    if result.interval is not None:
        facts.append(f"n {result.seeds}{' (pilots)' if result.pilot else ''}")
    if not math.isnan(result.p):
        facts.append(f"p {_small(result.p)}, q {_small(result.q)}, at {result.stage.level:g}" if result.stage else "")
    if (size := _deviations(result)) is not None:
        facts.append(f"{size:+.1f} sd")
    if result.improvement == result.improvement and result.claim.test != "share":
        facts.append(f"{100 * result.improvement:.0f} % of seeds above {result.claim.centre:g}")
    if result.claim.paper is not None:
        facts.append(f"paper {result.claim.unit.write(result.claim.paper)}")
    if result.sensitivity:
        facts.append(f"another verdict without one of {result.sensitivity} seeds")
    if result.reason:
        facts.append(f"open: {result.reason}")
    return [fact for fact in facts if fact]


def _small(value: float) -> str:
    return f"{value:.2g}" if value >= 0.001 else f"{value:.0e}".replace("e-0", "e-")


def _deviations(result: Result) -> float | None:
    """The mean's distance from what means nothing, in standard deviations; None where there is no spread."""
    if result.interval is None or result.claim.test == "share" or not result.interval.deviation > 0:
        return None
    return (result.interval.mean - result.claim.threshold) / result.interval.deviation


def claims_markdown(results: list[Result]) -> str:
    """Counts, then a row per claim and scale that was run; columns without a value in any row are left out."""
    lines = [_counts(results)]
    header = [
        "verdict", "claim", "figure", "scale", "effect [95 %]", "holds if", "n", "q", "sd", "paper", "open because",
    ]  # fmt: skip
    rows = []
    for result in results:
        if result.verdict is Verdict.NOT_RUN:
            continue
        size = _deviations(result)
        rows.append(
            [
                f"**{result.verdict}**{' (pilot)' if result.pilot else ''}", result.claim.statement,
                result.claim.figure, result.scale, result.effect, result.claim.criterion, str(result.seeds or ""),
                "" if math.isnan(result.q) else _small(result.q), "" if size is None else f"{size:+.1f}",
                "" if result.claim.paper is None else result.claim.unit.write(result.claim.paper), result.reason,
            ]
        )  # fmt: skip
    if not rows:
        return lines[0]
    kept = [index for index in range(len(header)) if any(row[index] for row in rows)]
    # The scale is worth a column where there are several.
    kept = [index for index in kept if header[index] != "scale" or len({row[index] for row in rows}) > 1]
    table = [[row[index] for index in kept] for row in [header, *rows]]
    return "\n".join([*lines, "", *markdown_table(table)])


def write_claims(results: list[Result], path: Path) -> None:
    """Write every claim at every scale, one row each, to a CSV file: numbers unrounded, effects and run ids listed."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(HEADER)
    for result in results:
        claim, found, measured = result.claim, result.interval, result.measured
        numbers = [math.nan] * 3 if found is None else [found.mean, found.low, found.high]
        size, stage = _deviations(result), result.stage
        resampled = bootstrap_interval(result.effects) if len(result.effects) > 1 else (math.nan, math.nan)
        writer.writerow(
            [
                claim.key, claim.statement, claim.figure, claim.experiment, result.scale, result.verdict,
                *map(_number, numbers), claim.unit.name, claim.criterion, claim.test, _number(claim.threshold),
                _number(claim.margin), _number(claim.smallest), result.seeds or "",
                "" if stage is None else f"{stage.level:g}", _number(result.p), _number(result.q),
                "" if size is None else _number(size), _number(result.improvement), *map(_number, resampled),
                result.sensitivity if stage is not None else "", "" if claim.paper is None else _number(claim.paper),
                "yes" if result.pilot else "", result.reason, " ".join(_number(value) for value in result.effects),
                claim.endpoint, claim.reads, measured.words if measured else "", result.stamp,
                " ".join(measured.runs) if measured else "",
            ]
        )  # fmt: skip
    write_if_changed(path, stream.getvalue().encode())


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"
