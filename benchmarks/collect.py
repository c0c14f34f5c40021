"""`collect` over 10,000 run folders of 50 rows, and `status` over 1,000: seconds, and memory beside a tenth of it.

Goals: collect under 20 s with memory that does not grow with the number of runs; status under 1 s.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SECONDS, STATUS_SECONDS, GROWTH = 20.0, 1.0, 1.25
MEASURED = """
import resource, sys, time
from pathlib import Path
from weight_decay.report.tables.collect import collect
from weight_decay.report.live.status import status_table
results = Path(sys.argv[1])
started = time.perf_counter()
collected = collect(results) if sys.argv[2] == "collect" else status_table(results, None)
seconds = time.perf_counter() - started
print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, getattr(collected, "finished", 0))
print(len(getattr(collected, "damaged", ())))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    runs: int = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        large, small = Path(folder, "large"), Path(folder, "small")
        for results, count in ((large, runs), (small, runs // 10)):
            write(results, count)
        seconds, memory, finished, damaged = measure(large, "collect")
        _, tenth, _, _ = measure(small, "collect")
        status_seconds, *_ = measure(small, "status")
    growth = memory / tenth
    print(
        f"collect: {finished:.0f} runs and {damaged:.0f} damaged ones named in {seconds:.1f} s, {memory / 1024:.0f} MiB"
    )
    print(f"status: {runs // 10} runs in {status_seconds:.2f} s")
    for name, ratio, goal in (
        ("collect seconds / goal", seconds / SECONDS, 1.0),
        ("memory over a tenth of the runs'", growth, GROWTH),
        ("status seconds / goal", status_seconds / STATUS_SECONDS, 1.0),
    ):
        print(f"ratio {ratio:.3f} {name} (goal: at most {goal}) {'met' if ratio <= goal else 'MISSED'}")


def write(results: Path, count: int) -> None:
    """Synthetic runs, one in a thousand of them damaged, in one experiment."""
    sys.path.insert(0, str(ROOT / "tests"))
    from synthetic_runs import under_training_run, write_experiment, write_run

    cells = [write_run(results, under_training_run(0.05, seed=seed)) for seed in range(count)]
    for cell in cells[::1000]:
        (results / "runs" / cell["folder"] / "metrics.jsonl").write_text("{")
    write_experiment(results, "many", cells, "under_training")


def measure(results: Path, command: str) -> list[float]:
    """Seconds, peak memory in KiB, finished and damaged runs, in a process of its own."""
    line = [sys.executable, "-c", MEASURED, str(results), command]
    return [float(word) for word in subprocess.run(line, check=True, capture_output=True, text=True).stdout.split()]


if __name__ == "__main__":
    main()
