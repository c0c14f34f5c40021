"""Does the demo say the same with other seeds, other CPU kernels and other Pythons? Runs it with each, prints a table.

python scripts/demo_seeds.py [--seeds 0..4] [--kernels avx2 default] [--pythons PYTHON ...] [--folder FOLDER]

PYTHON is an interpreter that has the package (this one by default; `make test-wheels WHEELS=FOLDER` makes others). A
kernel is what ATen and oneDNN are allowed to use; one that this CPU lacks is said to be so. About 4 minutes on two
cores for each seed, kernel and Python; finished runs are not run again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from weight_decay.experiments.demo import EXPERIMENTS
from weight_decay.report.claims.demo import demo_effects
from weight_decay.report.tables.text_table import markdown_table

KERNELS = {
    "default": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "avx512": {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX"},
}
ASKED = "import sys, torch; print('.'.join(map(str, sys.version_info[:2])), torch.backends.cpu.get_cpu_capability())"


def answers(python: str, kernel: str, seed: int, folder: Path) -> dict[str, str]:
    """Run the demo's experiments with one seed; each finding's verdict by its statement."""
    results = folder / f"seed-{seed}"
    command = [python, "-m", "weight_decay"]
    environment = {**os.environ, **KERNELS[kernel]}
    for experiment in EXPERIMENTS:
        words = [f"experiment={experiment}", "scale=micro", f"seeds={seed}..{seed}", f"execution.results={results}"]
        subprocess.run([*command, *words, "jobs=2", "tracking=disabled"], env=environment, check=True)
    subprocess.run([*command, "collect", *EXPERIMENTS, f"results={results}"], env=environment, check=True)
    return {finding.statement: finding.verdict for effect in demo_effects(results) for finding in effect.findings}


def main(words: list[str]) -> int:
    """Run all, print how often each finding came out how; exit code 1 if anywhere a yes meets a no."""
    told = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    told.add_argument("--seeds", default="0..4")
    told.add_argument("--kernels", nargs="+", choices=KERNELS, default=["avx2"])
    told.add_argument("--pythons", nargs="+", default=[sys.executable], metavar="PYTHON")
    told.add_argument("--folder", type=Path, default=Path("results/demo_seeds"))
    given = told.parse_args(words)
    first, _, last = given.seeds.partition("..")
    seeds = range(int(first), int(last or first) + 1)
    columns: dict[str, dict[str, Counter[str]]] = {}
    for python in given.pythons:
        for kernel in given.kernels:
            asked = subprocess.run(
                [python, "-c", ASKED], env={**os.environ, **KERNELS[kernel]}, capture_output=True, text=True, check=True
            )
            version, used = asked.stdout.split()
            name = f"Python {version}, {kernel}"
            if used.lower() != kernel:
                print(f"{name}: this CPU has only {used}, so not run", file=sys.stderr)
                continue
            counts = columns.setdefault(name, {})
            for seed in seeds:
                found = answers(python, kernel, seed, given.folder / f"{version}-{kernel}")
                for statement, verdict in found.items():
                    counts.setdefault(statement, Counter())[verdict] += 1
    statements = list(dict.fromkeys(statement for counts in columns.values() for statement in counts))
    rows = [[s, *(_counted(counts.get(s, Counter())) for counts in columns.values())] for s in statements]
    print("\n".join(markdown_table([["finding", *columns], *rows], "l" * (1 + len(columns)))))
    together = {s: set().union(*(counts.get(s, Counter()) for counts in columns.values())) for s in statements}
    return int(any({"yes", "no"} <= verdicts for verdicts in together.values()))


def _counted(verdicts: Counter[str]) -> str:
    return ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
