"""The page of the paper: every claim with its verdict, then every figure that has runs, in the paper's order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from markupsafe import Markup

from weight_decay.errors import UserError
from weight_decay.report.claims.measures import SCALES, judged_claims
from weight_decay.report.claims.verdict import DECIDED, Result, Verdict
from weight_decay.report.figures.demo import DrawnFigure
from weight_decay.report.figures.forest import forest
from weight_decay.report.figures.gallery import Section, write_page
from weight_decay.report.figures.paper import DEMO, FIGURES, draw_experiments, own_experiments
from weight_decay.report.page.claims import claims_html, count_line, paper_order, scale_order
from weight_decay.report.page.templates import render
from weight_decay.report.tables.read import scales_of, tables_of

TITLE = "What does weight decay do? Claims and figures"
_CLAIMS = (
    "How each claim is decided was written down before the runs that decide it (configs/claims): endpoint, test, the "
    "smallest effect worth having or the margin of equality, number of seeds. q is p corrected for the number of "
    "claims. The numbers in a row are those of the largest scale that was run."
)
_ADVISE = (
    "Describe a run and see what decay would do to it, before it is started: formulas and the study's own numbers, "
    "predicted and not measured. In the terminal the same is weight-decay advise."
)
_SLIDERS = (
    # name, label, least, most, start: powers of ten, but for the warm-up's percent
    ("parameters", "parameters", 5.0, 11.0, 8.09),
    ("samples", "training set: sequences, or images", 3.0, 10.0, 7.1),
    ("passes", "passes", 0.0, 3.0, 0.0),
    ("batch", "batch: sequences, or images", 0.0, 5.0, 2.4),
    ("lr", "learning rate η at its peak", -5.0, 0.0, -3.22),
    ("decay", "weight decay λ", -6.0, 2.0, -1.0),
    ("warmup", "warm-up", 0.0, 20.0, 1.0),
)
_CHOICES = (
    ("optimizer", "optimizer", (("adamw", "AdamW"), ("sgd", "SGD"))),
    ("shape", "schedule", (("cosine", "cosine"), ("linear", "linear"), ("constant", "constant"), ("drop", "a drop"))),
    ("weights", "weights stored in", (("float32", "float32"), ("bfloat16", "bfloat16"))),
)
"""What advise.html asks, from which advise.js predicts as advise/dynamics.py does."""
_FIRST = ("fig02_cifar10", "fig06_language_model")
"""The two figures that the page opens with: many passes, and one."""
_CLOSING = (
    "What a figure marks as the paper's was read off its plots, results/reference. Several scales of one "
    "experiment stand below one another, the largest first."
)
_ALSO_SHOWS = {
    "fig03_grid_tiny_imagenet": "3, 4",
    "fig11a_vgg": "11a, 12a",
    "fig11b_resnet18": "11b, 12b",
    "fig11c_resnet34": "11c, 12c",
}
"""Figures of the paper that an experiment shows, where its tables name only the first."""


@dataclass(frozen=True)
class Report:
    """What is on the page and what is not."""

    page: Path
    counts: str
    drawn: list[str]
    without_tables: list[str]
    refused: dict[str, str]
    """Experiment and scale whose tables cannot be drawn, and why."""
    without_figure: list[str]
    """Tables of experiments that the page does not show: the demo's, which has a page of its own."""

    def describe(self) -> str:
        """A few lines for the terminal."""
        lines = [f"Claims:  {self.counts or 'none'}", f"Figures: of {len(self.drawn)} experiments"]
        if self.without_tables:
            lines.append(f"Not run: {', '.join(self.without_tables)}")
        lines += [f"Not drawn: {what}: {why}" for what, why in self.refused.items()]
        return "\n".join([*lines, f"Page:    {self.page.resolve().as_uri()}"])


def report_page(results: Path, target: Path, jobs: int = 1) -> Report:
    """Judge every claim, draw every figure that has tables under `results`, and write both to `target`.

    `jobs` processes draw at a time.
    """
    claims = judged_claims(results)
    chapters, refused = _chapters(results, jobs)
    missing = [name for name in in_paper_order() if not scales_of(results, name)]
    demo = [name for name in DEMO if scales_of(results, name)]
    report = Report(target, count_line(claims), list(chapters), missing, refused, demo)
    forests = [forest(results, claims, scale) for scale in reversed(SCALES)]
    opening = [
        *(figure for figure in forests if figure is not None),
        *(chapters[name][0] for name in _FIRST if name in chapters),
    ]
    sections = [
        Section("In short", _in_short(claims), opening, anchor="in-short"),
        Section("The claims", _CLAIMS, body=claims_html(claims, chapters.keys()), short="Claims", anchor="claims"),
        Section("What would it do to your run?", _ADVISE, body=sliders(), short="Advise", anchor="advise"),
        *(_section(results, name, figures) for name, figures in chapters.items()),
    ]
    if missing or refused or report.without_figure:
        sections.append(_absent(report))
    write_page(results, target, TITLE, sections, kind="webp", parts=("claims", "advise"), closing=_CLOSING)
    return report


def _in_short(claims: Sequence[Result]) -> str:
    """What came out, in a sentence or two."""
    ran = [claim for claim in claims if claim.verdict is not Verdict.NOT_RUN]
    if not ran:
        return "Weight decay helps in two ways that have little to do with each other; nothing was run yet."
    decided = sum(claim.verdict in DECIDED for claim in ran)
    pilots = " These runs are older than the protocol: pilots." if any(claim.pilot for claim in ran) else ""
    return (
        f"With many passes over little data, weight decay and a large learning rate find better networks; in one pass "
        f"over much data, decay keeps the effective learning rate up. Of {len(ran)} claims that were run {decided} are "
        f"decided: {count_line(claims)}.{pilots}"
    )


def in_paper_order() -> list[str]:
    """All experiments that have figures: those of the paper's figures, of its tables, then ours."""
    return sorted(FIGURES, key=paper_order)


def _chapters(results: Path, jobs: int) -> tuple[dict[str, list[DrawnFigure]], dict[str, str]]:
    """Per experiment its figures at all scales, the largest first; and what could not be drawn."""
    chapters: dict[str, list[DrawnFigure]] = {}
    refused: dict[str, str] = {}
    wanted = [
        (name, scale)
        for name in (*in_paper_order(), *own_experiments(results))
        for scale in sorted(scales_of(results, name), key=scale_order, reverse=True)
    ]
    for (name, scale), figures in draw_experiments(results, wanted, jobs).items():
        if isinstance(figures, UserError):
            refused[f"{name} at {scale}"] = str(figures)
        else:
            titled = [replace(figure, title=f"{figure.title}, {scale}") for figure in figures]
            chapters[name] = chapters.get(name, []) + titled
    return chapters, refused


def _section(results: Path, name: str, figures: list[DrawnFigure]) -> Section:
    summary = tables_of(results, name, figures[0].scale).summary
    title = str(summary["title"].iloc[0])
    # With changed settings (NAME+3f2a1c) it is no figure of the paper either.
    kind = paper_order(name)[0] if name in FIGURES else 2
    if kind == 2:
        words = name.replace("_", " ")
        heading = title if name in FIGURES else f"{title} ({name})"
        return Section(heading, "Not a figure of the paper.", figures, short=words, anchor=name)
    shown = _ALSO_SHOWS.get(name) or str(summary["figure"].iloc[0])
    shown = shown.removeprefix("tables ")
    singular, plural, short = ("Figure", "Figures", "Fig.") if kind == 0 else ("Table", "Tables", "Tab.")
    heading = f"{plural if ',' in shown else singular} {shown}"
    return Section(heading, f"{title}.", figures, short=f"{short} {shown}", anchor=name)


def sliders() -> Markup:
    """The interactive part of the page: sliders for a run, and what decay will do to it. Works offline."""
    return render("advise.html", sliders=_SLIDERS, choices=_CHOICES)


def _absent(report: Report) -> Section:
    left_out = {"Not run yet": report.without_tables, "Run, but shown by no figure here": report.without_figure}
    body = render("absent.html", left_out=left_out, refused=report.refused)
    words = "Experiments without a figure here."
    return Section("Not on this page", words, body=body, short="Not run", anchor="absent")
