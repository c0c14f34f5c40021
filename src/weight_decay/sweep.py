"""Many cells: one after the other, or several at a time in worker processes that claim them one by one."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from weight_decay.build import check
from weight_decay.config import folder_name
from weight_decay.distributed import Ranks, current, join
from weight_decay.errors import UserError
from weight_decay.experiments import Cell, Plan, write_plan
from weight_decay.matched import ReferenceMissingError
from weight_decay.run import Outcome, run
from weight_decay.run_folder import Labels, claimed

FAILED, INTERRUPTED = 1, 130


def run_cells(plan: Plan, jobs: int) -> int:
    """Run every cell that is not finished; returns the exit code: 1 if a cell failed, 130 if stopped, else 0.

    Under torchrun all processes go through the same cells together, one cell at a time.
    Raises UserError before any work if a cell cannot be run, and for bad input in a plan of a single cell.
    """
    for cell in plan.cells:
        check(cell.config)
    with join() as ranks:
        return _run_checked(plan, jobs if ranks.count == 1 else 1, ranks)


def _run_checked(plan: Plan, jobs: int, ranks: Ranks) -> int:
    results = Path(plan.cells[0].config.execution.results)
    try:
        if ranks.writes:
            write_plan(results, plan)
    except OSError as error:
        raise UserError(
            f"execution.results: cannot write to {results} ({error.strerror}); choose another folder."
        ) from None
    if len(plan.cells) == 1:
        outcome = run(plan.cells[0].config, _labels(plan, plan.cells[0], 0))
        return _report(plan, {plan.cells[0].index: outcome})
    workers = min(jobs, len(plan.cells))
    return _report(plan, _serial(plan, plan.cells, 0) if workers == 1 else _parallel(plan, workers))


def _labels(plan: Plan, cell: Cell, position: int) -> Labels:
    return Labels(plan.experiment, plan.scale, cell.title or plan.experiment, position)


def _serial(plan: Plan, cells: Sequence[Cell], position: int) -> dict[int, Outcome]:
    outcomes: dict[int, Outcome] = {}
    waiting = deque(cells)
    patience = len(cells)
    while waiting:
        cell = waiting.popleft()
        try:
            outcomes[cell.index] = run(cell.config, _labels(plan, cell, position))
            patience = len(waiting)
        except ReferenceMissingError as error:
            # Its reference may be another cell: one that comes later, or that another process is working on.
            if _busy(plan, outcomes) or patience > 0:
                patience -= 1
                waiting.append(cell)
                if patience <= 0:
                    time.sleep(1.0)
                continue
            tqdm.write(f"{cell.title}: {error}", file=sys.stderr)
            outcomes[cell.index] = "failed"
        except UserError as error:
            tqdm.write(f"{cell.title}: {error}", file=sys.stderr)
            outcomes[cell.index] = "failed"
        if outcomes[cell.index] == "interrupted":
            break
    return outcomes


def _busy(plan: Plan, outcomes: dict[int, Outcome]) -> bool:
    """Whether another process is still working on a cell of the plan."""
    for cell in plan.cells:
        if outcomes.get(cell.index) == "busy":
            folder = Path(cell.config.execution.results) / "runs" / folder_name(cell.config)
            with claimed(folder) as free:
                if not free:
                    return True
    return False


def _work(plan: Plan, position: int, queue: multiprocessing.Queue[dict[int, Outcome]]) -> None:
    """A worker: goes through all cells, taking those that nobody else has; the folder lock decides."""
    queue.put(_serial(plan, plan.cells, position))


def _parallel(plan: Plan, workers: int) -> dict[int, Outcome]:
    # "spawn": a forked child would inherit torch's thread pools in an unusable state.
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[dict[int, Outcome]] = context.Queue()
    processes = [context.Process(target=_work, args=(plan, position, queue)) for position in range(workers)]
    # One thread each: the BLAS libraries read this when the child imports them.
    threads = str(plan.cells[0].config.execution.threads or 1)
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ.update(dict.fromkeys(before, threads))
    try:
        for process in processes:
            process.start()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    outcomes: dict[int, Outcome] = {}
    try:
        for process in processes:
            while process.is_alive() or not queue.empty():
                process.join(0.2)
                while not queue.empty():
                    _merge(outcomes, queue.get())
    except KeyboardInterrupt:
        for process in processes:
            process.join()
        raise
    if any(process.exitcode for process in processes):
        # A killed worker takes the cell it held down with it; whatever is left is taken up here.
        _merge(outcomes, _serial(plan, plan.cells, 0))
    return outcomes


def _merge(outcomes: dict[int, Outcome], more: dict[int, Outcome]) -> None:
    """Keep the most telling outcome of each cell: a worker that made it over one that found it made or taken."""
    dull = ("skipped", "busy")
    for index, outcome in more.items():
        if index not in outcomes or outcomes[index] in dull:
            outcomes[index] = outcome


def _report(plan: Plan, outcomes: dict[int, Outcome]) -> int:
    code = INTERRUPTED if "interrupted" in outcomes.values() else FAILED if "failed" in outcomes.values() else 0
    if current().writes:
        _tell(plan, outcomes)
    return code


def _tell(plan: Plan, outcomes: dict[int, Outcome]) -> None:
    counts = {name: list(outcomes.values()).count(name) for name in dict.fromkeys(outcomes.values())}
    told = ", ".join(f"{count} {'already done' if name == 'skipped' else name}" for name, count in counts.items())
    print(f"{plan.experiment} at scale {plan.scale}: {told} of {len(plan.cells)} cell(s).", file=sys.stderr)
    results = Path(plan.cells[0].config.execution.results) / "runs"
    for cell in plan.cells:
        if outcomes.get(cell.index) == "failed":
            print(
                f"  failed: {cell.title}; see {results / folder_name(cell.config) / 'error.txt'}",
                file=sys.stderr,
            )
    if "interrupted" in counts:
        print("  the same command goes on where it stopped.", file=sys.stderr)
