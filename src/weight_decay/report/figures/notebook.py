"""What the notebooks share: where the tables come from, and the figures and claims of an experiment below its text."""

from __future__ import annotations

import tempfile
from pathlib import Path

from weight_decay.errors import UserError
from weight_decay.report.claims import measures as claims_measures
from weight_decay.report.claims.verdict import Result, judged
from weight_decay.report.figures.paper import figures_of
from weight_decay.report.figures.style import light_only
from weight_decay.report.tables.read import scales_of, tables_of
from weight_decay.report.wandb.pull import pull

WANDB = "wandb:"


class Book:
    """Tables at one scale, from a results folder or a W&B project; what is drawn goes to a temporary folder.

    `source` is a results folder, sought from the working directory upwards, or "wandb:entity/project". Raises UserError
    when there are no tables in it.
    """

    def __init__(self, source: str, scale: str) -> None:
        self.scale = scale
        self._shown: dict[frozenset[str], str] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="weight-decay-notebook-")
        self.results = Path(self._folder.name)
        if source.startswith(WANDB):
            pull(source.removeprefix(WANDB), self.results)
        else:
            tables = _nearest(Path(source) / "tables")
            if tables is None:
                raise UserError(f"There is no folder {source}/tables, here or above: run an experiment, then collect.")
            (self.results / "tables").symlink_to(tables)
            if (own := _nearest(Path(source) / "reference")) is not None:
                (self.results / "reference").symlink_to(own)

    def show(self, experiment: str) -> None:
        """Display the figures of an experiment, then its claims with their verdicts; one line if it has no tables."""
        from IPython.display import Image, display

        if self.scale not in scales_of(self.results, experiment):
            print(
                f"{experiment}: no tables, run `make sweep EXP={experiment} SCALE={self.scale}` "
                f"and `weight-decay collect {experiment}`"
            )
            return
        try:
            tables = tables_of(self.results, experiment, self.scale)
        except UserError as error:
            print(f"{experiment}: {error}")
            return
        with light_only("png"):
            drawn = figures_of(self.results, tables)
        for figure in drawn:
            display(Image(figure.path, alt=figure.alternative))
            print(figure.caption)
        runs = frozenset(tables.runs["run_id"])
        if self._shown.setdefault(runs, experiment) != experiment:
            print(f"At scale {self.scale} these are the runs of {self._shown[runs]}: not a second confirmation.")
        # Those of this experiment alone: tables of others may still be incomplete.
        claims = [claim for claim in claims_measures.CLAIMS if claim.experiment == experiment]
        print("\n" + ("\n".join(_words(judged(claim, tables)) for claim in claims) or "No claim rests on it."))


def _nearest(path: Path) -> Path | None:
    """`path` seen from the working directory or the nearest folder above it that has such a folder."""
    for start in (Path.cwd(), *Path.cwd().parents):
        if (start / path).is_dir():
            return (start / path).resolve()
    return None


def _words(result: Result) -> str:
    """Verdict, statement, effect, criterion and the numbers behind it."""
    numbers = result.measured.words if result.measured is not None else ""
    behind = "; ".join(part for part in (numbers, result.reason) if part)
    claimed = f"{result.effect}, claimed: {result.claim.criterion}"
    return f"{result.verdict.upper()}: {result.claim.statement}\n    {claimed}" + (f"\n    {behind}" if behind else "")
