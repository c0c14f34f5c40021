"""Is this project right and fast on this machine's accelerator? One command, in pieces of at most ten minutes each.

    python scripts/gpu_check                      # every piece, then a page of verdicts; make gpu-check
    python scripts/gpu_check steps-language       # one piece; its rows replace those of an earlier call
    python scripts/gpu_check --list
    python scripts/gpu_check --bundle FOLDER ...  # on a machine with Python and torch alone; make gpu-bundle made it

Rows go into results/tables/gpu_check.csv with where they come from. Exit codes: 0; 1 if a verdict is bad; 2 if the
check cannot be made, as on a machine without an accelerator.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]


def main() -> int:
    """Run the pieces asked for; the exit code."""
    parser = argparse.ArgumentParser(
        prog="gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pieces", nargs="*", help="default: all of them, in order")
    parser.add_argument("--list", action="store_true", help="name the pieces")
    parser.add_argument("--bundle", type=Path, help="the folder of wheels that make gpu-bundle made")
    parser.add_argument("--results", type=Path, default=REPOSITORY / "results")
    # For the tests: the same pieces at sizes that mean nothing, on a device that is no accelerator.
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto", help=argparse.SUPPRESS)
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sys.path[:0] = [
        str(folder) for folder in (HERE, REPOSITORY / "src", REPOSITORY / "tests", REPOSITORY / "benchmarks")
    ]
    if "resume" in arguments.pieces:
        # Read when CUDA starts; without it matrix products need not repeat bit for bit.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import bundle

    try:
        if arguments.bundle is not None:
            bundle.unpack(arguments.bundle)
        return check(arguments)
    except bundle.CheckError as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return 2


def check(arguments: argparse.Namespace) -> int:
    """The pieces, the table and the page."""
    import bundle

    try:
        import torch
    except ImportError:
        raise bundle.CheckError("there is no torch here; install torch 2.9 or later for this machine's GPU.") from None
    try:
        import pieces
        import table
    except ImportError as error:
        raise bundle.CheckError(
            f"{error}; run `make install` first, or give the folder that `make gpu-bundle` made with --bundle."
        ) from None
    if arguments.list:
        for name, piece in pieces.PIECES.items():
            print(f"{name:16s} {(piece.__doc__ or '').splitlines()[0]}")
        return 0
    unknown = [name for name in arguments.pieces if name not in pieces.PIECES]
    if unknown:
        raise bundle.CheckError(f"{unknown[0]}: no such piece; there are {', '.join(pieces.PIECES)}.")
    found = torch.accelerator.current_accelerator(check_available=True)
    if arguments.device == "auto" and found is None:
        raise bundle.CheckError("torch sees no accelerator on this machine, so there is nothing to check.")
    device = torch.device("cpu") if arguments.device == "cpu" or found is None else found
    sizes = pieces.TINY if arguments.tiny else pieces.REAL
    path = arguments.results / "tables" / "gpu_check.csv"
    chosen = arguments.pieces or list(pieces.PIECES)
    for name in chosen:
        print(f"gpu-check: {name} ...", file=sys.stderr, flush=True)
        code = 0
        if len(chosen) > 1 and not arguments.tiny:
            code = apart(name, arguments)
        else:
            table.replace(path, name, pieces.run_piece(name, device, sizes), device)
        if code not in (0, 1):
            table.replace(
                path, name, [table.Row(f"ended with exit code {code}", float(code), "", "it ends", False)], device
            )
    rows = table.read(path)
    print(table.page(rows))
    return 1 if any(row["verdict"] == "BAD" for row in rows) else 0


def apart(name: str, arguments: argparse.Namespace) -> int:
    """Run a piece in a process of its own: it begins with a free device, and takes no other down with it."""
    words = [name, f"--results={arguments.results}", f"--device={arguments.device}"]
    words += [] if arguments.bundle is None else [f"--bundle={arguments.bundle}"]
    return subprocess.run([sys.executable, str(HERE), *words], check=False, stdout=subprocess.DEVNULL).returncode


if __name__ == "__main__":
    sys.exit(main())
