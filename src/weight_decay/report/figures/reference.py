"""The paper's own curves, as digitised in results/reference/paper_curves.csv."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from weight_decay.errors import UserError
from weight_decay.places import REFERENCE

COLUMNS = [
    "figure", "metric", "x_axis", "x", "y", "lr", "weight_decay", "iterate", "precision", "seed", "start", "note",
]  # fmt: skip


def reference_file(results: Path) -> Path:
    """The digitised curves of a folder of results; where it has none, those that come with the program."""
    path = results / "reference" / "paper_curves.csv"
    return path if path.is_file() else REFERENCE / "paper_curves.csv"


def reference(results: Path, figure: str, metric: str, iterate: str | None = None) -> pd.DataFrame:
    """The digitised points of one panel of the paper, in the order of x within each curve.

    `figure` as in the file ("1", "2a", "3", "5c", "15a", ...), `metric` in the paper's words (`test_error`,
    `train_cross_entropy`, `weight_norm`, `jacobian_norm`, ...), `iterate` one of sgd, adamw, ema, finetuned,
    tiny_lr. Errors are fractions; `decay` is λ as a number, NaN where the paper only says that it is positive. The
    frame is empty where the paper has no such curve: a figure then shows our runs alone. Raises UserError when the
    file is there but not understood.
    """
    path = reference_file(results)
    try:
        points = pd.read_csv(path, dtype={"figure": str, "precision": str, "note": str, "weight_decay": str})
    except ValueError as error:
        raise UserError(f"The reference {path} cannot be read ({error}): restore it from git.") from error
    if list(points.columns) != COLUMNS:
        raise UserError(f"The reference {path} must have the columns {', '.join(COLUMNS)}: restore it from git.")
    points = points.assign(decay=pd.to_numeric(points["weight_decay"], errors="coerce"))
    chosen = points[(points["figure"] == figure) & (points["metric"] == metric)]
    if iterate is not None:
        chosen = chosen[chosen["iterate"] == iterate]
    return chosen.sort_values("x", kind="stable").reset_index(drop=True)


def paper_title(figure: str) -> str:
    """The title of a panel of the paper's."""
    return f"Paper, Fig. {figure} (digitised)"
