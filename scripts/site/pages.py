"""The pages of the site that come from experiment files, tables and claims, as Markdown. Needs no mkdocs."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import yaml

from weight_decay.errors import UserError
from weight_decay.experiments.catalog import experiments
from weight_decay.experiments.declared import Declared
from weight_decay.experiments.plan import expand
from weight_decay.places import CONFIGS
from weight_decay.report.claims.measures import CLAIMS, judged_claims
from weight_decay.report.claims.table import claims_markdown
from weight_decay.report.claims.verdict import Result, Verdict
from weight_decay.report.figures.demo import DrawnFigure, demo_figures
from weight_decay.report.figures.own import coordinates_of, label_of
from weight_decay.report.figures.paper import DEMO, figures_of
from weight_decay.report.figures.style import undrawn
from weight_decay.report.tables.numbers import duration
from weight_decay.report.tables.read import Tables, missing_metrics, scales_of, tables_of
from weight_decay.report.tables.text_table import markdown_table

ENDS = {
    "test/error": "test error",
    "ema/test/error": "of its EMA",
    "val/loss": "validation loss",
    "ema/val/loss": "of its EMA",
    "train/loss": "training loss",
    "jacobian/mean_square": "‖J‖²",
    "weights/norm": "‖w‖",
    "effective_lr/adamw": "η/‖w‖",
}
"""What a page says of the end of each cell, where it was measured."""
REGIMES = {"over_training": "over-training", "under_training": "under-training"}
CLAIMS_MARK = re.compile(r"<!-- claims: (\w+) -->")


class Site:
    """The generated pages, from the results folder of a checkout; `judged` once for all of them."""

    def __init__(self, checkout: Path) -> None:
        self.checkout = checkout
        self.results = checkout / "results"

    @functools.cached_property
    def judged(self) -> list[Result]:
        """Every claim at every scale."""
        return judged_claims(self.results)

    @functools.cached_property
    def declared(self) -> dict[str, Declared]:
        """Every experiment, with what its file says."""
        return experiments()

    def pages(self) -> Iterator[tuple[str, str]]:
        """Address below docs/ and Markdown of each page that has no file there."""
        yield "experiments/index.md", self.index()
        for name in self.declared:
            yield f"experiments/{name}.md", self.experiment(name)
        yield "log.md", (self.results / "LOG.md").read_text(encoding="utf-8")

    def completed(self, text: str) -> str:
        """A page of docs/ with its marks filled in, and its links to other folders of the checkout made the site's."""
        text = text.replace("<!-- claims -->", claims_markdown(self.judged))
        text = CLAIMS_MARK.sub(lambda found: self.claims_of(found[1]), text)
        text = text.replace("](../results/LOG.md", "](log.md")
        return re.sub(r"\]\(\.\./(results|notebooks)/", r"](\1/", text)

    def index(self) -> str:
        """All experiments by regime, each with its figure and where it was run."""
        lines = ["# Experiments", "", "One page for each, made from its file, its tables and its claims.", ""]
        for regime, words in REGIMES.items():
            rows = [["experiment", "figure", "what it asks", "run at"]]
            for name, content in self.declared.items():
                if content.regime == regime:
                    ran = ", ".join(scales_of(self.results, name)) or "not run"
                    rows.append([f"[{name}]({name}.md)", str(content.figure), content.title, ran])
            lines += [f"## {words.capitalize()}", "", *markdown_table(rows), ""]
        return "\n".join(lines)

    def experiment(self, name: str) -> str:
        """The page of one experiment."""
        content = self.declared[name]
        tables = [tables_of(self.results, name, scale) for scale in scales_of(self.results, name)]
        where = f"figure {content.figure}" if str(content.figure)[:1].isdigit() else str(content.figure)
        lines = [f"# {name}", "", f"**{content.title}**", "", f"{where} · {REGIMES[content.regime]}", ""]
        lines += ["```bash", f"weight-decay experiment={name} scale=micro jobs=2", "```", ""]
        lines += ["## What came out", "", self.claims_of(name) or "No claim rests on it.", ""]
        for table in tables:
            lines += [f"## Ends at {table.scale}", "", *_ends(table), "", _cost(table), ""]
        lines += self._figures(tables)
        lines += ["## What is run", "", *self._scales(content), ""]
        for file in (content.shared, *content.files.values()):
            if file is not None:
                text = file.read_text(encoding="utf-8").strip()
                lines += [f"`configs/experiment/{name}/{file.name}`:", "", "```yaml", text, "```", ""]
        return "\n".join(lines) + "\n"

    def claims_of(self, name: str) -> str:
        """What the claims of an experiment came to, a line each; empty where it has none."""
        if not any(claim.experiment == name for claim in CLAIMS):
            return ""
        ran = [r for r in self.judged if r.claim.experiment == name and r.verdict is not Verdict.NOT_RUN]
        if not ran:
            return "Its claims have not been run yet."
        return "\n".join(f"- {_told(result)}" for result in ran)

    def _figures(self, tables: Sequence[Tables]) -> list[str]:
        found = [figure for table in tables for figure in _words(self.results, table)]
        there = [figure for figure in found if (self.results / "figures" / figure.path.name).is_file()]
        lines = ["## Figures", ""] if there else []
        for figure in there:
            lines += [f"![{figure.alternative}](../results/figures/{figure.path.name})", ""]
            lines += [f"*{figure.title}, {figure.scale}.* {figure.caption}", ""]
        return lines

    def _scales(self, content: Declared) -> list[str]:
        rows = [["scale", "cells", "data", "model"]]
        for scale, file in content.files.items():
            grid = yaml.safe_load(file.read_text(encoding="utf-8")).get("grid", [{}])
            chosen = [_chosen(content, file, group) for group in ("data", "model")]
            rows.append([scale, str(len(expand(grid, {}))), *chosen])
        return markdown_table(rows)


def _chosen(content: Declared, file: Path, group: str) -> str:
    """The option of a group that a scale's file overrides, or its setting, or what all scales share."""
    sources = [file, content.shared]
    if (setting := _override(file, "setting")) is not None:
        sources.insert(1, CONFIGS / "setting" / f"{setting}.yaml")
    return next((option for source in sources if source and (option := _override(source, group))), "several")


def _override(file: Path, group: str) -> str | None:
    defaults = yaml.safe_load(file.read_text(encoding="utf-8")).get("defaults", [])
    return next((entry[key] for entry in defaults for key in [f"override /{group}"] if key in entry), None)


def _told(result: Result) -> str:
    early = " (pilot)" if result.pilot else ""
    text = f"**{result.verdict}**{early}: {result.claim.statement} {result.effect}, "
    text += f"holds if {result.claim.criterion}; n {result.seeds} at {result.scale}"
    if not math.isnan(result.q):
        text += f", q {result.q:.2g}"
    return text + (f"; open because: {result.reason}." if result.reason else ".")


def _words(results: Path, tables: Tables) -> list[DrawnFigure]:
    """Titles, captions and descriptions of an experiment's figures, drawing none of them."""
    with undrawn():
        try:
            if tables.experiment in DEMO:
                return [f for f in demo_figures(results, tables.scale) if f.experiment == tables.experiment]
            return figures_of(results, tables)
        except UserError:
            return []


def _ends(tables: Tables) -> list[str]:
    """A row for each cell: mean over seeds, with the standard deviation where there are several."""
    names = coordinates_of(tables)
    metrics = [metric for metric in ENDS if not missing_metrics(tables.runs, [metric])]
    rows = [["cell", *(ENDS[metric] for metric in metrics), "runs"]]
    groups = list(tables.runs.groupby(names, dropna=False, sort=True)) if names else [((), tables.runs)]
    for _, runs in groups:
        diverged = int((runs["status"] != "completed").sum())
        told = f"{len(runs)}" + (f", {diverged} diverged" if diverged else "")
        rows.append([label_of(runs.iloc[0][names]), *(_spread(runs[metric]) for metric in metrics), told])
    return markdown_table(rows)


def _spread(values: pd.Series) -> str:
    values = values.dropna()
    if values.empty:
        return "–"
    return f"{values.mean():.4g}" + (f" ± {values.std(ddof=1):.2g}" if len(values) > 1 else "")


def _cost(tables: Tables) -> str:
    return (
        f"{tables.stamp[:1].upper()}{tables.stamp[1:]}; {len(tables.runs)} runs, "
        f"{duration(float(tables.runs['seconds'].sum()))} together. ± is one standard deviation over seeds."
    )
