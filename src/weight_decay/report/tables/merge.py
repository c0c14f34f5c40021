"""Merging tables of one experiment by run and branch: what one machine measured never pushes out another's runs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from weight_decay.errors import UserError
from weight_decay.report.tables.files import UNREADABLE, Writable, unpacked

BRANCH = "branch"
Key = tuple[str, str]
"""Run id and branch."""


@dataclass(frozen=True)
class Stored:
    """One plain CSV file, with where in it the rows of each run and branch stand; the rows themselves stay on disk."""

    path: Path
    header: list[str]
    fixed: int
    """Columns between `branch` and the first metric."""
    places: dict[Key, list[tuple[int, int]]]
    """Offset and length, in bytes, of each stretch of rows."""
    cells: dict[Key, tuple[str, ...]]
    """What stands before `branch`, in the order of the header: identity and coordinates."""

    @property
    def before(self) -> list[str]:
        """The columns up to `branch`, without it: identity, then coordinates."""
        return self.header[: self.header.index(BRANCH)]

    @property
    def metrics(self) -> list[str]:
        """The columns of what was measured."""
        return self.header[self.header.index(BRANCH) + 1 + self.fixed :]

    @property
    def runs(self) -> list[str]:
        """The run ids, in their order."""
        return list(dict.fromkeys(run for run, _ in self.places))

    def cell(self, key: Key) -> tuple[tuple[str, str], ...]:
        """Data, seed and coordinates of a row, without those it does not set: what two runs of one cell share."""
        named = dict(zip(self.before, self.cells[key], strict=True))
        return tuple(sorted((name, value) for name, value in named.items() if value and name != "run_id"))


def stored(path: Path, fixed: list[str], aside: Path) -> Stored:
    """Read where the rows of a table stand; `fixed` names the columns between `branch` and the metrics.

    A compressed table is unpacked into the folder `aside` first. Raises UserError for a file that is not such a table.
    """
    places: dict[Key, list[tuple[int, int]]] = {}
    cells: dict[Key, tuple[str, ...]] = {}
    try:
        plain = unpacked(path, aside)
        with plain.open("rb") as lines:
            first = lines.readline()
            header = _cells(first)
            at = header.index(BRANCH)
            if header[0] != "run_id" or header[at + 1 : at + 1 + len(fixed)] != fixed:
                raise ValueError("its columns are not those of such a table")
            offset, known, key = len(first), b"", ("", "")
            for line in lines:
                if not known or not line.startswith(known):
                    row = _cells(line)
                    if len(row) != len(header):
                        raise ValueError(f"a row of {len(row)} cells under {len(header)} columns")
                    known, key = csv_line(row[: at + 1]).encode() + b",", (row[0], row[at])
                    cells.setdefault(key, tuple(row[:at]))
                stretches = places.setdefault(key, [])
                if stretches and sum(stretches[-1]) == offset:
                    stretches[-1] = (stretches[-1][0], stretches[-1][1] + len(line))
                else:
                    stretches.append((offset, len(line)))
                offset += len(line)
    except (*UNREADABLE, IndexError, csv.Error) as error:
        raise UserError(
            f"The table {path} cannot be merged with the runs here ({error}): restore it, or collect with drop=yes."
        ) from error
    return Stored(plain, header, len(fixed), places, cells)


def write_merged(order: Sequence[Stored], rank: Sequence[Stored], stream: Writable) -> None:
    """Write the rows of all tables in `order`; of a run and branch that several have, those of the first in `rank`.

    Columns: identity, all coordinates in order of their names, the fixed ones, then the metrics in the order in which
    `order` names them; empty where a table lacks one. Only places, no rows, are held in memory.
    """
    identity = order[0].before[:5]
    coordinates = sorted({name for table in order for name in table.before} - set(identity))
    at = order[0].header.index(BRANCH)
    fixed = order[0].header[at : at + 1 + order[0].fixed]
    metrics = list(dict.fromkeys(name for table in order for name in table.metrics))
    header = [*identity, *coordinates, *fixed, *metrics]
    stream.write(csv_line(header).encode() + b"\n")
    with ExitStack() as stack:
        files = {table.path: stack.enter_context(table.path.open("rb")) for table in rank}
        for key in dict.fromkeys(key for table in order for key in table.places):
            table = next(table for table in rank if key in table.places)
            for offset, length in table.places[key]:
                files[table.path].seek(offset)
                rows = files[table.path].read(length)
                stream.write(rows if table.header == header else _remapped(rows, table.header, header))


def differing(ours: Stored, theirs: Stored, ignored: set[str]) -> list[str]:
    """Run ids of which the two tables give other values in a column both have, `ignored` ones aside."""
    common = [name for name in ours.header if name in set(theirs.header) - ignored]
    runs = []
    with ours.path.open("rb") as one, theirs.path.open("rb") as other:
        for key in ours.places:
            if key in theirs.places and key[0] not in runs:
                rows = [_rows_at(one, ours, key, common), _rows_at(other, theirs, key, common)]
                if rows[0] != rows[1]:
                    runs.append(key[0])
    return runs


def csv_line(cells: list[str]) -> str:
    """One line of CSV without its end; line breaks within a cell become spaces."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow([cell.replace("\n", " ") for cell in cells])
    return line.getvalue()


def _rows_at(file: IO[bytes], table: Stored, key: Key, columns: list[str]) -> list[list[str]]:
    rows = []
    for offset, length in table.places[key]:
        file.seek(offset)
        for row in csv.reader(io.StringIO(file.read(length).decode(), newline="")):
            values = dict(zip(table.header, row, strict=True))
            rows.append([values[name] for name in columns])
    return rows


def _remapped(rows: bytes, old: list[str], new: list[str]) -> bytes:
    places = {name: index for index, name in enumerate(old)}
    sources = [places.get(name) for name in new]
    lines = []
    for row in csv.reader(io.StringIO(rows.decode(), newline="")):
        lines.append(csv_line(["" if index is None else row[index] for index in sources]) + "\n")
    return "".join(lines).encode()


def _cells(line: bytes) -> list[str]:
    return next(csv.reader([line.decode().rstrip("\n")]))
