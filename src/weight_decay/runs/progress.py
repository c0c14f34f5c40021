"""How far runs are, for whoever watches: a bar in a terminal, one display for several runs at once, lines in a log."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tqdm import tqdm

EVERY = 30.0
"""Seconds between two lines of a run in a log."""
SHORT = {"batch/loss": "loss", "test/error": "test error", "val/loss": "val loss", "ema/val/loss": "EMA val loss"}
"""What is shown of a run's newest numbers, the most telling last."""
NARROW = 100
"""Columns of a terminal below which one number must do beside the bar."""


class Slot(ctypes.Structure):
    """What a worker says of its run, in memory that it shares with the process that draws; no lock is needed."""

    _fields_ = (
        ("title", ctypes.c_wchar * 100),
        ("told", ctypes.c_wchar * 60),
        ("step", ctypes.c_double),
        ("total", ctypes.c_double),
        ("began", ctypes.c_double),
    )


class _Place:
    """Where this process shows its progress: its slot and how it sends a line on, or neither."""

    slot: Slot | None = None
    send: Callable[[str], None] | None = None


def draw_elsewhere(slot: Slot, send: Callable[[str], None]) -> None:
    """From now on this process draws nothing itself: `slot` has its run, and `send` takes lines for the user."""
    _Place.slot, _Place.send = slot, send


def tell(text: str) -> None:
    """One line for the user, which breaks no bar."""
    if _Place.send is not None:
        _Place.send(text)
    else:
        tqdm.write(text, file=sys.stderr)


def shorter(title: str, width: int) -> str:
    """A title in `width` characters at most; what is left out is in its middle, since cells differ at both ends."""
    if len(title) <= width:
        return title
    tail = (width - 1) // 2
    return f"{title[: width - 1 - tail]}…{title[len(title) - tail :]}"


class Progress:
    """One run: steps done, newest loss and error, time left."""

    def __init__(self, total: int, title: str, shown: bool) -> None:
        self._total, self._title, self._step = total, title, 0
        self._bar: tqdm[Any] | None = None
        self._slot = _Place.slot if shown else None
        self._lines = shown and self._slot is None and not sys.stderr.isatty()
        self._began = self._told = time.monotonic()
        self._latest = ""
        if self._slot is not None:
            self._slot.step, self._slot.total, self._slot.began = 0, total, time.time()
            self._slot.told, self._slot.title = "", title[:100]
        elif shown and not self._lines:
            self._bar = tqdm(
                total=total, mininterval=0.2, maxinterval=1e9, dynamic_ncols=True,
                bar_format="{desc} {percentage:3.0f}%|{bar}| {remaining} left{postfix}",
            )  # fmt: skip

    def show(self, step: int, latest: Mapping[str, Any]) -> None:
        """Move to `step` and show the newest loss and error."""
        if self._bar is None and self._slot is None and not self._lines:
            return
        said = [f"{name} {latest[key]:.4g}" for key, name in SHORT.items() if latest.get(key) is not None]
        self._step, self._latest = step, ", ".join(said[-2:])
        if self._slot is not None:
            self._slot.step, self._slot.told = step, self._latest[:60]
        elif self._bar is not None:
            columns = self._bar.ncols or 80
            self._bar.set_description_str(shorter(self._title, max(16, columns // 3)), refresh=False)
            self._bar.set_postfix_str(", ".join(said[-1:] if columns < NARROW else said[-2:]), refresh=False)
            self._bar.update(step - self._bar.n)
        elif time.monotonic() - self._told >= EVERY:
            self._line()

    def close(self) -> None:
        """Leave the terminal tidy; in a log, the last line."""
        if self._bar is not None:
            self._bar.close()
        elif self._slot is not None:
            self._slot.title = ""
        elif self._lines and self._step:
            self._line()

    def _line(self) -> None:
        self._told = time.monotonic()
        print(line_of(self._title, self._step, self._total, self._told - self._began, self._latest), file=sys.stderr)


def line_of(title: str, step: int, total: int, seconds: float, told: str) -> str:
    """A run in one line of a log: `lr=0.3 seed=0: step 480 of 960, 0:21, 0:21 left, loss 0.43`."""
    parts = [f"{title}: step {step} of {total}", clock(seconds)]
    if 0 < step < total:
        parts.append(f"{clock(seconds / step * (total - step))} left")
    return ", ".join([*parts, told] if told else parts)


def clock(seconds: float) -> str:
    """Seconds as 0:07, 12:34 or 1:02:03."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Display:
    """The runs of several workers, drawn by the one process that started them; in a log, a line each every 30 s."""

    def __init__(self, slots: Sequence[Slot], cells: int, shown: bool) -> None:
        self._slots, self._cells, self._shown, self._done = slots, cells, shown, 0
        self._live: Any = None
        self._tasks: list[Any] = []
        self._told = time.monotonic()

    def __enter__(self) -> Display:
        if self._shown and sys.stderr.isatty():
            self._live, self._tasks = _live(len(self._slots))
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def tell(self, text: str) -> None:
        """One line for the user above the display."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr)

    def draw(self, done: int) -> None:
        """Show where the workers are; `done`: cells that have ended."""
        if not self._shown:
            return
        running = [(slot, slot.title) for slot in self._slots]
        if self._live is None:
            if done > self._done or time.monotonic() - self._told >= EVERY:
                self._told, self._done = time.monotonic(), done
                for slot, title in running:
                    if title and slot.step:
                        seconds = time.time() - slot.began
                        self.tell(line_of(title, int(slot.step), int(slot.total), seconds, slot.told))
                self.tell(f"{done} of {self._cells} cell(s) done")
            return
        width = self._live.console.width
        for task, (slot, title) in zip(self._tasks, running, strict=False):
            seconds, step = time.time() - slot.began, slot.step
            left = f"{clock(seconds / step * (slot.total - step))} left" if step else ""
            told = slot.told if width >= NARROW else slot.told.rpartition(", ")[2]
            self._live.update(
                task, visible=bool(title), total=slot.total or 1, completed=step,
                description=shorter(title, max(16, width // 3)), left=left, told=told,
            )  # fmt: skip
        self._live.update(self._tasks[-1], total=self._cells, completed=done, told=f"{done} of {self._cells}")


def _live(workers: int) -> tuple[Any, list[Any]]:
    """rich's display with a line for each worker and one for all cells. Imported here: a log needs none of it."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Live

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.fields[told]}", markup=False),
    )
    live = Live(*columns, console=Console(stderr=True), refresh_per_second=4, transient=True, expand=True)
    tasks = [live.add_task("", total=1, visible=False, left="", told="") for _ in range(workers)]
    return live, [*tasks, live.add_task("cells", total=1, left="", told="")]
