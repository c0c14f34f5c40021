"""The tables of results/tables as pandas frames: what effects, figures and pages are made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from weight_decay.errors import UserError
from weight_decay.report.tables.files import SUMMARY, UNREADABLE, table_file
from weight_decay.runs.read import MAIN_BRANCH

_NUMBERS = {"lr", "weight_decay", "step", "epoch", "samples", "seed"}
_WORDS = {"provenance/changed"}

LEARNING_RATE = "optimizer.lr"
DECAY = "decay.strength"


@dataclass(frozen=True)
class Tables:
    """One experiment at one scale: a summary row per run and branch, a curve row per recorded step."""

    experiment: str
    scale: str
    summary: pd.DataFrame
    curves: pd.DataFrame

    @property
    def runs(self) -> pd.DataFrame:
        """The summary rows of the runs themselves, without branches."""
        return self.summary[self.summary["branch"] == MAIN_BRANCH]

    @property
    def main_curves(self) -> pd.DataFrame:
        """The curves of the runs themselves, without branches."""
        return self.curves[self.curves["branch"] == MAIN_BRANCH]

    @property
    def seeds(self) -> int:
        """How many different seeds there are."""
        return int(self.summary["seed"].nunique())

    @property
    def data(self) -> str:
        """The data the runs were trained on."""
        return ", ".join(sorted(self.summary["data"].unique()))

    @property
    def stamp(self) -> str:
        """Scale, data and seeds: what every figure must carry."""
        return f"scale {self.scale} · data {self.data} · {self.seeds} seed{'s' if self.seeds > 1 else ''}"

    @property
    def band_stamp(self) -> str:
        """The stamp of a figure whose bands show the spread over seeds."""
        return self.stamp + (", band: ± 1 standard deviation" if self.seeds > 1 else "")


def tables_of(results: Path, experiment: str, scale: str) -> Tables:
    """Read the two tables of an experiment. Raises UserError when they are absent, damaged or empty."""
    frames = []
    for kind in ("summary", "curves"):
        path = table_file(results / "tables", f"{experiment}-{scale}", kind)
        try:
            # The copy puts columns of a type into one block: rows are picked from it some times faster.
            frames.append(pd.read_csv(path, dtype={"run_id": str, "git_commit": str}, low_memory=False).copy())
        except FileNotFoundError as error:
            raise UserError(f"There is no table {path}: run {experiment} first, then collect.") from error
        except UNREADABLE as error:
            reason = " ".join(str(error).split())
            raise UserError(f"The table {path} cannot be read ({reason}): restore it, or collect again.") from error
        _check(frames[-1], path, {"experiment": experiment, "scale": scale})
    summary, curves = frames
    if summary.empty:
        raise UserError(f"No run of {experiment} at scale {scale} has finished under {results}: run it first.")
    return Tables(experiment, scale, summary, curves)


def _check(frame: pd.DataFrame, path: Path, named: dict[str, str]) -> None:
    """UserError unless the columns are those of such a table, what was measured is numbers, and the rows are `named`.

    A table that was copied to another name would be taken for another experiment's or scale's.
    """
    for name, value in named.items():
        others = {str(found) for found in frame[name].unique()} - {value} if name in frame else set()
        if others:
            raise UserError(
                f"The table {path} holds rows of the {name} {min(others)}: it was renamed or copied; restore it, or "
                "collect again."
            )
    needed = {"run_id", "data", "seed", "branch"} | ({"step"} if ".curves." in path.name else {"status"})
    if missing := sorted(needed - set(frame.columns)):
        raise UserError(f"The table {path} has no column {missing[0]}: restore it, or collect again.")
    measured = [name for name in frame.columns if name in _NUMBERS or ("/" in name and name not in _WORDS)]
    for name in measured:
        if not pd.api.types.is_numeric_dtype(frame[name]) and frame[name].notna().any():
            raise UserError(f"The table {path} has words in its column {name}: restore it, or collect again.")


def scales_of(results: Path, experiment: str) -> list[str]:
    """The scales at which `experiment` has tables with at least one finished run, in order of their names."""
    found = (results / "tables").glob(f"{experiment}-*{SUMMARY}")
    filled = [path for path in found if _has_a_row(path)]
    return sorted(path.name.removeprefix(f"{experiment}-").removesuffix(SUMMARY) for path in filled)


def _has_a_row(path: Path) -> bool:
    with path.open(encoding="utf-8", errors="replace") as lines:
        return sum(1 for _ in zip(lines, range(2), strict=False)) == 2


def large_rate_phase_end(curves: pd.DataFrame, metric: str) -> pd.Series:
    """Per run id, the value of `metric` at its last measurement while the LR was at its largest.

    `lr` in a row is the rate of the step that led to it; rows without one take that of the row before.
    """
    rows = curves.sort_values(["run_id", "step"])
    rate = rows.groupby("run_id")["lr"].ffill()
    largest = rate.groupby(rows["run_id"]).transform("max")
    in_phase = rows[(rate >= 0.999 * largest) & rows[metric].notna()]
    return in_phase.groupby("run_id")[metric].last()


def mean_between(curves: pd.DataFrame, metric: str, start: float, stop: float) -> pd.Series:
    """Per run id, the mean of `metric` between two fractions of the run's steps (inclusive)."""
    progress = curves["step"] / curves.groupby("run_id")["step"].transform("max")
    rows = curves[(progress >= start) & (progress <= stop) & curves[metric].notna()]
    return rows.groupby("run_id")[metric].mean()


def band(curves: pd.DataFrame, axis: str, metric: str) -> pd.DataFrame:
    """Mean and standard deviation (0 for one seed) of `metric` over runs at each value of `axis`.

    Returns columns `axis`, `mean`, `std`, sorted. A diverged run drops out where it ends; points that
    not every remaining seed has measured are averaged over those that have.
    """
    grouped = curves.dropna(subset=[metric]).groupby(axis)[metric]
    frame = pd.DataFrame({"mean": grouped.mean(), "std": grouped.std(ddof=1)}).reset_index()
    frame["std"] = frame["std"].replace(np.nan, 0.0)
    return frame


def missing_metrics(curves: pd.DataFrame, metrics: list[str]) -> list[str]:
    """Those of `metrics` that no row of `curves` has."""
    return [name for name in metrics if name not in curves or curves[name].notna().sum() == 0]
