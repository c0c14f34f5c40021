"""What every claim is measured with, and what it measures: cells of a table picked out and paired by seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Measured:
    """The effect of a claim, one value per seed in the order of `seeds`, and the runs it was computed from.

    `words` puts the numbers behind the effect in a short clause. `unless` names a reason why the runs cannot
    answer although they were made (a run diverged, say); the verdict is then inconclusive.
    """

    seeds: tuple[int, ...]
    effects: tuple[float, ...]
    runs: tuple[str, ...]
    words: str
    unless: str = ""
    binary: bool = False
    """Each effect is 1 (it happened) or 0."""


def pick(rows: pd.DataFrame, **coordinates: Any) -> pd.DataFrame:
    """The rows whose columns have these values; None stands for a coordinate the row does not set.

    A dot in a column's name is written as two underscores (`decay__strength`). A column the table lacks is one
    that no row sets.
    """
    for name, value in coordinates.items():
        column = name.replace("__", ".")
        if column not in rows:
            rows = rows if value is None else rows.iloc[:0]
        else:
            rows = rows[rows[column].isna() if value is None else rows[column].astype(type(value)) == value]
    return rows


def by_seed(rows: pd.DataFrame, metric: str, values: pd.Series | None = None) -> pd.Series:
    """`metric` of each row (or `values` by run id), indexed by seed; NaN for a run that diverged or has none.

    Raises ValueError when a seed has several rows, which then are not one cell.
    """
    if rows["seed"].duplicated().any():
        raise ValueError(f"several runs of one seed where one cell is expected, for {metric}")
    if values is not None:
        found = rows["run_id"].map(values)
    else:
        found = rows[metric] if metric in rows else pd.Series(float("nan"), rows.index)
    return pd.Series(found.where(rows["status"] == "completed").to_numpy(dtype=float), rows["seed"].to_numpy())


def measured(effects: pd.Series, cells: Sequence[pd.DataFrame], words: str, *, binary: bool = False) -> Measured:
    """Effects indexed by seed and the rows of all cells they rest on."""
    effects = effects.sort_index()
    return Measured(
        seeds=tuple(int(seed) for seed in effects.index),
        effects=tuple(float(effect) for effect in effects),
        runs=tuple(sorted({run for rows in cells for run in rows["run_id"]})),
        words=words,
        binary=binary,
    )


def nothing(reason: str) -> Measured:
    """What a claim returns when the table has no cell it could be measured in."""
    return Measured((), (), (), "", reason)


def difference(
    higher: pd.DataFrame,
    lower: pd.DataFrame,
    metric: str,
    write: Callable[[float], str],
    values: pd.Series | None = None,
) -> Measured:
    """`metric` in the cell `higher` minus that in the cell `lower`, seed by seed; both means in words."""
    if higher.empty or lower.empty:
        return nothing("the runs it compares were not made")
    if _on_other_data(higher, lower):
        return nothing("runs of one seed that it compares were trained on different data")
    one, other = by_seed(higher, metric, values), by_seed(lower, metric, values)
    return measured(one - other, [higher, lower], f"{write(one.mean())} against {write(other.mean())}")


def _on_other_data(higher: pd.DataFrame, lower: pd.DataFrame) -> bool:
    """Whether two runs of one seed had different bytes to train on; tables that do not say are taken at their word."""
    if "data_fingerprint" not in higher or "data_fingerprint" not in lower:
        return False
    both = higher.merge(lower, on="seed")[["data_fingerprint_x", "data_fingerprint_y"]].dropna()
    return bool((both["data_fingerprint_x"] != both["data_fingerprint_y"]).any())


def chosen_on_others(rows: pd.DataFrame, choose: Callable[[pd.DataFrame], Any]) -> dict[int, Any]:
    """For each seed what `choose` says of the rows of all other seeds, so that no run helps to choose itself.

    With one seed there are no others: it chooses for itself, and no claim is decided by one.
    """
    seeds = sorted({int(seed) for seed in rows["seed"]})
    return {seed: choose(rows[rows["seed"] != seed] if len(seeds) > 1 else rows) for seed in seeds}


def with_lowest(rows: pd.DataFrame, column: str, metric: str) -> tuple[pd.DataFrame, list[float]]:
    """Of each seed the rows at the value of `column` with the lowest mean `metric` on other seeds; all such values."""
    best = chosen_on_others(rows, lambda seen: float(str(seen.groupby(column)[metric].mean().idxmin())))
    return rows[rows[column] == rows["seed"].map(best)], sorted(set(best.values()))
