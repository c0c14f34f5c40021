"""What the paper costs: GPU-hours of every experiment at scale paper, assumed and measured; a table of docs/gpu.md.

    python scripts/gpu_hours.py            # prints the table
    python scripts/gpu_hours.py --write    # and puts it into docs/gpu.md

Estimated as `--dry-run` does; a run that several experiments share is counted in the first of them alone.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from weight_decay.cli import make_plan
from weight_decay.config.run import RunConfig, run_id
from weight_decay.experiments.cost import Cost, estimate
from weight_decay.experiments.throughput import COMPILED_GPU, GPU, Assumptions

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
        "| experiment | figure | runs | not compiled | compiled | measured | not spent on training |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    seen: set[str] = set()
    whole: list[tuple[RunConfig, Cost]] = []
    for file in sorted((REPOSITORY / "configs" / "experiment").glob("*.yaml")):
        if file.stem == "none":
            continue
        plan = make_plan([f"experiment={file.stem}", "scale=paper"])[0]
        new = [cell.config for cell in plan.cells if run_id(cell.config) not in seen]
        seen |= {run_id(config) for config in new}
        costs = [(config, cost) for config in new if (cost := estimate(config)) is not None]
        whole += costs
        if not new:
            lines.append(f"| `{file.stem}` | {plan.figure or OWN} | {len(plan.cells)} | | | | the runs of others |")
        elif len(costs) < len(new):
            lines.append(
                f"| `{file.stem}` | {plan.figure or OWN} | {len(new)} | | | | depends on the size of the data |"
            )
        else:
            lines.append(f"| `{file.stem}` | {plan.figure or OWN} | {len(new)} | {figures(costs)} |")
    return "\n".join([*lines, f"| **all** | | {len(whole)} | {figures(whole)} |"])


def figures(costs: list[tuple[RunConfig, Cost]]) -> str:
    """Hours on the two assumed devices and on the one that gpu-check measured, there with the share of what is not
    training."""
    assumed = [sum(cost.hours(device) for _, cost in costs) for device in (GPU, COMPILED_GPU)]
    measured = [
        cost.seconds(Assumptions().throughput("paper", config, REPOSITORY / "results")) for config, cost in costs
    ]
    total = sum(sum(seconds) for seconds in measured)
    aside = total - sum(training for training, _, _ in measured)
    return " | ".join([*map(rounded, [*assumed, total / 3600]), f"{100 * aside / total:.0f} %"])


def rounded(hours: float) -> str:
    """To two digits or to whole hours."""
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


if __name__ == "__main__":
    main()
