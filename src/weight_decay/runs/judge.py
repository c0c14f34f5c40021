"""Whether a run folder can be believed: the one judge for training, sweeps, `status`, `collect` and `matched`.

A folder is judged for the run that it should hold. Found out are: a folder under another run's name, a summary or a
record that was changed after it was written, a record that ends too early, and coordinates that the run does not have.
Older folders without a seal are judged by what they have; `is_sealed` tells them apart.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weight_decay.runs.read import (
    FINISHED,
    MAIN_BRANCH,
    UNREADABLE,
    Cell,
    DamagedRunError,
    Row,
    finite,
    read_record,
    read_summary,
    rows_of,
)
from weight_decay.runs.seal import canonical, digest, is_sealed

NEEDED = ("run_id", "seed", "scale", "data", "regime", "git_commit", "seconds")
NORM = "weights/norm"
_ABSENT = object()


class ForeignRunError(DamagedRunError):
    """The folder holds another run than its name says: nothing in it may be used, and nothing overwritten."""


@dataclass(frozen=True)
class Record:
    """A run, or one of its branches, as read: its summary and its rows."""

    branch: str
    summary: dict[str, Any]
    rows: list[Row]


def judge(folder: Path, run_id: str, coordinates: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The summary of run `run_id` in `folder`, finished or not, after all that it says was checked.

    Of a finished run and its finished branches the record is checked too, against its seal, without parsing it.
    Raises ForeignRunError if the folder holds another run, DamagedRunError for everything else that is wrong.
    """
    summary, *_ = (found for _, found, _ in _judged(folder, run_id, coordinates or {}))
    return summary


def read_run(cell: Cell) -> tuple[dict[str, Any], list[Record]]:
    """The summary of a finished run and the records of the run and its finished branches.

    The records are empty when the run has not finished. Raises DamagedRunError as `judge` does, and when a record
    cannot be parsed.
    """
    of_run: dict[str, Any] = {}
    records = []
    for name, summary, record in _judged(cell.folder, cell.run_id, cell.coordinates):
        of_run = of_run or summary
        if record is not None:
            records.append(Record(name, summary, rows_of(record)))
    return of_run, records


def _judged(
    folder: Path, run_id: str, coordinates: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any], bytes | None]]:
    """Name, summary and record of the run, then of each branch, after their checks; no record of what has not finished.

    One record at a time is held.
    """
    summary = read_summary(folder)
    check_owner(folder, summary, run_id)
    if summary["status"] not in FINISHED:
        yield MAIN_BRANCH, summary, None
        return
    _check_finished(summary, run_id, coordinates)
    _check_reference(folder, summary)
    yield MAIN_BRANCH, summary, _checked_record(folder, summary)
    _check_branches(folder, summary)
    for name in branches(folder):
        yield name, *judge_branch(folder / "branches" / name, run_id)


def reference_digest(rows: Sequence[Row]) -> str:
    """SHA-256 of what a matched schedule reads of its reference: steps, learning rates, weight norms."""
    found = hashlib.sha256()
    for row in rows:
        if "lr" in row:
            # Times differ between any two repetitions of a run, and nothing is made from them.
            read = {name: value for name, value in row.items() if name in ("step", "lr") or name.startswith(NORM)}
            found.update(json.dumps(read, sort_keys=True).encode())
    return found.hexdigest()


def check_owner(folder: Path, summary: Mapping[str, Any], run_id: str, branch: str | None = None) -> None:
    """ForeignRunError unless `summary` is that of run `run_id`, or of its branch, in the folder that it names."""
    found = summary.get("run_id", run_id)
    if found != run_id:
        raise ForeignRunError(f"summary.json belongs to run {found}, not {run_id}")
    if not is_sealed(summary):
        return
    if branch is None:
        named = summary.get("folder") if summary.get("branch") == MAIN_BRANCH else summary.get("branch")
    else:
        named = f"{summary.get('branch')}-{int(summary.get('start_step') or 0):09d}"
    if named != folder.name:
        raise ForeignRunError(f"summary.json belongs to {named}, not {folder.name}")


def branches(folder: Path) -> Iterator[str]:
    """The names of the folders of a run's branches, sorted."""
    with_branches = folder / "branches"
    if with_branches.is_dir():
        yield from sorted(entry.name for entry in os.scandir(with_branches) if entry.is_dir())


def _check_branches(folder: Path, summary: Mapping[str, Any]) -> None:
    """DamagedRunError unless the branches are those that the run had when it was sealed."""
    if not is_sealed(summary):
        return
    there, wanted = set(branches(folder)), set(summary["branch_folders"])
    for names, what in ((wanted - there, "is missing"), (there - wanted, "is none of this run's")):
        if names:
            raise DamagedRunError(f"branch {min(names)} {what}")


def judge_branch(folder: Path, run_id: str) -> tuple[dict[str, Any], bytes | None]:
    """Summary and record of the branch in `folder`, checked like those of a run; no record if it has not finished."""
    try:
        summary = read_summary(folder)
        check_owner(folder, summary, run_id, folder.name)
        if summary["status"] not in FINISHED:
            return summary, None
        return summary, _checked_record(folder, summary)
    except ForeignRunError as error:
        raise ForeignRunError(f"branch {folder.name}: {error}") from error
    except DamagedRunError as error:
        raise DamagedRunError(f"branch {folder.name}: {error}") from error


def _check_finished(summary: Mapping[str, Any], run_id: str, coordinates: Mapping[str, Any]) -> None:
    for name in NEEDED:
        if name not in summary:
            raise DamagedRunError(f"summary.json lacks {name}")
    if not is_sealed(summary):
        return
    settings = summary.get("identity")
    # As config/run.py makes a run's id; the report side does not know that module.
    if hashlib.sha256(canonical(settings)).hexdigest()[:12] != run_id:
        raise DamagedRunError("the settings in summary.json are not those of the run's id")
    for key, value in coordinates.items():
        found: Any = settings
        for part in key.split("."):
            found = found.get(part, _ABSENT) if isinstance(found, dict) else _ABSENT
        if found is not _ABSENT and not _same(value, found):
            raise DamagedRunError(f"the experiment's file says {key}={value}, but the run has {found}")


def _check_reference(folder: Path, summary: Mapping[str, Any]) -> None:
    """DamagedRunError if the run that this one is matched to was computed again since, with other numbers."""
    followed = summary.get("reference")
    if not isinstance(followed, dict):
        return
    for other in sorted(folder.parent.glob(f"*-{followed.get('run_id')}")):
        try:
            found = read_summary(other)
            rows = rows_of(_checked_record(other, found)) if found["status"] in FINISHED else []
        except DamagedRunError:
            continue  # which its own row will say
        if rows and reference_digest(rows) != followed.get("sha256"):
            raise DamagedRunError(f"the run that it is matched to, {other.name}, was computed again since, otherwise")


def _same(said: Any, found: Any) -> bool:
    """Whether a coordinate is the setting; lengths ("0.5k steps") and choices of groups are written in many ways."""
    if isinstance(found, bool) or found is None or isinstance(said, bool) or said is None:
        return said is found
    if isinstance(found, int | float):
        try:
            return float(said) == float(found)
        except UNREADABLE:
            return False
    return True


def _checked_record(folder: Path, summary: Mapping[str, Any]) -> bytes:
    """The bytes of a finished run's or branch's record, after the checks of everything but its lines' content."""
    content = read_record(folder / "metrics.jsonl", summary.get("record") if is_sealed(summary) else None)
    if not content.strip():
        raise DamagedRunError("metrics.jsonl is empty")
    if not isinstance(summary.get("final"), dict):
        raise DamagedRunError("summary.json has no final metrics")
    if "divergence_step" not in summary:
        raise DamagedRunError("summary.json lacks divergence_step")
    total = finite(summary.get("total_steps"))
    if is_sealed(summary):
        said = summary.get("record")
        if said != (found := digest(content)):
            length = said.get("bytes") if isinstance(said, dict) else None
            raise DamagedRunError(
                f"metrics.jsonl was changed after it was written ({found['bytes']} bytes, sealed with {length})"
                if length != found["bytes"]
                else "metrics.jsonl was changed after it was written (its SHA-256 differs from the sealed one)"
            )
        last = _last_step(content)
        if last != finite(summary.get("step")) or (summary["status"] == "completed" and last != total):
            raise DamagedRunError(f"metrics.jsonl ends at step {last}, not at the run's last one")
    else:
        # Nobody vouches for it: at least every line must make sense, for every command alike.
        rows = rows_of(content)
        if summary["status"] == "completed" and total is not None and rows[-1]["step"] != total:
            raise DamagedRunError(f"metrics.jsonl ends at step {rows[-1]['step']}, not at {total:g}")
    return content


def _last_step(content: bytes) -> float | None:
    try:
        return finite(json.loads(content.rstrip().rpartition(b"\n")[2])["step"])
    except UNREADABLE:
        return None
