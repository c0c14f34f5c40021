"""What our own runs have measured, as pandas frames."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from weight_decay.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from weight_decay.report.tables.read import Tables


def load_claims(results: str | Path = "results") -> pd.DataFrame:
    """The paper's claims with effect, interval and verdict: a row per claim and scale, as `claims` last wrote them.

    results: a results folder, such as that of a checkout. Columns: claim, statement, figure, experiment, scale,
    verdict (holds, fails, no effect, inconclusive, not run), effect, low, high (95 %), unit, criterion, test, seeds,
    p, q, effects (by seed), runs and more.

    Raises UserError when there is no table.
    """
    _require_pandas()
    import pandas as pd

    path = Path(results) / "tables" / "claims.csv"
    if not path.is_file():
        raise UserError(f"load_claims: there is no {path}; run `weight-decay claims`, or name another results folder.")
    return pd.read_csv(path)


def load_tables(experiment: str, scale: str = "micro", results: str | Path = "results") -> Tables:
    """The tables of one experiment at one scale: `.summary` has a row per run, `.curves` one per run and step.

    Columns are settings (`optimizer.lr`, `decay.strength`) and metrics under their names (`test/error`).
    Raises UserError when there is no table or no finished run.
    """
    _require_pandas()
    from weight_decay.report.tables.read import tables_of

    return tables_of(Path(results), experiment, scale)


def _require_pandas() -> None:
    from importlib.util import find_spec

    if find_spec("pandas") is None:
        raise UserError("load_tables: pandas is not installed; run: pip install 'weight-decay[report]'.")
