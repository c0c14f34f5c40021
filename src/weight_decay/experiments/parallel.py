"""Several cells at a time: worker processes that claim them one by one, and one display of all of them."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess

from weight_decay.device.choose import environment_of_worker
from weight_decay.experiments.plan import Plan
from weight_decay.runs.progress import Display, Slot, draw_elsewhere
from weight_decay.training.stopping import stop_requests
from weight_decay.training.stretch import Outcome

WORDS = {"skipped": "already done", "busy": "running elsewhere"}
"""What a worker says of cells that others have made or have."""
Outcomes = dict[int, Outcome]
Message = Outcomes | str
"""What a worker sends: how cells have ended, or a line for the user."""
Serial = Callable[[Plan, Callable[[], bool], Callable[[Outcomes], None] | None], Outcomes]
Queue = multiprocessing.SimpleQueue


def in_parallel(plan: Plan, workers: int, stop: Callable[[], bool], serial: Serial) -> Outcomes:
    """Run the cells of a plan in so many processes, each going through all of them with `serial`."""
    # "spawn": a forked child would inherit torch's thread pools in an unusable state.
    context = multiprocessing.get_context("spawn")
    # A queue each: a worker that is killed while it writes must not block the others.
    queues: list[Queue[Message]] = [context.SimpleQueue() for _ in range(workers)]
    slots = [context.RawValue(Slot) for _ in range(workers)]
    processes: list[BaseProcess] = [
        context.Process(target=_work, args=(plan, slot, queue, serial))
        for slot, queue in zip(slots, queues, strict=True)
    ]
    execution = plan.cells[0].config.execution
    for position, process in enumerate(processes):
        with environment_of_worker(position, execution.threads or 1):
            process.start()
    outcomes: Outcomes = {}
    with Display(slots, len(plan.cells), execution.progress) as display:
        _watch(processes, queues, outcomes, display, stop)
    if any(process.exitcode for process in processes) and not stop():
        # A killed worker takes the cell it held down with it; whatever is left is taken up here.
        _merge(outcomes, serial(plan, stop, None))
    if stop():
        outcomes |= {cell.index: "interrupted" for cell in plan.cells if cell.index not in outcomes}
    return outcomes


def _work(plan: Plan, slot: Slot, queue: Queue[Message], serial: Serial) -> None:
    """A worker: goes through all cells, taking those that nobody else has; the folder lock decides."""
    draw_elsewhere(slot, queue.put)
    with stop_requests() as stop:
        serial(plan, stop, queue.put)


def _watch(
    processes: list[BaseProcess],
    queues: list[Queue[Message]],
    outcomes: Outcomes,
    display: Display,
    stop: Callable[[], bool],
) -> None:
    """Until all workers are gone: take what they send, draw where they are, pass a request to stop on."""
    passed_on = False
    while any(process.is_alive() for process in processes):
        for process, queue in zip(processes, queues, strict=True):
            process.join(0.1)
            _take(queue, outcomes, display)
        display.draw(sum(outcome not in WORDS for outcome in outcomes.values()))
        if stop() and not passed_on:
            passed_on = True
            for process in processes:
                if process.is_alive() and process.pid is not None:
                    os.kill(process.pid, signal.SIGTERM)
    for queue in queues:
        _take(queue, outcomes, display)


def _take(queue: Queue[Message], outcomes: Outcomes, display: Display) -> None:
    """What a worker has sent."""
    while not queue.empty():
        message = queue.get()
        if isinstance(message, str):
            display.tell(message)
        else:
            _merge(outcomes, message)


def _merge(outcomes: Outcomes, more: Outcomes) -> None:
    """Keep the most telling outcome of each cell: a worker that made it over one that found it made or taken."""
    for index, outcome in more.items():
        if index not in outcomes or outcomes[index] in WORDS:
            outcomes[index] = outcome
