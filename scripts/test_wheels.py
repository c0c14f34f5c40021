"""Install the wheel of this checkout, with all its extras, for other Pythons, and run its tests there.

python scripts/test_wheels.py PYTHON [PYTHON ...] [--folder FOLDER]

PYTHON is a command or a path (python3.12). Each gets an environment of its own of about 6 GB in FOLDER, a temporary
one by default; in a FOLDER that is named they stay, and the next call installs into them only what is new. Each piece
says one line; the exit code is 1 if one of them fails.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path

from release_check import FailedError, build, run

ASKED = (
    "import sys, torch, numpy; print('.'.join(map(str, sys.version_info[:3])), torch.__version__, numpy.__version__)"
)


def tried(python: str, wheel: Path, folder: Path) -> str:
    """Make or renew the environment of one Python, run the tests of the wheel there; versions and what pytest says."""
    place = folder / re.sub(r"\W+", "-", python).strip("-")
    own = place / "bin" / "python"
    if not own.is_file():
        run([python, "-m", "venv", str(place)])
    install = [str(own), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run([*install, f"{wheel}[all]"])
    # The same version of another checkout counts as installed.
    run([*install, "--no-deps", "--force-reinstall", str(wheel)])
    version, torch, numpy = run([str(own), "-c", ASKED]).split()
    tests = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/test_wheel.py"]
    told = run(tests, {"WEIGHT_DECAY_WHEEL_PYTHON": str(own)}).splitlines()[-1]
    return f"Python {version}, torch {torch}, numpy {numpy}: {told}"


def main(words: list[str]) -> int:
    """Try each Python; the exit code."""
    told = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    told.add_argument("pythons", nargs="+", metavar="PYTHON")
    told.add_argument("--folder", type=Path)
    given = told.parse_args(words)
    failed = 0
    with tempfile.TemporaryDirectory(prefix="weight-decay-wheels-") as temporary:
        folder = (given.folder or Path(temporary)).resolve()
        _, wheel = build(Path(temporary))
        for python in given.pythons:
            try:
                print(f"ok      {python}: {tried(python, wheel, folder)}", flush=True)
            except FailedError as error:
                failed = 1
                print(f"FAILED  {python}: {error}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
