"""Many cells: one after the other, or several at a time in worker processes that claim them one by one."""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from weight_decay.config.run import folder_name, run_id
from weight_decay.data.where import require_data
from weight_decay.device.distributed import current, join
from weight_decay.errors import UserError
from weight_decay.experiments.parallel import WORDS, in_parallel
from weight_decay.experiments.plan import Cell, Plan, write_plan
from weight_decay.experiments.slurm import meet_tasks_of_job
from weight_decay.runs.folder import Labels, Standing, put_aside, stale_fingerprint, standing
from weight_decay.runs.lock import claimed
from weight_decay.runs.progress import tell
from weight_decay.runs.read import FINISHED, read_status, readable_summary
from weight_decay.runs.summary import code_of
from weight_decay.tasks.choose import check_data, data_fingerprint
from weight_decay.training.build import check
from weight_decay.training.run import run
from weight_decay.training.schedule import ReferenceMissingError
from weight_decay.training.stopping import stop_requests
from weight_decay.training.stretch import Outcome

FAILED, ELSEWHERE, INTERRUPTED = 1, 3, 130
_SEVERITY = (0, ELSEWHERE, FAILED, 2, INTERRUPTED)
_STILL_AT_WORK = "  not complete (exit code 3): another command is at work on them; this one tells later how they end."


def run_cells(plan: Plan, jobs: int, stale: str, record: bool = True) -> int:
    """Run every cell that is not finished; returns the exit code.

    0: every cell is finished. 1: a cell failed. 3: another command is still at work on one. 130: stopped.

    Raises UserError before any work if a cell cannot be run or holds numbers of other code (see `prepare`), and for
    bad input in a plan of a single cell. `record`: write the experiment's file; a job of a multirun leaves it alone.
    Under torchrun, and in a job of several tasks, all processes go through the same cells together, one at a time.
    """
    meet_tasks_of_job()
    with join() as ranks:
        if ranks.writes:
            prepare(plan, stale, record)
        # Nobody may go on before rank 0 has put aside what is stale.
        ranks.agree(0)
        return _run_prepared(plan, jobs if ranks.count == 1 else 1)


def _run_prepared(plan: Plan, jobs: int) -> int:
    missing = unfinished(plan)
    if not current().agree(len(missing)):
        return _report(plan, {cell.index: "skipped" for cell in plan.cells})
    with stop_requests() as stop:
        if len(plan.cells) == 1:
            outcome = run(plan.cells[0].config, _labels(plan, plan.cells[0]))
            return _report(plan, {plan.cells[0].index: outcome})
        workers = max(1, min(jobs, len(missing)))
        outcomes = _serial(plan, stop) if workers == 1 else in_parallel(plan, workers, stop, _serial)
    return _report(plan, outcomes)


def prepare(plan: Plan, stale: str, record: bool = True) -> None:
    """Check every cell, look for numbers of other code, and record the experiment in its file.

    `stale` says what to do about runs of other code: "refuse" (UserError), "rerun" (put them aside in results/stale
    and compute them again), "keep" (take them as they are).
    """
    for cell in plan.cells:
        check(cell.config)
    folders = [run_folder(cell) for cell in plan.cells]
    old = [(folder, cell) for folder, cell in zip(folders, plan.cells, strict=True) if stale_fingerprint(folder)]
    if old and stale == "refuse":
        raise UserError(
            f"{plan.experiment} at scale {plan.scale}: {len(old)} of {len(folders)} run(s) hold numbers of other code "
            f"({stale_fingerprint(old[0][0])}, now {code_of(old[0][1].config)}), such as {old[0][0].name}; stale=rerun "
            "computes them again and keeps the old ones in results/stale, stale=keep takes them as they are."
        )
    if old:
        # What to do about numbers of other code is a question of which numbers to trust: then every byte of the data.
        for data in dict.fromkeys(cell.config.data for cell in plan.cells):
            check_data(data)
    for cell in plan.cells:
        _refuse_other_data(cell)
    # Once, and before any cell starts: the data of what is still to be run.
    for data in dict.fromkeys(cell.config.data for cell in unfinished(plan)):
        require_data(data)
    results = folders[0].parent.parent
    try:
        if stale == "rerun":
            for folder, _ in old:
                if (kept := put_aside(folder)) is not None:
                    print(f"computed by other code, kept in {kept}", file=sys.stderr)
        if record:
            write_plan(results, plan)
    except OSError as error:
        raise UserError(
            f"execution.results: cannot write to {results} ({error.strerror}); choose another folder."
        ) from None


def _refuse_other_data(cell: Cell) -> None:
    """UserError if the run is finished and was computed on other data than the config names now.

    Where the data lie is no part of a run's identity, so that a data set may move; what they are must not change.
    """
    summary = readable_summary(run_folder(cell))
    made_on = summary.get("data")
    if summary.get("status") not in FINISHED or not isinstance(made_on, dict):
        return
    now = data_fingerprint(cell.config.data)
    if now is not None and now != made_on.get("fingerprint"):
        raise UserError(
            f"data.root: {run_folder(cell)} was computed on other data than {cell.config.data.root} holds "
            f"({str(made_on.get('fingerprint'))[:12]}, now {now[:12]}); choose another execution.results."
        )


def run_folder(cell: Cell) -> Path:
    """Where the run of a cell lies."""
    return Path(cell.config.execution.results) / "runs" / folder_name(cell.config)


def unfinished(plan: Plan) -> list[Cell]:
    """The cells that have not completed or diverged."""
    return [cell for cell in plan.cells if _standing(cell).status != "finished"]


def _standing(cell: Cell) -> Standing:
    return standing(run_folder(cell), run_id(cell.config))


def report_from_folders(plan: Plan, logs: Path) -> int:
    """Print how a sweep of many jobs ended, from its run folders alone; returns the exit code."""
    states = {cell.index: _state(cell) for cell in plan.cells}
    _tell(plan, states, Counter(states.values()).most_common())
    left = {state for state in states.values() if state not in FINISHED}
    if not left:
        return 0
    if left == {WORDS["busy"]}:
        print(_STILL_AT_WORK, file=sys.stderr)
        return ELSEWHERE
    print(f"  logs: {logs}; the same command runs what is missing.", file=sys.stderr)
    return FAILED


def _state(cell: Cell) -> str:
    """How a cell stands when the jobs of this command are over."""
    stands = _standing(cell).status
    if stands not in ("finished", "unfinished"):
        return stands
    state = read_status(run_folder(cell)) or "not started"
    if stands == "unfinished" and _held(cell):
        return WORDS["busy"]
    return "not finished" if state == "running" else state


def worst(codes: Sequence[int]) -> int:
    """The exit code that tells most of several."""
    return max(codes, key=_SEVERITY.index, default=0)


def _labels(plan: Plan, cell: Cell) -> Labels:
    return Labels(plan.experiment, plan.scale, cell.title or plan.experiment)


def _serial(
    plan: Plan, stop: Callable[[], bool], pass_on: Callable[[dict[int, Outcome]], None] | None = None
) -> dict[int, Outcome]:
    outcomes: dict[int, Outcome] = {}
    waiting = deque(plan.cells)
    patience = len(waiting)
    second_look = False
    while waiting:
        cell = waiting.popleft()
        if current().any(stop()):
            outcomes.setdefault(cell.index, "interrupted")
            break
        try:
            outcomes[cell.index] = run(cell.config, _labels(plan, cell))
            patience = len(waiting)
        except UserError as error:
            # Its reference may be another cell: one that comes later, or that another process is working on.
            if isinstance(error, ReferenceMissingError) and (_busy(plan, outcomes) or patience > 0):
                patience -= 1
                waiting.append(cell)
                if patience <= 0:
                    time.sleep(1.0)
                continue
            tell(f"{cell.title}: {error}")
            outcomes[cell.index] = "failed"
        if pass_on is not None:
            pass_on({cell.index: outcomes[cell.index]})
        if outcomes[cell.index] == "interrupted":
            break
        if not waiting and not second_look:
            # Whoever had a cell may have been killed meanwhile.
            second_look = True
            waiting.extend(cell for cell in plan.cells if outcomes.get(cell.index) == "busy" and not _held(cell))
    return outcomes


def _busy(plan: Plan, outcomes: dict[int, Outcome]) -> bool:
    """Whether another process is still working on a cell of the plan."""
    return any(outcomes.get(cell.index) == "busy" and _held(cell) for cell in plan.cells)


def _held(cell: Cell) -> bool:
    """Whether another process is working on the cell."""
    if not run_folder(cell).is_dir():
        return False
    with claimed(run_folder(cell)) as free:
        return not free


def _report(plan: Plan, outcomes: dict[int, Outcome]) -> int:
    # What another command had when we passed may be finished now.
    busy = [cell for cell in plan.cells if outcomes.get(cell.index) == "busy"]
    outcomes |= {cell.index: "skipped" for cell in busy if _standing(cell).status == "finished"}
    if current().writes:
        counts = Counter(outcomes.values())
        _tell(plan, outcomes, counts.items())
        if "interrupted" in counts:
            print("  the same command goes on where it stopped.", file=sys.stderr)
        elif "busy" in counts:
            print(_STILL_AT_WORK, file=sys.stderr)
    codes = {"interrupted": INTERRUPTED, "failed": FAILED, "busy": ELSEWHERE}
    return worst([codes.get(outcome, 0) for outcome in outcomes.values()])


def _tell(plan: Plan, ended: Mapping[int, str], counts: Iterable[tuple[str, int]]) -> None:
    """How many cells ended how, and which failed."""
    told = ", ".join(f"{count} {WORDS.get(name, name)}" for name, count in counts)
    print(f"{plan.experiment} at scale {plan.scale}: {told} of {len(plan.cells)} cell(s).", file=sys.stderr)
    for cell in plan.cells:
        if ended.get(cell.index) == "failed":
            print(f"  failed: {cell.title}; see {run_folder(cell) / 'error.txt'}", file=sys.stderr)
