"""Many tiny cells, two workers, random kills: nothing lost, nothing run twice, the same tables at the end.

`make soak` runs 200 cells for at least 10 minutes; without it a small one runs with the other tests.
"""

from __future__ import annotations

import csv
import gzip
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import forked
from cluster.conftest import command, declare, same_numbers, summary
from weight_decay.report.tables.collect import collect
from weight_decay.report.tables.files import table_file

LONG = "WEIGHT_DECAY_SOAK" in os.environ
CELLS, SECONDS, MOST_KILLS = (200, 600.0, 10**6) if LONG else (4, 5.0, 5)
PAUSES = (0.5, 4.0) if LONG else (0.05, 0.5)
WORKERS = 2


def test_random_kills_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    environment = declare(tmp_path, CELLS, steps=60)
    undisturbed, results = tmp_path / "undisturbed", tmp_path / "results"
    whole = forked.run(command(undisturbed, f"jobs={WORKERS}")[1:], env=environment)
    assert whole.returncode == 0, whole.stderr
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    chance = random.Random(seed)
    workers: list[forked.Forked | None] = [None] * WORKERS
    finished: dict[Path, tuple[Any, ...]] = {}
    kills = starts = ends = 0
    started = time.monotonic()
    with (tmp_path / "workers.log").open("w") as log:
        while True:
            for index, worker in enumerate(workers):
                if worker is None or worker.poll() is not None:
                    ends += worker is not None and worker.returncode == 0
                    if len(finished) == CELLS and time.monotonic() - started > SECONDS:
                        continue
                    # Two independent commands that know nothing of each other; only the folders keep them apart.
                    log.write(worker.communicate()[1] if worker is not None else "")
                    workers[index] = forked.Forked(command(results)[1:], env=environment)
                    starts += 1
            observe(results, finished)
            if len(finished) == CELLS and time.monotonic() - started > SECONDS:
                break
            assert time.monotonic() - started < SECONDS + 600, (tmp_path / "workers.log").read_text()[-3000:]
            time.sleep(chance.uniform(*PAUSES))
            victim = workers[chance.randrange(WORKERS)]
            # As long as there is work: SIGKILL mostly, sometimes the polite signal that SLURM sends.
            # The first for certain: a fast machine is done before many chances.
            due = kills == 0 or chance.random() < 0.3
            if victim is not None and victim.poll() is None and due and kills < MOST_KILLS:
                victim.send_signal(chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
                kills += 1
        for worker in workers:
            if worker is not None:
                worker.wait(timeout=300)
    observe(results, finished)
    print(f"{kills} kills, {starts} commands started, {ends} of them ended by themselves with everything done")
    assert kills > 0
    assert len(finished) == CELLS
    assert all("failed" not in str(told) for told in finished.values())
    assert same_numbers(results, undisturbed) == CELLS
    for folder in (results, undisturbed):
        assert not collect(folder).damaged
    for kind in ("curves", "summary"):
        tables = [table_file(folder / "tables", "dozen-micro", kind) for folder in (results, undisturbed)]
        assert comparable(tables[0]) == comparable(tables[1])


def observe(results: Path, finished: dict[Path, tuple[Any, ...]]) -> None:
    """Note every run the first time it is seen finished, and hold it to that: run twice, it would change."""
    for folder in (results / "runs").glob("*"):
        told = summary(folder)
        if told.get("status") not in ("completed", "diverged"):
            assert folder not in finished, f"{folder.name} was finished and is {told.get('status')} now"
            continue
        mark = ((folder / "summary.json").stat().st_mtime_ns, told["weights_sha256"], told["seconds"])
        assert finished.setdefault(folder, mark) == mark, f"{folder.name} was run twice"


def comparable(table: Path) -> list[list[str]]:
    """A table without the columns that name the clock or the command."""
    with (gzip.open if table.suffix == ".gz" else open)(table, "rt", newline="") as stream:
        rows = list(csv.reader(stream))
    if "seconds" not in rows[0]:
        return rows
    dropped = {rows[0].index(name) for name in ("seconds", "command")}
    return [[cell for index, cell in enumerate(row) if index not in dropped] for row in rows]
