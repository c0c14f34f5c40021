"""The folder of a run: who works on it, how it stands, what its runs are called."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

from weight_decay.errors import UserError
from weight_decay.runs.files import read_bounded
from weight_decay.runs.fingerprint import other_code
from weight_decay.runs.judge import ForeignRunError, judge, judge_branch
from weight_decay.runs.lock import claimed
from weight_decay.runs.read import FINISHED, MAIN_BRANCH, UNREADABLE, DamagedRunError, readable_summary


@dataclass(frozen=True)
class Labels:
    """What a run is called; none of it can change its numbers."""

    experiment: str
    scale: str
    title: str


class ForeignFolderError(UserError):
    """A folder holds another run than its name says, so nothing may be read from it or written to it."""

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(
            f"{folder}: {reason}; the folder was renamed or copied: put it back under its own name, or move it away."
        )


@dataclass(frozen=True)
class Standing:
    """How a run or branch stands: `status` "finished", "unfinished", "damaged" or "foreign", and `reason` for these."""

    status: str
    reason: str = ""


def standing(folder: Path, run_id: str, branch: bool = False) -> Standing:
    """Whether the folder holds run `run_id` (or a branch of it), finished; a folder that holds nothing is unfinished.

    "damaged" is a finished run that cannot be believed, "foreign" another run's folder, finished or not.
    """
    try:
        found = judge_branch(folder, run_id)[0] if branch else judge(folder, run_id)
    except ForeignRunError as error:
        return Standing("foreign", str(error))
    except DamagedRunError as error:
        other = _other_owner(folder, run_id)
        if other:
            return Standing("foreign", other)
        # Without a summary there is nothing to believe or to doubt: the run has not come that far.
        return Standing("damaged", str(error)) if (folder / "summary.json").exists() else Standing("unfinished")
    if found["status"] in FINISHED:
        return Standing("finished")
    other = _other_owner(folder, run_id)
    return Standing("foreign", other) if other else Standing("unfinished")


def _other_owner(folder: Path, run_id: str) -> str | None:
    """Whose checkpoints lie in the folder, if they are another run's or branch's."""
    branch = folder.name if folder.parent.name == "branches" else MAIN_BRANCH
    for path in sorted((folder / "checkpoints").glob("step-*.json")):
        try:
            owner = json.loads(read_bounded(path))["owner"]
            found = (owner["run_id"], owner["branch"])
        except UNREADABLE:
            continue  # damaged, or older than owners: whoever loads it will see
        if found != (run_id, branch):
            return f"checkpoint {path.name} belongs to {found[1]} of run {found[0]}, not to {branch} of {run_id}"
    return None


def stale_fingerprint(folder: Path) -> str | None:
    """The fingerprint of the code that computed what is in `folder`, if it is not the present code's."""
    summary = readable_summary(folder)
    # A run that failed before it saved anything holds no numbers of the other code.
    held = summary.get("status") in FINISHED or any((folder / "checkpoints").glob("step-*.json"))
    return other_code(summary) if held else None


def put_aside(folder: Path) -> Path | None:
    """Move a run of other code to results/stale, whole; None if somebody is working on it."""
    fingerprint = stale_fingerprint(folder)
    kept = folder.parent.parent / "stale"
    with claimed(folder) as mine:
        if not mine or fingerprint is None:
            return None
        kept.mkdir(exist_ok=True)
        name = f"{folder.name}-{fingerprint}"
        names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        return folder.rename(next(kept / free for free in names if not (kept / free).exists()))
