"""Everything the check needs beside torch, as a folder of wheels: made where there is a network, unpacked where not.

python scripts/gpu_check/bundle.py FOLDER [--python 3.12]
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import zipfile
from pathlib import Path

NEEDED = ("hydra-core", "omegaconf", "antlr4-python3-runtime", "pyyaml", "packaging", "tqdm", "numpy",
          "typing-extensions", "filelock", "submitit", "cloudpickle", "pillow", "regex")  # fmt: skip
"""What training imports beside torch, with what that needs itself: no plots, no tables, no W&B, no test runner."""

LARGEST = 60 * 2**20
"""Bytes that the wheels and a checkout may take together."""


class CheckError(Exception):
    """Why the check cannot be made: one sentence."""


def make(folder: Path, python: str) -> None:
    """Fill `folder` with the wheels of the versions installed here, for `python` on Linux x86-64."""
    from importlib.metadata import version

    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    pinned = [f"{name}=={version(name)}" for name in NEEDED]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    target = ["--only-binary=:all:", f"--python-version={python}", "--implementation=cp", "--no-deps"]
    platforms = [
        f"--platform={name}" for name in ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
    ]
    # antlr4's old runtime is published as source only; it is Python alone, so the wheel made here serves everywhere.
    source = [word for word in pinned if word.startswith("antlr4")]
    _run([*pip, "wheel", "--no-deps", f"--wheel-dir={folder}", *source])
    _run([*pip, "download", *target, *platforms, f"--dest={folder}", *[word for word in pinned if word not in source]])
    size = sum(file.stat().st_size for file in folder.iterdir()) + _checkout_bytes()
    print(f"{folder}: {len(list(folder.glob('*.whl')))} wheels; with the checkout {size / 2**20:.1f} MiB")
    if size > LARGEST:
        raise CheckError(
            f"wheels and checkout take {size / 2**20:.1f} MiB, more than {LARGEST / 2**20:g}; leave some out."
        )


def _run(command: list[str]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()] or ["no reason given"]
        raise CheckError(f"pip could not get the wheels ({lines[-1]}).")


def _checkout_bytes() -> int:
    repository = Path(__file__).resolve().parents[2]
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=repository, check=False, capture_output=True).stdout
    files = [repository / name for name in tracked.decode().split("\0") if name]
    return sum(file.stat().st_size for file in files if file.is_file())


def unpack(folder: Path) -> None:
    """Put the wheels of `folder` on the path of this Python, without installing anything (a wheel is an archive)."""
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise CheckError(f"--bundle: there are no wheels in {folder}; make them with `make gpu-bundle`.")
    here = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    for wheel in wheels:
        tag = wheel.stem.split("-")[-3]
        if not re.fullmatch(r"(py2\.)?py3", tag) and tag != here and wheel.stem.split("-")[-2] != "abi3":
            made_for = re.sub(r"cp3(\d+)", r"Python 3.\1", tag)
            raise CheckError(
                f"--bundle: {wheel.name} is for {made_for} and this is Python {sys.version_info[0]}."
                f"{sys.version_info[1]}; make another one with `make gpu-bundle PYTHON_VERSION="
                f"{sys.version_info[0]}.{sys.version_info[1]}`."
            )
    site = folder / "unpacked"
    for wheel in wheels:
        if not (site / f".{wheel.stem}").exists():
            site.mkdir(exist_ok=True)
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)
            (site / f".{wheel.stem}").touch()
    # Before what this Python has itself: another version of antlr4 there would break hydra.
    sys.path.insert(0, str(site))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12")
    chosen = parser.parse_args()
    try:
        make(chosen.folder, chosen.python)
    except CheckError as problem:
        print(f"gpu-bundle: {problem}", file=sys.stderr)
        sys.exit(2)
