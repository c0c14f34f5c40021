"""From run folders to tidy tables: results/tables/<experiment>-<scale>.summary.csv and .curves.csv.gz."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from weight_decay.errors import UserError
from weight_decay.report.tables.collected import Collected, Damaged
from weight_decay.report.tables.files import ENDINGS, SUMMARY, table_file, writing
from weight_decay.report.tables.merge import Stored, csv_line, differing, stored, write_merged
from weight_decay.runs.fingerprint import other_code
from weight_decay.runs.judge import Record, read_run
from weight_decay.runs.read import MAIN_BRANCH, Cell, DamagedRunError, Experiment, read_experiments
from weight_decay.runs.seal import is_sealed

NOT_IN_TABLES = ("time/", "throughput/", "stage/")
"""Metrics of the machine, not of the run: they would change the tables at every repetition."""

_IDENTITY = ["run_id", "experiment", "scale", "data", "seed"]
_SUMMARY = [
    "data_split", "data_fingerprint", "regime", "git_commit", "status", "start_step", "divergence_step",
    "parameters", "device", "seconds", "figure", "title", "command",
]  # fmt: skip
_AXES = ["step", "epoch", "samples"]
_FIXED = {"summary": _SUMMARY, "curves": ["git_commit", *_AXES]}
"""The columns between `branch` and the metrics."""
_OF_THE_MACHINE = {"seconds", "device", "git_commit", "command", "title", "figure", "parameters"}
"""Columns in which two records of one run may differ without differing in what they measured."""


def collect(
    results: Path,
    experiments: list[str] | None = None,
    tables: Path | None = None,
    empty: bool = True,
    *,
    drop: bool = False,
    others: Sequence[Path] = (),
    seeds: Sequence[int] | None = None,
) -> Collected:
    """Merge the run folders under `results` into the tables of all experiments, or of those named.

    They go to `tables`, or to `results`/tables where none is given; without `empty`, a table that would have no row
    is not written. `others` are tables folders of other machines, merged in too, whether or not an experiment of
    theirs was started here. `seeds` are those that were meant to run, where not all were: only their cells count as
    not finished.

    Two tables for each experiment and scale: `.summary.csv`, one row per run and branch with its
    final metrics; `.curves.csv.gz`, one row per run, branch and recorded step, empty where a metric was
    not measured and `nan` where it was not finite. Only finished runs (completed or diverged) enter;
    damaged folders are named in the result and left out. A run that is in a table stays in it, with or without its
    run folder, and so does every column; with `drop`, the tables hold what run folders and `others` hold, and the
    runs that leave are named. Rows of a run and branch that several sources have come from the run folder, then from
    the table here, then from `others` in their order. Memory grows with the number of runs only by their names.
    Files are replaced atomically, and only when their content changes. Raises UserError for a table that cannot be
    read, or a name that is neither an experiment here nor in `others`.
    """
    for folder in others:
        if not folder.is_dir():
            raise UserError(f"collect: there is no folder {folder} of tables to merge.")
    known = [path for folder in others for path in sorted(folder.glob(f"*{SUMMARY}"))]
    foreign = [stem for path in known if (stem := path.name.removesuffix(SUMMARY))]
    foreign = [stem for stem in dict.fromkeys(foreign) if experiments is None or stem.rpartition("-")[0] in experiments]
    absent = {stem.rpartition("-")[0] for stem in foreign}
    if experiments is None:
        started = read_experiments(results)
    else:
        here = {experiment.name for experiment in read_experiments(results)}
        started = read_experiments(results, [name for name in experiments if name in here or name not in absent])
    collected = Collected()
    target = tables or results / "tables"
    for experiment in started:
        _collect_one(experiment, _Target(target, others, drop, empty), collected, seeds)
    done = {f"{experiment.name}-{experiment.scale}" for experiment in started}
    for stem in [stem for stem in foreign if stem not in done]:
        # Without a run folder there is nothing to drop in favour of.
        _merge(stem, {}, _Target(target, others, False, empty), collected)
    return collected


@dataclass(frozen=True)
class _Target:
    """Where tables go and what they are merged with."""

    tables: Path
    others: Sequence[Path]
    drop: bool
    empty: bool


def _collect_one(experiment: Experiment, target: _Target, collected: Collected, seeds: Sequence[int] | None) -> None:
    before = collected.finished
    coordinates = sorted({name for cell in experiment.cells for name in cell.coordinates} - {"seed"})
    identity = [*_IDENTITY, *coordinates, "branch"]
    stem, data = f"{experiment.name}-{experiment.scale}", dict[str, Any]()
    with _Table([*identity, *_FIXED["summary"]]) as summary, _Table([*identity, *_FIXED["curves"]]) as curves:
        for cell in experiment.cells:
            meant = seeds is None or cell.coordinates.get("seed") in seeds
            try:
                if not cell.folder.is_dir():
                    collected.unfinished += meant
                    continue
                run, records = read_run(cell)
            except DamagedRunError as error:
                collected.damaged.append(Damaged(experiment.name, cell.folder, str(error)))
                continue
            if not records:
                collected.unfinished += meant
                continue
            collected.finished += 1
            collected.unsealed += not is_sealed(run)
            collected.stale += other_code(run) is not None
            if data.setdefault(_data_settings(run), run["data"].get("fingerprint")) != run["data"].get("fingerprint"):
                collected.other_data.setdefault(stem, []).append(cell.run_id)
            for record in records:
                named = _identity(experiment, cell, run, record, coordinates)
                described = [*named, *_described(experiment, run, record)]
                summary.add(described, [{**record.summary["final"], **_changed_column(record.summary)}])
                curves.add([*named, _commit(run)], record.rows)
        merged_in = any((folder / f"{stem}{SUMMARY}").is_file() for folder in target.others)
        if collected.finished == before and not merged_in and not target.empty:
            collected.without.append(stem)
            return
        _merge(stem, {"summary": summary, "curves": curves}, target, collected)


def _merge(stem: str, fresh: dict[str, _Table], target: _Target, collected: Collected) -> None:
    """Write both tables of an experiment and scale from what was just read, the tables here and the others'."""
    target.tables.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".collect-", dir=target.tables) as folder:
        aside = Path(folder)

        def read(place: Path, kind: str) -> list[Stored]:
            path = table_file(place, stem, kind)
            return [stored(path, _FIXED[kind], aside)] if path.is_file() else []

        for kind in _FIXED:
            path = target.tables / f"{stem}.{ENDINGS[kind]}"
            here: list[Stored] = []
            if kind in fresh:
                written = aside / f"{kind}.csv"
                with written.open("wb") as rows:
                    fresh[kind].write(rows)
                here.append(stored(written, _FIXED[kind], aside))
            old = [] if target.drop else read(target.tables, kind)
            others = [table for place in target.others for table in read(place, kind)]
            order, rank = [*old, *here, *others], [*here, *old, *others]
            if kind == "summary":
                _note(stem, here, [*old, *others], collected)
                if target.drop and path.is_file():
                    left = set(_run_ids(path)) - {run for table in rank for run in table.runs}
                    collected.dropped |= {stem: sorted(left)} if left else {}
            with writing(path) as stream:
                write_merged(order, rank, stream)
            collected.tables.append(path)


def _note(stem: str, here: list[Stored], rest: list[Stored], collected: Collected) -> None:
    """Which runs only other tables than the fresh one have, which of these share a cell, and which records differ."""
    tables = [*here, *rest]
    finished = {run for table in here for run in table.runs}
    kept = [run for table in rest for run in table.runs if run not in finished]
    cells: dict[object, str] = {}
    twice: list[str] = []
    for table in tables:
        for run, branch in table.places:
            if branch == MAIN_BRANCH and cells.setdefault(table.cell((run, branch)), run) != run:
                twice.append(run)
    pairs = itertools.combinations(tables, 2)
    different = [run for one, other in pairs for run in differing(one, other, _OF_THE_MACHINE)]
    for group, runs in ((collected.kept, kept), (collected.twice, twice), (collected.other_numbers, different)):
        if runs:
            group[stem] = list(dict.fromkeys(runs))


def _run_ids(path: Path) -> list[str]:
    """The run ids of a table that need not be whole."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        return [line.partition(",")[0] for line in lines][1:]


def _identity(
    experiment: Experiment, cell: Cell, run: dict[str, Any], record: Record, coordinates: list[str]
) -> list[str]:
    where = [_text(cell.coordinates[name]) if name in cell.coordinates else "" for name in coordinates]
    data = str(run["data"]["name"])
    return [cell.run_id, experiment.name, experiment.scale, data, str(run["seed"]), *where, record.branch]


def _described(experiment: Experiment, run: dict[str, Any], record: Record) -> list[str]:
    own = {**run, **record.summary}
    return [
        _split(run["data"].get("split")), _text(run["data"].get("fingerprint")), str(run["regime"]),
        _commit(run), str(record.summary["status"]), _text(record.summary.get("start_step", 0)),
        _text(record.summary["divergence_step"]),
        _text(own.get("parameters")), _text(own.get("device")), _text(own.get("seconds")),
        experiment.figure, experiment.title, experiment.command,
    ]  # fmt: skip


def _data_settings(run: dict[str, Any]) -> str:
    """What must have the same bytes: the settings of the data; of an older record, that says none, the run itself."""
    settings = run.get("identity")
    return json.dumps(settings["data"], sort_keys=True) if isinstance(settings, dict) else str(run["run_id"])


def _commit(run: dict[str, Any]) -> str:
    return str(run["git_commit"] or "not recorded")


ROLES = ("train", "test", "val", "unseen")


def _split(split: Any) -> str:
    if isinstance(split, dict):
        # W&B gives mappings back in any order.
        roles = sorted(split, key=lambda role: ROLES.index(role) if role in ROLES else len(ROLES))
        return "; ".join(f"{role}: {split[role]}" for role in roles)
    return _text(split)


def _changed_column(summary: dict[str, Any]) -> dict[str, str]:
    """The column `provenance/changed`: what a resumed run was not computed under from start to end; else nothing.

    It stands behind the metrics and only where some run has it, so that all other tables stay what they are.
    """
    stretches = summary.get("stretches")
    stretches = [one for one in stretches if isinstance(one, dict)] if isinstance(stretches, list) else []
    flat = [{**one, **one["versions"]} if isinstance(one.get("versions"), dict) else one for one in stretches]
    names = {name for one in flat for name in one} - {"versions", "from_step"}
    changed = sorted(name for name in names if len({str(one[name]) for one in flat if name in one}) > 1)
    return {"provenance/changed": " ".join(re.sub(r"[^\w.-]", "", name) for name in changed)} if changed else {}


def _text(value: Any) -> str:
    """A value as the tables spell it; six significant digits are more than any of them deserves."""
    if value is None:
        return ""
    if isinstance(value, float):
        return format(value, ".6g")
    if isinstance(value, (str, int)):
        return str(value)
    return json.dumps(value, sort_keys=True)


class _Table(contextlib.AbstractContextManager["_Table"]):
    """Rows on their way to a CSV file whose columns are known only when the last row has been seen.

    Rows are spooled to a temporary file, each after the number of metrics known so far. `write` puts the header first
    and pads the earlier, shorter rows, so nothing but the column names stays in memory.
    """

    def __init__(self, fixed: list[str]) -> None:
        self.fixed = fixed
        self.metrics: dict[str, None] = {}  # their names, in the order in which they came
        self.spool: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8", newline="")  # noqa: SIM115

    def __exit__(self, *_: object) -> None:
        self.spool.close()

    def add(self, named: list[str], rows: Iterable[dict[str, Any]]) -> None:
        """Add rows that share the leading columns `named`; the axes among the fixed come from the row."""
        prefix = csv_line(named)
        axes = self.fixed[len(named) :]
        for row in rows:
            for name in row:
                if name not in self.metrics and name not in _AXES and not name.startswith(NOT_IN_TABLES):
                    self.metrics[name] = None
            cells = [_number(row[name]) if name in row else "" for name in (*axes, *self.metrics)]
            self.spool.write(f"{len(self.metrics)}:{','.join([prefix, *cells])}\n")

    def write(self, stream: IO[bytes]) -> None:
        """Write the header and all rows."""
        stream.write((csv_line([*self.fixed, *self.metrics]) + "\n").encode())
        self.spool.seek(0)
        for line in self.spool:
            known, _, cells = line[:-1].partition(":")
            padding = "," * (len(self.metrics) - int(known))
            stream.write(f"{cells}{padding}\n".encode())


def _number(value: Any) -> str:
    """`nan` says measured but not finite, unlike an empty cell, which says not measured."""
    if value is None:
        return "nan"
    return format(value, ".6g") if isinstance(value, float) else str(value)
