"""One self-contained HTML page: effects and figures, each with its command, data, cost and runs."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path

from weight_decay.report.claims.demo import Effect, demo_effects
from weight_decay.report.figures.demo import DrawnFigure, demo_figures
from weight_decay.report.page.style import CSS, SCRIPT
from weight_decay.report.tables.read import Tables, tables_of
from weight_decay.runs.files import write_if_changed


@dataclass(frozen=True)
class Section:
    """A chapter of the page: what the runs say, then the figures that show it.

    `body` is HTML that stands after the introduction; `short` is the chapter's name among the links on top, and
    `anchor` the end of its address, where they differ from the heading and `part-<number>`.
    """

    heading: str
    introduction: str
    effect: Effect | None
    figures: list[DrawnFigure]
    body: str = ""
    short: str = ""
    anchor: str = ""


DEMO_TITLE = "What does weight decay do?"
_OVER_TRAINING = (
    "Image classification with many passes over a small training set, by SGD without momentum: first at a "
    "large or a small learning rate η, then, for all, at a very small one."
)
_UNDER_TRAINING = (
    "A small language model that sees every token once, trained by AdamW with warm-up and cosine decay, "
    "with and without weight decay."
)

_REPLAY = (
    "A run's own gradients, in float32, drive copies of its weights in bfloat16 with and without weight decay. Nothing "
    "else differs between the two, so their distance is what decay did."
)


def demo_page(results: Path, target: Path, scale: str = "micro") -> Path:
    """Draw the demo figures and write the page of both regimes to `target`; returns it.

    Raises UserError when a table of the demo is absent.
    """
    over, under, replay = demo_effects(results, scale)
    first, second = demo_figures(results, scale)
    sections = [
        Section("Over-training", _OVER_TRAINING, over, [first]),
        Section("Under-training", _UNDER_TRAINING, under, [second]),
        Section("Decay in bfloat16", _REPLAY, replay, []),
    ]
    return write_page(results, target, DEMO_TITLE, sections)


def embedded_png(image: Path) -> str:
    """A PNG file as the address of an image that is part of the page, byte for byte."""
    return f"data:image/png;base64,{base64.b64encode(image.read_bytes()).decode('ascii')}"


@dataclass(frozen=True)
class Extras:
    """What a page has beside its sections: CSS, JavaScript, and a closing sentence."""

    style: str = ""
    script: str = ""
    closing: str = ""


_PLAIN = Extras()


def write_page(
    results: Path,
    target: Path,
    title: str,
    sections: list[Section],
    *,
    embedded: Callable[[Path], str] = embedded_png,
    extras: Extras = _PLAIN,
) -> Path:
    """Write one HTML file that needs nothing else: no network, no other file, no script to be read.

    Images are embedded in both themes; each figure carries the command, data, scale, seeds, cost, commit
    and run ids of the tables in `results` it was drawn from. `extras` are added to the page's own. Returns `target`.
    """
    body = "".join(_section(results, index, section, embedded) for index, section in enumerate(sections, start=1))
    links = "".join(
        f'<a href="#{_anchor(index, section)}">{escape(section.short or section.heading)}</a>'
        for index, section in enumerate(sections, start=1)
    )
    more = f" {extras.closing}" if extras.closing else ""
    content = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>\n{CSS}{extras.style}</style>\n</head>\n<body>\n"
        f'<header><h1>{escape(title)}</h1><nav aria-label="Sections">{links}</nav></header>\n'
        f"<main>\n{_SYMBOLS}{body}</main>\n"
        "<footer>Every number and line on this page is computed from the tables in "
        f"<code>{escape(results.name)}/tables</code>.{escape(more)}</footer>\n"
        f"<script>{SCRIPT}{extras.script}</script>\n</body>\n</html>\n"
    )
    write_if_changed(target, content.encode("utf-8"))
    return target


_SYMBOLS = """<details class="symbols"><summary>The symbols</summary><dl>
<dt>η</dt><dd>learning rate</dd>
<dt>λ</dt><dd>weight decay: every step shrinks the weights by the factor 1 − ηλ</dd>
<dt>‖w‖</dt><dd>Euclidean norm of all weights</dd>
<dt>EMA</dt><dd>exponential moving average of the weights along the run,
evaluated as a network of its own</dd>
<dt>‖J‖²</dt><dd>mean over training images of the squared Frobenius norm of the
Jacobian of the logits with respect to the weights</dd>
<dt>η/‖w‖</dt><dd>effective learning rate of AdamW: how far a step turns the weights</dd>
</dl></details>
"""


def _anchor(index: int, section: Section) -> str:
    return escape(section.anchor) or f"part-{index}"


def _section(results: Path, index: int, section: Section, embedded: Callable[[Path], str]) -> str:
    parts = [
        f'<section id="{_anchor(index, section)}"><h2>{escape(section.heading)}</h2>\n',
        f'<p class="introduction">{escape(section.introduction)}</p>\n',
        section.body,
    ]
    if section.effect is not None:
        parts.append(_effect(section.effect))
    for number, figure in enumerate(section.figures, start=1):
        parts.append(_figure(results, f"{index}-{number}", figure, embedded))
    return "".join([*parts, "</section>\n"])


def _effect(effect: Effect) -> str:
    findings = "".join(
        f'<li class="{_verdict_class(item.holds)}"><span class="verdict">{item.verdict}</span>'
        f"<span><strong>{escape(item.statement)}.</strong> "
        f'<span class="numbers">{_number(item.numbers)}</span></span></li>\n'
        for item in effect.findings
    )
    head = "".join(f'<th scope="col">{escape(cell) or "cell"}</th>' for cell in effect.header)
    rows = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{_number(cell)}</td>" for cell in row[1:])
        + "</tr>\n"
        for row in effect.rows
    )
    caution = '<p class="caution">One seed: a small difference may be chance.</p>\n' if effect.tables.seeds == 1 else ""
    return (
        f'<ul class="findings">\n{findings}</ul>\n{caution}'
        f'<div class="scroll" role="region" aria-label="{escape(effect.title)}" tabindex="0"><table>'
        f"<caption>{escape(effect.title)} <span>{escape(effect.stamp)}</span></caption>"
        f"<thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table></div>\n"
    )


def _number(text: str) -> str:
    """Escaped text in which a number and its unit stay on one line."""
    return escape(text).replace(" %", "&nbsp;%").replace(" points", "&nbsp;points").replace("e-", "e&#8209;")


def _verdict_class(holds: bool | None) -> str:
    return {True: "yes", False: "no", None: "unknown"}[holds]


def _figure(results: Path, key: str, figure: DrawnFigure, embedded: Callable[[Path], str]) -> str:
    # A figure of several experiments has no provenance of its own: each of theirs stands with its figure.
    made = _provenance(tables_of(results, figure.experiment, figure.scale)) if figure.experiment else ""
    dark = figure.path.with_name(f"{figure.path.stem}.dark.png")
    return (
        f'<figure><input type="checkbox" class="enlarge" id="enlarge-{key}" '
        f'aria-label="Enlarge the figure: {escape(figure.title)}"><label for="enlarge-{key}"><picture>'
        f'<source media="(prefers-color-scheme: dark)" srcset="{embedded(dark)}">'
        f'<img src="{embedded(figure.path)}" alt="{escape(figure.alternative)}"></picture></label>\n'
        f"<figcaption><strong>{escape(figure.title)}.</strong> {escape(figure.caption)}</figcaption>\n"
        f"{made}</figure>\n"
    )


def _provenance(tables: Tables) -> str:
    runs = tables.runs
    facts = [
        ("Command", f"<code>{escape(', '.join(_distinct(tables, 'command')))}</code>"),
        ("Scale", escape(tables.scale)),
        (
            "Data",
            escape(f"{tables.data} (split {', '.join(_distinct(tables, 'data_split')) or 'not recorded'})"),
        ),
        ("Seeds", escape(", ".join(_distinct(tables, "seed")))),
        (
            "Cost",
            escape(f"{duration(float(runs['seconds'].sum()))} for {len(runs)} runs on {_devices(tables)}"),
        ),
        ("Commit", f"<code>{escape(', '.join(_distinct(tables, 'git_commit')))}</code>"),
        ("Runs", " ".join(f"<code>{escape(run)}</code>" for run in runs["run_id"])),
    ]
    listed = "".join(f"<dt>{name}</dt><dd>{value}</dd>\n" for name, value in facts)
    return f'<details class="provenance"><summary>How this was made</summary><dl>\n{listed}</dl></details>\n'


def _distinct(tables: Tables, column: str) -> list[str]:
    return sorted({str(value) for value in tables.runs[column].dropna()})


def _devices(tables: Tables) -> str:
    return ", ".join(_distinct(tables, "device")) or "an unrecorded device"


def duration(seconds: float) -> str:
    """Seconds as a reader says them: 42 s, 3 min 20 s, 5 h 4 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
