"""What the whole paper costs: GPU-hours of every experiment at scale paper, compiled and not; a table of docs/gpu.md.

    python scripts/gpu_hours.py            # prints the table
    python scripts/gpu_hours.py --write    # and puts it into docs/gpu.md

Estimated as `--dry-run` does; a run that several experiments share is counted in the first of them alone.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from weight_decay.cli import make_plan
from weight_decay.config.identity import run_id
from weight_decay.experiments.cost import Cost, estimate
from weight_decay.experiments.throughput import COMPILED_GPU, GPU, Throughput

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs" / "gpu.md"
OWN = "project's own"
MARKS = re.compile(r"(<!-- begin gpu-hours -->\n).*?(<!-- end gpu-hours -->)", re.DOTALL)


def main() -> None:
    """Print the table, and with --write put it between its marks."""
    text = table()
    print(text)
    if "--write" in sys.argv[1:]:
        PAGE.write_text(MARKS.sub(lambda marks: f"{marks[1]}{text}\n{marks[2]}", PAGE.read_text()))


def table() -> str:
    """The table in Markdown: one line for each experiment, and the sum."""
    lines = [
        "| experiment | figure | runs | not compiled | compiled | not spent on training |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    seen: set[str] = set()
    whole: list[Cost] = []
    for file in sorted((REPOSITORY / "configs" / "experiment").glob("*.yaml")):
        if file.stem == "none":
            continue
        plan = make_plan([f"experiment={file.stem}", "scale=paper"])[0]
        new = [cell.config for cell in plan.cells if run_id(cell.config) not in seen]
        seen |= {run_id(config) for config in new}
        costs = [cost for config in new if (cost := estimate(config)) is not None]
        whole += costs
        if not new:
            lines.append(f"| `{file.stem}` | {plan.figure or OWN} | {len(plan.cells)} | | | the runs of others |")
        elif len(costs) < len(new):
            lines.append(f"| `{file.stem}` | {plan.figure or OWN} | {len(new)} | | | depends on the size of the data |")
        else:
            lines.append(f"| `{file.stem}` | {plan.figure or OWN} | {len(new)} | {figures(costs)} |")
    return "\n".join([*lines, f"| **all** | | {len(whole)} | {figures(whole)} |"])


def figures(costs: list[Cost]) -> str:
    """Hours on both devices, and the share of evaluation and probes on the compiled one."""
    aside, total = 0.0, 0.0
    for cost in costs:
        training, evaluation, probes = cost.seconds(COMPILED_GPU)
        aside, total = aside + evaluation + probes, total + training + evaluation + probes
    return f"{hours(costs, GPU)} | {hours(costs, COMPILED_GPU)} | {100 * aside / total:.0f} %"


def hours(costs: list[Cost], throughput: Throughput) -> str:
    """The sum of hours, rounded to two digits or to whole hours."""
    total = sum(cost.hours(throughput) for cost in costs)
    return f"{total:,.0f}" if total >= 10 else f"{total:.2g}"


if __name__ == "__main__":
    main()
