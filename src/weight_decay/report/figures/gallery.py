"""One self-contained HTML page: effects and figures, each with its command, data, cost and runs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from markupsafe import Markup
from PIL import Image

from weight_decay.report.claims.demo import Effect, demo_effects
from weight_decay.report.figures.demo import DrawnFigure, demo_figures
from weight_decay.report.page.templates import render
from weight_decay.report.tables.numbers import duration
from weight_decay.report.tables.read import Tables, tables_of
from weight_decay.runs.files import write_if_changed


@dataclass(frozen=True)
class Section:
    """A chapter of the page: what the runs say, then the figures that show it.

    `body` is rendered HTML that stands after the introduction; `short` is the chapter's name among the links on top,
    and `anchor` the end of its address, where they differ from the heading and `part-<number>`.
    """

    heading: str
    introduction: str
    figures: Sequence[DrawnFigure] = ()
    effect: Effect | None = None
    body: Markup | None = None
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
        Section("Over-training", _OVER_TRAINING, [first], over),
        Section("Under-training", _UNDER_TRAINING, [second], under),
        Section("Decay in bfloat16", _REPLAY, effect=replay),
    ]
    return write_page(results, target, DEMO_TITLE, sections)


def write_page(
    results: Path,
    target: Path,
    title: str,
    sections: Sequence[Section],
    *,
    kind: Literal["png", "webp"] = "png",
    parts: Sequence[str] = (),
    closing: str = "",
) -> Path:
    """Write one HTML file that needs nothing else: no network, no other file, no script to be read.

    Images are embedded in both themes, as `kind`; each figure carries the command, data, scale, seeds, cost, commit
    and run ids of the tables in `results` it was drawn from. What a page has beside its sections: style sheets and
    scripts, by their common names in `parts`, and a `closing` sentence. Returns `target`.
    """
    chapters = [_chapter(results, index, section, kind) for index, section in enumerate(sections, start=1)]
    tables = f"{results.name}/tables"
    content = render(
        "page.html", title=title, chapters=chapters, parts=["page", *parts], tables=tables, closing=closing
    )
    write_if_changed(target, content.encode("utf-8"))
    return target


def _embedded(image: Path, kind: str) -> str:
    """A PNG file as the address of an image that is part of the page: as it is, or a webp, in a third of its bytes."""
    content = image.read_bytes()
    if kind == "webp":
        written = io.BytesIO()
        with Image.open(image) as opened:
            opened.convert("RGB").save(written, "webp", lossless=True, quality=75)
        content = written.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _chapter(results: Path, index: int, section: Section, kind: str) -> dict[str, Any]:
    figures = [
        {
            "key": f"{index}-{number}",
            "drawn": figure,
            "light": _embedded(figure.path, kind),
            "dark": _embedded(figure.path.with_name(f"{figure.path.stem}.dark.png"), kind),
            # A figure of several experiments has no provenance of its own: each of theirs stands with its figure.
            "facts": _provenance(tables_of(results, figure.experiment, figure.scale)) if figure.experiment else [],
        }
        for number, figure in enumerate(section.figures, start=1)
    ]
    return {"section": section, "anchor": section.anchor or f"part-{index}", "figures": figures}


def _provenance(tables: Tables) -> list[tuple[str, list[str], bool]]:
    """Name, values, and whether they are code, of each thing to know about how a figure was made."""
    runs = tables.runs
    split = ", ".join(_distinct(tables, "data_split")) or "not recorded"
    devices = ", ".join(_distinct(tables, "device")) or "an unrecorded device"
    return [
        ("Command", [", ".join(_distinct(tables, "command"))], True),
        ("Scale", [tables.scale], False),
        ("Data", [f"{tables.data} (split {split})"], False),
        ("Seeds", [", ".join(_distinct(tables, "seed"))], False),
        ("Cost", [f"{duration(float(runs['seconds'].sum()))} for {len(runs)} runs on {devices}"], False),
        ("Commit", [", ".join(_distinct(tables, "git_commit"))], True),
        ("Runs", [str(run) for run in runs["run_id"]], True),
    ]


def _distinct(tables: Tables, column: str) -> list[str]:
    return sorted({str(value) for value in tables.runs[column].dropna()})
