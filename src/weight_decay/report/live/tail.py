"""metrics.jsonl of a run that is being written: only what was added since the last look is read."""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from weight_decay.runs.read import UNREADABLE, finite

LONGEST_FIRST_READ = 2 << 20
"""Bytes from the end that the first look reads at most; earlier lines are not needed for a live view."""

_MOST_POINTS = 4096
_MARKS = 32
_LAST_STEP = 1 << 62
"""No run gets there: a line that says so is damaged."""

_BLOCKS = "▁▂▃▄▅▆▇█"
_NOT_FINITE = "×"


class Tail:
    """The metrics `names` of one run as (step, value) points, and how fast it goes; `refresh` reads what is new.

    A last line without its newline is left for the next time. Where a resume has cut the file, points after the cut
    are forgotten, also when the file has grown beyond the old end since: the last line read is compared again.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.points: dict[str, list[tuple[int, float]]] = {name: [] for name in names}
        self.modified = 0.0
        self._path, self._marks = path, deque[tuple[int, float]](maxlen=_MARKS)
        self._seen: tuple[int, int, int] | None = None
        self._offset, self._last = 0, b""

    @property
    def step(self) -> int | None:
        """The last recorded step."""
        return self._marks[-1][0] if self._marks else None

    @property
    def speed(self) -> float | None:
        """Steps per second over the last lines; None as long as it cannot be told."""
        if len(self._marks) < 2:
            return None
        (first, started), (last, ended) = self._marks[0], self._marks[-1]
        speed = (last - first) / (ended - started) if last > first and ended > started else 0.0
        return speed if 0 < speed < math.inf else None

    def refresh(self) -> None:
        """Read what was added since the last call."""
        try:
            found = self._path.stat()
        except OSError:
            self._forget()
            return
        self.modified = found.st_mtime
        seen = (found.st_ino, found.st_size, found.st_mtime_ns)
        if seen == self._seen:
            return
        if self._seen is not None and (found.st_ino != self._seen[0] or found.st_size < self._offset):
            self._forget()
        if not self._read():
            self._forget()
            self._read()
        self._seen = seen

    def _read(self) -> bool:
        """Whether what was read before is still there; if so, the new lines are taken in."""
        try:
            with self._path.open("rb") as stream:
                if self._offset == 0:
                    cut = max(0, os.fstat(stream.fileno()).st_size - LONGEST_FIRST_READ)
                    stream.seek(cut)
                    if cut:
                        cut += len(stream.readline())
                    self._offset = cut
                stream.seek(self._offset - len(self._last))
                read = stream.read()
        except OSError:
            return False
        if not read.startswith(self._last):
            return False
        new = read[len(self._last) :]
        whole = new[: new.rfind(b"\n") + 1]
        lines = whole.splitlines(keepends=True)
        for line in lines:
            self._take(line)
        if lines:
            self._offset, self._last = self._offset + len(whole), lines[-1]
        return True

    def _take(self, line: bytes) -> None:
        try:
            row = json.loads(line)
            step, seconds = int(row["step"]), finite(row.get("time/seconds"))
            measured = {name: _number(row[name]) for name in self.points if name in row}
        except UNREADABLE:
            return
        if abs(step) > _LAST_STEP:
            return
        for name, value in measured.items():
            points = self.points[name]
            while points and points[-1][0] >= step:
                points.pop()
            points.append((step, value))
            if len(points) > _MOST_POINTS:
                del points[1:-1:2]
        while self._marks and self._marks[-1][0] > step:
            self._marks.pop()
        if seconds is not None:
            self._marks.append((step, seconds))

    def _forget(self) -> None:
        for points in self.points.values():
            points.clear()
        self._marks.clear()
        self._seen, self._offset, self._last = None, 0, b""


def _number(value: object) -> float:
    if value is None:
        return math.nan  # how a record writes a value that is not finite
    if not isinstance(value, int | float):
        raise TypeError(value)
    return float(value)


def sparkline(points: Sequence[tuple[int, float]], width: int) -> str:
    """The course of the values in at most `width` block characters, each the mean of its share of the points.

    On a logarithmic scale where all values are positive. A share without a finite value is ×.
    """
    columns = min(width, len(points))
    means: list[float | None] = []
    for column in range(columns):
        share = points[column * len(points) // columns : (column + 1) * len(points) // columns]
        there = [value for _, value in share if math.isfinite(value)]
        # Divided first: the sum of values near the largest float there is would not be finite.
        means.append(sum(value / len(there) for value in there) if there else None)
    known = [mean for mean in means if mean is not None]
    if not known:
        return _NOT_FINITE * columns
    # A span can be too large for a float where its ends are not.
    unit = 1 / 16 if math.isinf(max(known) - min(known)) else 1.0
    scale = math.log if min(known) > 0 else lambda value: unit * value
    low, high = scale(min(known)), scale(max(known))
    # What differs only in rounding is drawn flat, in the middle.
    flat = high - low <= 1e-6 * max(abs(high), abs(low), 1.0)
    return "".join(
        _NOT_FINITE if mean is None else _BLOCKS[3 if flat else round(7 * (scale(mean) - low) / (high - low))]
        for mean in means
    )
