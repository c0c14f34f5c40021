"""Tables in plain text, for the terminal, and in Markdown."""

from __future__ import annotations

import textwrap


def text_table(header: list[str], rows: list[list[str]], *, align: str = "") -> str:
    """An aligned text table; header cells are wrapped at about 15 characters.

    `align` has an `l` or `r` for each column; without it, all but the first are set right.
    """
    sides = align or "l" + "r" * (len(header) - 1)
    wrapped = [textwrap.wrap(cell, 15, break_long_words=False, break_on_hyphens=False) for cell in header]
    height = max(len(lines) for lines in wrapped)
    top = [[""] * (height - len(lines)) + lines for lines in wrapped]
    body = [list(line) for line in zip(*top, strict=True)] + rows
    widths = [max(len(row[index]) for row in body) for index in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(size) if side == "l" else cell.rjust(size)
            for cell, size, side in zip(row, widths, sides, strict=True)
        ).rstrip()
        for row in body
    ]
    lines.insert(height, "─" * min(110, sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(lines)


def markdown_table(rows: list[list[str]], align: str = "") -> list[str]:
    """The lines of a Markdown table whose first row is the header.

    Padded, so that they can be read as they are; with `align`, an `l` or `r` for each column, as short as can be.
    """
    if align:
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        lines.insert(1, "|" + "|".join("---:" if side == "r" else "---" for side in align) + "|")
        return lines
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (size + 2) for size in widths) + "|")
    return lines
