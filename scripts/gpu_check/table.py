"""The rows of the check: one CSV with provenance, and a page that says what they mean."""

from __future__ import annotations

import csv
import datetime
import io
from pathlib import Path
from typing import NamedTuple

import torch

from weight_decay.device.choose import device_description
from weight_decay.runs.files import write_if_changed
from weight_decay.training.provenance import provenance

COLUMNS = ("piece", "what", "value", "unit", "goal", "verdict", "device", "torch", "git_commit", "date")


class Row(NamedTuple):
    """One measurement. `goal` starts with >= or <=, or says in words what `good` judges; "" for a mere number."""

    what: str
    value: float
    unit: str
    goal: str = ""
    good: bool | None = None

    @property
    def verdict(self) -> str:
        """good, BAD, or "" where nothing is asked."""
        good = self.good
        if good is None and self.goal[:2] in (">=", "<="):
            bound = float(self.goal[2:])
            good = self.value >= bound if self.goal[:2] == ">=" else self.value <= bound
        return "" if good is None else "good" if good else "BAD"


def replace(path: Path, piece: str, rows: list[Row], device: torch.device) -> None:
    """Write the rows of a piece into the table, in place of those of an earlier call."""
    told = provenance(device)
    versions = told.get("versions", {})
    where = {
        "device": device_description(device),
        "torch": versions.get("torch", torch.__version__),
        "git_commit": told.get("git_commit") or "unknown",
        "date": datetime.date.today().isoformat(),
    }
    new = [
        {"piece": piece, "what": row.what, "value": f"{row.value:.6g}", "unit": row.unit, "goal": row.goal,
         "verdict": row.verdict, **where}
        for row in rows
    ]  # fmt: skip
    kept = [row for row in read(path) if row["piece"] != piece]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows([*kept, *new])
    write_if_changed(path, text.getvalue().encode())


def read(path: Path) -> list[dict[str, str]]:
    """The rows of the table; none if it is not there."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def page(rows: list[dict[str, str]]) -> str:
    """The table for people: measurements by piece, then what is bad."""
    lines = []
    for piece in dict.fromkeys(row["piece"] for row in rows):
        mine = [row for row in rows if row["piece"] == piece]
        lines += ["", f"{piece}   ({mine[0]['device']}, torch {mine[0]['torch']}, {mine[0]['date']})"]
        lines += [
            f"  {row['verdict'] or '-':5s} {row['what']:66s} {row['value']:>12s} {row['unit']:10s} "
            f"{'goal ' + row['goal'] if row['goal'] else ''}".rstrip()
            for row in mine
        ]
    bad = [f"{row['piece']}: {row['what']}" for row in rows if row["verdict"] == "BAD"]
    return "\n".join([*lines, "", f"{len(bad)} bad: {'; '.join(bad)}" if bad else "nothing is bad"])
