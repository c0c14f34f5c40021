"""What `collect` has done, and what it has to say of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

_NAMED = 8
"""How many run ids a line of the summary for the terminal spells out."""


@dataclass(frozen=True)
class Damaged:
    """A run folder left out of the tables, and why."""

    experiment: str
    folder: Path
    reason: str


@dataclass
class Collected:
    """What `collect` wrote and what it left out."""

    tables: list[Path] = field(default_factory=list)
    finished: int = 0
    unfinished: int = 0
    stale: int = 0
    unsealed: int = 0
    damaged: list[Damaged] = field(default_factory=list)
    without: list[str] = field(default_factory=list)
    kept: dict[str, list[str]] = field(default_factory=dict)
    """Per table the runs that stay in it although no finished run folder here holds them."""
    dropped: dict[str, list[str]] = field(default_factory=dict)
    """Per table the runs that left it, as was asked for."""
    twice: dict[str, list[str]] = field(default_factory=dict)
    """Per table the kept runs whose cell (data, seed, coordinates) a run with another id fills too."""
    other_numbers: dict[str, list[str]] = field(default_factory=dict)
    """Per table the runs whose records differ: the run folder's stand, then the table's here, then the others'."""
    other_data: dict[str, list[str]] = field(default_factory=dict)
    """Per table the runs that name their data as another one does, and were trained on other bytes."""

    def describe(self) -> str:
        """A few lines for the terminal: how much is in the tables, and each folder that is not."""
        lines = [f"{len(self.tables)} tables from {self.finished} finished runs; {self.unfinished} not finished"]
        if self.stale:
            lines.append(f"{self.stale} of them hold numbers of other code than the present one's; see `status`")
        if self.unsealed:
            lines.append(
                f"{self.unsealed} of them are not sealed (from W&B or an older version), so changes go unnoticed"
            )
        lines += [f"{stem}: no finished run, so no table is written or replaced" for stem in self.without]
        for groups, words in (
            (self.kept, "kept though no finished run folder here holds them; drop=yes would remove them"),
            (self.twice, "of them fill a cell that another run fills too, so claims cannot tell which to take"),
            (self.other_numbers, "recorded twice with other numbers; the run folder's, then the older table's, stand"),
            (self.dropped, "removed, as drop=yes asks"),
            (self.other_data, "trained on other data than the rest, under the same name, so they cannot be compared"),
        ):
            lines += [f"{stem}: {len(runs)} run(s) {words} ({_some(runs)})" for stem, runs in groups.items()]
        lines += [f"left out, damaged: {item.folder} ({item.reason})" for item in self.damaged]
        return "\n".join(lines)


def _some(runs: list[str]) -> str:
    return " ".join(runs[:_NAMED]) + (f" and {len(runs) - _NAMED} more" if len(runs) > _NAMED else "")
