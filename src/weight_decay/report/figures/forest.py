"""All claims in one figure: each effect with its interval, in units of the smallest effect worth having."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from weight_decay.report.claims.verdict import Result, Verdict
from weight_decay.report.figures.demo import DrawnFigure
from weight_decay.report.figures.style import Theme, save

COLORS = {Verdict.HOLDS: 2, Verdict.FAILS: 3, Verdict.NO_EFFECT: 3, Verdict.INCONCLUSIVE: None}
"""Colour of a verdict: its place in the theme's series, None for grey."""
FILLED = {Verdict.HOLDS: True, Verdict.FAILS: True, Verdict.NO_EFFECT: False, Verdict.INCONCLUSIVE: False}
FARTHEST = 300.0
"""Where an interval without end stops on the axis."""


def forest(results: Path, judged: Sequence[Result], scale: str) -> DrawnFigure | None:
    """The forest plot of one scale into `results`/figures; None where nothing was run at it."""
    rows = [result for result in judged if result.scale == scale and result.interval is not None]
    if not rows:
        return None
    path = save(lambda theme: _forest(rows, scale, theme), results / "figures", f"claims-{scale}")
    return DrawnFigure(
        path,
        f"All claims at {scale}",
        "Effect and 95 % interval of every claim, over the smallest effect worth having (or the margin of equality): "
        "within the grey band an effect is too small to matter. A claim with an arrow holds to the right of the band, "
        "one with = inside it. Grey diamonds: the paper's own effect. Hollow: undecided, or no effect.",
        f"Forest plot of {len(rows)} claims with their intervals and verdicts.",
        "",
        scale,
    )


def unit(result: Result) -> float:
    """What a claim's effect is divided by on the axis: its margin, or its smallest effect worth having."""
    claim = result.claim
    return 0.5 if claim.test == "share" else claim.margin or claim.smallest or 1.0


def _forest(rows: Sequence[Result], scale: str, theme: Theme) -> Figure:
    figure = Figure(figsize=(9.2, 0.235 * len(rows) + 1.5), layout="constrained")
    axis = figure.subplots()
    axis.axvspan(-1, 1, color=theme.muted, alpha=0.15, linewidth=0)
    axis.axvline(0, color=theme.muted, linewidth=0.8)
    for place, result in enumerate(reversed(rows)):
        assert result.interval is not None
        by, centre = unit(result), result.claim.centre
        mean, low, high = (
            max(-FARTHEST, min(FARTHEST, (value - centre) / by)) if not math.isnan(value) else 0.0
            for value in (result.interval.mean, result.interval.low, result.interval.high)
        )
        index = COLORS[result.verdict]
        color = theme.muted if index is None else theme.series[index]
        face = color if FILLED[result.verdict] else "none"
        axis.plot([low, high], [place, place], color=color, linewidth=1.8, solid_capstyle="butt")
        axis.plot([mean], [place], marker="o", color=color, markerfacecolor=face, markersize=5.5)
        if result.claim.paper is not None:
            paper = (result.claim.paper - centre) / by
            axis.plot([paper], [place], marker="D", color=theme.paper, markersize=4, linestyle="", alpha=0.7)
    labels = [f"{result.claim.key.replace('_', ' ')} {_sign(result)}" for result in reversed(rows)]
    axis.set_yticks(range(len(rows)), labels, fontsize=8)
    axis.set_ylim(-0.7, len(rows) - 0.3)
    axis.set_xscale("symlog", linthresh=1)
    axis.set_xlim(-FARTHEST, FARTHEST)
    axis.set_xticks([-100, -10, -1, 0, 1, 10, 100], ["−100", "−10", "−1", "0", "1", "10", "100"])
    axis.set_xlabel("effect, in smallest effects worth having")
    seeds = sorted({result.seeds for result in rows})
    named = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    pilots = "; runs older than the protocol" if any(result.pilot for result in rows) else ""
    axis.set_title(f"scale {scale} · {named} seeds, 95 % intervals{pilots}", fontsize=9, color=theme.muted)
    handles = [
        Line2D([], [], marker="o", linestyle="", color=theme.series[2], label="holds"),
        Line2D([], [], marker="o", linestyle="", color=theme.series[3], label="fails"),
        Line2D([], [], marker="o", linestyle="", color=theme.series[3], markerfacecolor="none", label="no effect"),
        Line2D([], [], marker="o", linestyle="", color=theme.muted, markerfacecolor="none", label="inconclusive"),
        Line2D([], [], marker="D", linestyle="", color=theme.paper, markersize=4, label="the paper's effect"),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=5, fontsize=8, handletextpad=0.3)
    return figure


def _sign(result: Result) -> str:
    return "=" if result.claim.test == "equivalent" else "→"
