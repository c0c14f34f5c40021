"""The table of experiments: for each the figure, the scales that were run, at what cost, and what came out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from weight_decay.report.claims.verdict import Result, Verdict
from weight_decay.report.tables.numbers import duration
from weight_decay.report.tables.read import Tables, scales_of, tables_of
from weight_decay.report.tables.text_table import markdown_table

HEADER = ["experiment", "figure", "run at", "what came out"]


def experiments_markdown(results: Path, names: Iterable[str], claims: list[Result]) -> str:
    """A row for every experiment named, in their order; an experiment without tables is "not run"."""
    rows = [HEADER]
    seen: dict[tuple[str, frozenset[str]], str] = {}
    for name in names:
        scales = [tables_of(results, name, scale) for scale in scales_of(results, name)]
        figure = scales[0].runs["figure"].iloc[0] if scales else None
        ran = "; ".join(_cost(tables) for tables in scales) or "not run"
        came = []
        for tables in scales:
            runs = (tables.scale, frozenset(tables.runs["run_id"]))
            if runs in seen:
                came.append(f"at {tables.scale} the runs of `{seen[runs]}`")
            seen.setdefault(runs, name)
            came += _outcomes(
                [claim for claim in claims if (claim.claim.experiment, claim.scale) == (name, tables.scale)]
            )
        rows.append([f"`{name}`", "–" if pd.isna(figure) else str(figure), ran, "; ".join(came) or "–"])
    return "\n".join(markdown_table(rows, "l" * len(HEADER)))


def _cost(tables: Tables) -> str:
    runs = tables.runs
    diverged = int((runs["status"] == "diverged").sum())
    lost = f", {diverged} diverged" if diverged else ""
    return f"{tables.scale}: {len(runs)} runs{lost}, {duration(float(runs['seconds'].sum()))}"


def _outcomes(results: list[Result]) -> list[str]:
    """One clause per verdict, with the statements it was given to."""
    return [
        f"**{verdict}**: " + "; ".join(result.claim.statement.removesuffix(".") for result in given)
        for verdict in (Verdict.HOLDS, Verdict.FAILS, Verdict.INCONCLUSIVE)
        if (given := [result for result in results if result.verdict is verdict])
    ]
