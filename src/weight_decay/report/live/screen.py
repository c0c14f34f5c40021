"""What `watch.py` has seen as lines of text: once for a pipe, again and again for `app.py`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TextIO

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from weight_decay.report.live.status import clock
from weight_decay.report.live.tail import sparkline
from weight_decay.report.live.watch import Counted, Running, View, Watch

_STYLES = {
    "running": "cyan",
    "completed": "green",
    "diverged": "yellow",
    "failed": "red",
    "damaged": "red",
    "interrupted": "magenta",
    "stale": "magenta",
}
_ALWAYS = ("completed", "running", "waiting", "diverged", "failed")
_IF_ANY = ("interrupted", "damaged", "stale")
_MOST_ENDED = 5


# -- drawing -----------------------------------------------------------------------------------------------------


def draw(view: View, width: int, height: int | None) -> list[Text]:
    """The view as lines of at most `width` columns; as many as there are, or at most `height`."""
    most_ended = _MOST_ENDED if height is None else min(_MOST_ENDED, max(0, height // 5))
    experiments = _experiments(sorted(view.experiments, key=lambda counted: -counted.counts["running"]))
    if height is not None and len(experiments) > (most := max(1, height // 4)):
        left = Text(f"… and {len(experiments) - most + 1} more experiments", style="dim")
        experiments = [*experiments[: most - 1], left]
    ended = [
        Text.assemble(
            (f"{one.status:9s}", _STYLES[one.status]),
            f"  {time.strftime('%H:%M', time.localtime(one.at))}  {one.cell}  {one.experiment}  ",
            (one.detail, "dim"),
        )
        for one in view.ended[:most_ended]
    ]
    below = [Text(), *experiments]
    if ended:
        below += [Text(), Text("last finished", style="bold"), *ended]
    room = None if height is None else max(1, height - len(below) - 1)
    header, *rows = _running(view.running[:room], width)
    hidden = view.running_in_all - len(rows)
    if not rows:
        rows = [Text("nothing is running", style="dim")]
    elif hidden > 0:
        hidden += room == len(rows)
        rows = [*(rows[:-1] if room == len(rows) else rows), Text(f"… and {hidden} more", style="dim")]
    lines = [header, *rows, *below][:height]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return lines


def _running(cells: Sequence[Running], width: int) -> list[Text]:
    """The header and a line for each running cell; columns that do not fit are left out, the least telling first."""
    several = len({cell.experiment for cell in cells}) > 1
    names = [f"{cell.cell}  {cell.experiment}" if several else cell.cell for cell in cells]
    curves = [("loss", [cell.loss for cell in cells]), ("eff. LR", [cell.effective_lr for cell in cells])]
    if any(cell.jacobian for cell in cells):
        curves.append(("‖J‖²", [cell.jacobian for cell in cells]))
    facts = [
        ["step", *(_steps(cell) for cell in cells)],
        ["left", *(_left(cell) for cell in cells)],
        ["speed", *("" if cell.speed is None else f"{cell.speed:.3g}/s" for cell in cells)],
    ]
    facts = facts[: 3 if width >= 72 else 2 if width >= 52 else 1]
    longest = max([cell_len(name) for name in names], default=4)
    widths = [max(len(value) for value in column) for column in facts]
    room = width - sum(widths) - 2 * len(widths)
    named = min(longest, max(24 if room > 45 else 12, room // 3))
    for shown in range(len(curves), 0, -1):
        block = min(24, (room - named) // shown - 11)
        if block >= 6:
            break
    else:
        block, shown, named = 0, 0, min(longest, max(1, room))
    lines = []
    title = "running in " + cells[0].experiment if cells and not several else "running"
    for row, name in enumerate([title, *names]):
        line = Text(set_cell_size(name, named) if cell_len(name) <= named else set_cell_size(name, named - 1) + "…")
        for column, size in zip(facts, widths, strict=True):
            line.append("  " + column[row].rjust(size))
        for label, series in curves[:shown]:
            if row == 0:
                line.append("  " + label.ljust(block + 9))
                continue
            points = series[row - 1]
            line.append("  " + sparkline(points, block).ljust(block), style=_STYLES["running"])
            line.append(f" {points[-1][1]:<8.3g}" if points else " " * 9)
        if row == 0:
            line.stylize("bold")
        lines.append(line)
    return lines


def _steps(cell: Running) -> str:
    return f"{'·' if cell.step is None else cell.step}/{'?' if cell.total is None else cell.total}"


def _left(cell: Running) -> str:
    if cell.silent is not None:
        return f"silent {clock(cell.silent)}"
    return "" if cell.seconds_left is None else clock(cell.seconds_left)


def _experiments(experiments: Sequence[Counted]) -> list[Text]:
    lines = []
    longest = max((len(one.experiment) for one in experiments), default=0)
    digits = max((len(str(count)) for one in experiments for count in one.counts.values()), default=1)
    for one in experiments:
        line = Text.assemble((f"{one.experiment.ljust(longest)}  {one.scale:5s}", "bold"))
        for status in (*_ALWAYS, *(status for status in _IF_ANY if one.counts[status])):
            count = one.counts[status]
            line.append(f"  {count:{digits}d} {status}", style=_STYLES.get(status, "") if count else "dim")
        lines.append(line)
    return lines


def print_once(watch: Watch, stream: TextIO) -> None:
    """One look, as lines: for a pipe, a file, a terminal that cannot be drawn on."""
    console = Console(file=stream, highlight=False, soft_wrap=True)
    width = console.width if console.is_terminal else 160
    for line in draw(watch.look(), width, None):
        line.rstrip()
        console.print(line)


def can_be_live(stream: TextIO) -> bool:
    """Whether a live view can be drawn on the stream: a terminal that is not a dumb one."""
    return stream.isatty() and not Console(file=stream).is_dumb_terminal
