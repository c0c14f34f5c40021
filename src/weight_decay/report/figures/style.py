"""One look for all figures: colours that colour-blind readers can tell apart, light and dark, PNG and PDF."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from weight_decay.report.tables.read import band, missing_metrics
from weight_decay.runs.files import write_if_changed

DOTS_PER_INCH = 160
LineStyle = Literal["-"] | tuple[int, tuple[int, int]]
DASHED: LineStyle = (0, (4, 2))
DOTTED: LineStyle = (0, (1, 2))
FEW = 8
"""So many points of a curve, or fewer, are marked one by one."""


@dataclass(frozen=True)
class Theme:
    """Colours of one background. The series come from the Okabe-Ito set, adapted to the background."""

    name: str
    ink: str
    muted: str
    grid: str
    background: str
    series: tuple[str, ...]
    paper: str


LIGHT = Theme(
    name="light",
    ink="#1f2328",
    muted="#59636e",
    grid="#e4e7eb",
    background="#ffffff",
    series=("#0072b2", "#d55e00", "#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#8c6d00", "#4d4d9f", "#333333"),
    paper="#9aa0a6",
)
DARK = Theme(
    name="dark",
    ink="#e6e9ed",
    muted="#9aa5b1",
    grid="#2c333b",
    background="#14181d",
    series=("#4aa8e0", "#f0803c", "#9bd3f5", "#f2be4a", "#3cc79c", "#e39cc4", "#d1b545", "#9d9df0", "#d0d0d0"),
    paper="#6f7781",
)

COLORMAP = "viridis_r"
Draw = Callable[[Theme], Figure]


def rc(theme: Theme) -> dict[str, Any]:
    """Matplotlib settings of a theme."""
    return {
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 9.5,
        "mathtext.fontset": "dejavusans",
        "text.color": theme.ink,
        "axes.labelcolor": theme.ink,
        "axes.edgecolor": theme.muted,
        "axes.linewidth": 0.8,
        "axes.facecolor": theme.background,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 8.0,
        "axes.labelsize": 9.5,
        "axes.formatter.useoffset": False,
        "grid.color": theme.grid,
        "grid.linewidth": 0.7,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "xtick.labelcolor": theme.ink,
        "ytick.labelcolor": theme.ink,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "figure.facecolor": theme.background,
        "savefig.facecolor": theme.background,
        "legend.frameon": False,
        "legend.fontsize": 9.0,
        "lines.solid_capstyle": "round",
        "pdf.fonttype": 42,
    }


Files = tuple[tuple[Theme, str, tuple[str, ...]], ...]
_FILES: ContextVar[Files] = ContextVar("files", default=((LIGHT, "", ("png", "pdf")), (DARK, ".dark", ("png",))))
_HIDDEN = {"png": {"Software": None}, "pdf": {"CreationDate": None, "Creator": None, "Producer": None}}
"""What matplotlib would write into a file, and changes from one call to the next."""


@contextlib.contextmanager
def _only(files: Files) -> Iterator[None]:
    before = _FILES.set(files)
    try:
        yield
    finally:
        _FILES.reset(before)


def light_only(*kinds: str) -> contextlib.AbstractContextManager[None]:
    """Within it `save` writes the light theme alone, in the `kinds` named (png, pdf): in less than half the time."""
    return _only(((LIGHT, "", kinds),))


def undrawn() -> contextlib.AbstractContextManager[None]:
    """Within it `save` draws nothing and returns where the figure would be: for the words of those that are there."""
    return _only(())


def save(draw: Draw, folder: Path, name: str) -> Path:
    """Draw in both themes; writes `name`.png, `name`.pdf and `name`.dark.png, returns the path of the PNG.

    Nothing that changes from one call to the next (dates, versions) enters the files, so that the same
    tables give the same bytes and an unchanged figure keeps its file.
    """
    for theme, suffix, kinds in _FILES.get():
        with matplotlib.rc_context(rc(theme)):  # type: ignore[arg-type]
            figure = draw(theme)
            FigureCanvasAgg(figure)
            for kind in kinds:
                content = io.BytesIO()
                figure.savefig(content, format=kind, dpi=DOTS_PER_INCH, metadata=_HIDDEN[kind])
                write_if_changed(folder / f"{name}{suffix}.{kind}", content.getvalue())
                figure.set_layout_engine("none")  # the layout is found; finding it again takes as long as drawing
    return folder / f"{name}.png"


def new_figure(
    rows: int, columns: int, stamp: str, *, width: float = 4.0, height: float = 3.2
) -> tuple[Figure, list[Axes]]:
    """A figure of equal panels, stamped below with what it rests on (scale, data, seeds)."""
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.09, wspace=0.04, hspace=0.06)
    figure = Figure(figsize=(width * columns, height * rows + 0.75), layout=layout)
    axes = [figure.add_subplot(rows, columns, index + 1) for index in range(rows * columns)]
    figure.supxlabel(stamp, fontsize=8.5, color=matplotlib.rcParams["xtick.color"], x=0.01, ha="left")
    return figure, axes


def legend(figure: Figure, axis: Axes, *, columns: int, lines: dict[str, LineStyle] | None = None) -> None:
    """One legend above all panels: the labelled lines of `axis`, then what each line style means."""
    handles, labels = axis.get_legend_handles_labels()
    for name, style in (lines or {}).items():
        handles.append(Line2D([], [], color=matplotlib.rcParams["xtick.color"], linestyle=style, linewidth=1.6))
        labels.append(name)
    # As many columns as there is room for: a letter is about a twelfth of an inch wide, a handle half an inch.
    longest = max(map(len, labels), default=1)
    columns = max(1, min(columns, int(figure.get_size_inches()[0] / (0.085 * longest + 0.7))))
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, handlelength=2.6, columnspacing=1.8)


def panel_grid(count: int, most: int, stamp: str, *, width: float) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels in rows of `most`; in the last row what is left over stays empty."""
    figure, axes = new_figure(-(-count // most), most, stamp, width=width)
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes[:count]


def legend_within(axis: Axes, fontsize: float) -> None:
    """A legend in a panel of its own, each label once."""
    handles, labels = axis.get_legend_handles_labels()
    named = dict(zip(labels, handles, strict=True))
    axis.legend(named.values(), named.keys(), fontsize=fontsize, handlelength=1.8, loc="best")


def faded(color: str, theme: Theme) -> str:
    """A colour of ours, drained towards the grey that marks what is the paper's."""
    mixed = [0.4 * ours + 0.6 * grey for ours, grey in zip(to_rgb(color), to_rgb(theme.paper), strict=True)]
    return to_hex((mixed[0], mixed[1], mixed[2]))


def shades(theme: Theme, count: int) -> list[str]:
    """`count` colours for an ordered quantity, dark to light or the reverse, none lost in the background."""
    low, high = (0.05, 0.85) if theme.name == "light" else (0.25, 1.0)
    positions = np.linspace(low, high, count) if count > 1 else [low]
    return [to_hex(matplotlib.colormaps["viridis"](position)) for position in positions]


def curve(
    axis: Axes,
    curves: pd.DataFrame,
    x: str,
    metric: str,
    color: str,
    *,
    factor: float = 1.0,
    geometric: bool = False,
    **line: Any,
) -> None:
    """The mean of `metric` over seeds against `x`, with a band of ± 1 standard deviation; times `factor`.

    Few measurements get markers, so that nobody takes straight lines between them for a course. `geometric`: mean and
    deviation of the logarithm, for logarithmic axes, where a band must not reach below 0. `line`: as matplotlib's
    `plot` takes it.
    """
    if geometric and metric in curves and (curves[metric].dropna() > 0).all():
        drawn = band(curves.assign(**{metric: np.log(curves[metric])}), x, metric)
        mean = np.exp(drawn["mean"]) * factor
        low, high = mean / np.exp(drawn["std"]), mean * np.exp(drawn["std"])
    else:
        drawn = band(curves, x, metric)
        mean = drawn["mean"] * factor
        low, high = mean - drawn["std"] * factor, mean + drawn["std"] * factor
    if len(drawn) <= FEW and not line.get("marker"):
        line |= {"marker": "o", "markersize": 3.5}
    axis.plot(drawn[x], mean, color=color, **{"label": "_", "linewidth": 1.8, **line})
    if (high > low).any():
        axis.fill_between(drawn[x], low, high, color=color, alpha=0.18, linewidth=0)


def with_average(
    axis: Axes, curves: pd.DataFrame, x: str, metric: str, color: str, thin: float, **line: Any
) -> list[str]:
    """The curve of `metric` and, dashed and `thin`, that of the EMA where it was measured; returns what was drawn."""
    curve(axis, curves, x, metric, color, **line)
    averaged = f"ema/{metric}"
    if missing_metrics(curves, [averaged]):
        return [metric]
    curve(axis, curves, x, averaged, color, **{**line, "label": "_", "linestyle": DASHED, "linewidth": thin})
    return [metric, averaged]


def decay_colors(theme: Theme, strengths: Iterable[float]) -> dict[float, str]:
    """A colour for each λ, the same in every figure: none, the smallest, the next, ..."""
    places = itertools.cycle((0, 4, 5, 3, 6, 7, 2))
    return {decay: theme.series[next(places) if decay > 0 else 1] for decay in sorted(set(strengths))}


def plain_log(axis: Axes, which: Literal["x", "y"] = "y") -> None:
    """A logarithmic axis whose ticks are plain numbers, dense enough to be read off, never crowded."""
    axis.set(**{f"{which}scale": "log"})
    scaled = axis.xaxis if which == "x" else axis.yaxis
    low, high = scaled.get_view_interval()
    crowded = high / low > (30 if which == "x" else 300)
    scaled.set_major_locator(LogLocator(base=10, subs=(1,) if crowded else (1, 2, 5), numticks=9))
    scaled.set_major_formatter(FuncFormatter(_plain))
    scaled.set_minor_formatter(NullFormatter())


def empty(axis: Axes, text: str, theme: Theme) -> None:
    """Say in place of a panel why there is nothing to see."""
    axis.set_axis_off()
    axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center", color=theme.muted)


def _plain(value: float, _: int) -> str:
    if 1e-3 <= value < 1e5:
        return f"{value:g}"
    mantissa, exponent = f"{value:.0e}".split("e")
    return rf"${mantissa} \times 10^{{{int(exponent)}}}$" if mantissa != "1" else f"$10^{{{int(exponent)}}}$"
