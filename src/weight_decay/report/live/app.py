"""The live view in a terminal, a textual app: keys, resizing, a filter, and everything left as it was."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.widgets import Input, Static

from weight_decay.report.live.screen import draw
from weight_decay.report.live.watch import View, Watch


class WatchApp(App[None]):
    """Draws one look at the runs after another; `/` narrows it to cells and experiments that contain some text."""

    CSS = "Screen { overflow: hidden; } Input { dock: bottom; display: none; border: none; height: 1; padding: 0; }"
    ENABLE_COMMAND_PALETTE = False
    AUTO_FOCUS = ""  # keys belong to the app until a filter is asked for
    BINDINGS: ClassVar[list[BindingType]] = [
        ("q", "quit", "quit"),
        ("ctrl+c", "quit", "quit"),
        ("ctrl+z", "suspend_process", "suspend"),
        ("slash", "filter", "filter"),
        ("escape", "clear", "no filter"),
    ]

    def __init__(self, watch: Watch, every: float) -> None:
        # The terminal's own sixteen colours, as everywhere else in this program.
        super().__init__(ansi_color=True)
        self._watch, self._every = watch, every
        self._view: View | None = None

    def compose(self) -> ComposeResult:
        """One block of text and, hidden until asked for, the line in which the filter is typed."""
        yield Static(id="view")
        yield Input(placeholder="show only what contains ...", id="filter")

    def on_mount(self) -> None:
        """Look now, and again after every interval; a SIGTERM or a lost terminal leaves as the key q does."""
        for number in (signal.SIGTERM, signal.SIGHUP):
            with contextlib.suppress(NotImplementedError):  # no such signals on Windows
                asyncio.get_running_loop().add_signal_handler(number, self.exit)
        self.look()
        self.set_interval(self._every, self.look)

    def on_resize(self) -> None:
        """The same look, drawn for the new size."""
        self.redraw()

    def look(self) -> None:
        """Look at the disk and draw what is there."""
        wanted = self.query_one(Input).value
        # A filter must see all that runs; without one, what the screen cannot show need not be read.
        self._view = self._watch.look(limit=None if wanted else self.size.height)
        self.redraw()

    def redraw(self) -> None:
        """Draw the last look."""
        if self._view is None:
            return
        wanted = self.query_one(Input).value
        title = Text("weight-decay watch   q quits   / filters", style="dim")
        if wanted:
            title.append(f"   only {wanted}   Esc shows all", style="not dim bold")
        view = self._view.containing(wanted) if wanted else self._view
        lines = [title, *draw(view, self.size.width, max(1, self.size.height - 1))]
        for line in lines:
            line.truncate(self.size.width, overflow="ellipsis")
        text = Text("\n").join(lines)
        # textual itself does not take NO_COLOR to mean these.
        self.query_one("#view", Static).update(Text(text.plain) if os.environ.get("NO_COLOR") else text)

    def action_filter(self) -> None:
        """Show the line in which the filter is typed."""
        self.query_one(Input).display = True
        self.query_one(Input).focus()

    def action_clear(self) -> None:
        """Drop the filter."""
        self.query_one(Input).value = ""
        self.on_input_submitted()

    def on_input_submitted(self) -> None:
        """Enter: keep the filter and give the keys back."""
        self.query_one(Input).display = False
        self.set_focus(None)
        self.look()

    def on_input_changed(self) -> None:
        """Narrow while typing."""
        self.look()
