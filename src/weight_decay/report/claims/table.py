"""The claims as one table: in Markdown for the terminal and README.md, as CSV with the runs each rests on."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from weight_decay.report.claims.verdict import Result, Verdict
from weight_decay.report.page.claims import count_line
from weight_decay.report.tables.text_table import markdown_table
from weight_decay.runs.files import write_if_changed

HEADER = (
    "claim", "statement", "figure", "experiment", "scale", "verdict", "effect", "low", "high", "unit", "criterion",
    "seeds", "seeds_needed", "numbers", "stamp", "runs",
)  # fmt: skip


def claims_markdown(results: list[Result]) -> str:
    """Counts, then a row per claim and a column per scale at which anything was run; aligned, so readable as text."""
    scales = [scale for scale in dict.fromkeys(result.scale for result in results) if _any_run(results, scale)]
    lines = [count_line(results)[:1].upper() + count_line(results)[1:] + "."]
    if not scales:
        return "\n".join(lines)
    rows = [["claim", "figure", *(f"at {scale}: effect [95 % interval]" for scale in scales)]]
    for claim in dict.fromkeys(result.claim for result in results):
        found = {result.scale: result for result in results if result.claim is claim}
        rows.append([claim.statement, claim.figure, *(_cell(found[scale]) for scale in scales)])
    return "\n".join([*lines, "", *markdown_table(rows)])


def _any_run(results: list[Result], scale: str) -> bool:
    return any(result.scale == scale and result.verdict is not Verdict.NOT_RUN for result in results)


def _cell(result: Result) -> str:
    if result.verdict is Verdict.NOT_RUN:
        return "not run"
    words = f"**{result.verdict}** {result.effect}"
    return f"{words}; {result.power}" if result.power else words


def write_claims(results: list[Result], path: Path) -> None:
    """Write every claim at every scale, one row each, to a CSV file: numbers unrounded, run ids listed."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(HEADER)
    for result in results:
        claim, found, measured = result.claim, result.interval, result.measured
        numbers = [""] * 3 if found is None else [f"{value:.6g}" for value in (found.mean, found.low, found.high)]
        writer.writerow(
            [
                claim.key, claim.statement, claim.figure, claim.experiment, result.scale, result.verdict, *numbers,
                claim.unit.name, claim.criterion, result.seeds or "", result.needed or "",
                measured.words if measured else "", result.stamp, " ".join(measured.runs) if measured else "",
            ]
        )  # fmt: skip
    write_if_changed(path, stream.getvalue().encode())
