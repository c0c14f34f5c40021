"""`make gpu-check`: what it says where there is no accelerator, and that its pieces and its bundle work at all."""

from __future__ import annotations

import csv
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import forked

REPOSITORY = Path(__file__).resolve().parents[1]
CHECK = REPOSITORY / "scripts" / "gpu_check"
NONE = torch.accelerator.current_accelerator(check_available=True) is None
WHEEL = "demo-1.0-{}-none-any.whl"


def check(*words: str) -> subprocess.CompletedProcess[str]:
    return forked.run([str(CHECK), *words], cwd=REPOSITORY)


@pytest.mark.skipif(not NONE, reason="this machine has an accelerator")
def test_without_an_accelerator_it_says_so_in_one_sentence(tmp_path: Path) -> None:
    done = check("--results", str(tmp_path))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "gpu-check: torch sees no accelerator on this machine, so there is nothing to check.\n"
    assert list(tmp_path.iterdir()) == []


def test_a_piece_that_there_is_not_is_named() -> None:
    done = check("speed")
    assert done.returncode == 2
    assert done.stderr.startswith("gpu-check: speed: no such piece; there are environment, runs, resume, main-jobs, ")
    assert len(check("--list").stdout.splitlines()) == 8


def test_every_piece_works_at_sizes_that_mean_nothing(tmp_path: Path) -> None:
    pieces = ["environment", "resume", "main-jobs", "steps-language", "jacobian"]
    done = check(*pieces, "--device", "cpu", "--tiny", "--results", str(tmp_path))
    assert done.returncode in (0, 1), done.stderr
    with (tmp_path / "tables" / "gpu_check.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(dict.fromkeys(row["piece"] for row in rows)) == pieces
    assert not [row for row in rows if "ended with" in row["what"]], rows
    assert all(row["device"] and row["torch"] and row["date"] for row in rows)
    # On a CPU a run that was killed goes on bitwise: the piece can tell.
    bitwise = [row for row in rows if "bitwise" in row["what"]]
    assert len(bitwise) == 4 and all(float(row["value"]) == 1 for row in bitwise)
    assert {row["verdict"] for row in rows if row["piece"] in ("resume", "main-jobs")} <= {"good", ""}
    # A second call replaces a piece's rows and leaves the others.
    again = check("jacobian", "--device", "cpu", "--tiny", "--results", str(tmp_path))
    with (tmp_path / "tables" / "gpu_check.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    assert "main-jobs" in again.stdout


def test_a_bundle_is_put_on_the_path_without_installing(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / WHEEL.format("py3"), "w") as archive:
        archive.writestr("demo_of_a_bundle.py", "VALUE = 3\n")
    code = (
        f"import sys; sys.path.insert(0, {str(CHECK)!r}); import bundle, pathlib; "
        f"bundle.unpack(pathlib.Path({str(tmp_path)!r})); import demo_of_a_bundle; print(demo_of_a_bundle.VALUE)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "3\n"


@pytest.mark.parametrize(
    ("wheel", "sentence"),
    [
        (None, "--bundle: there are no wheels in "),
        ("numpy-2.0-cp39-cp39-manylinux_2_17_x86_64.whl", "is for Python 3.9 and this is Python 3."),
    ],
)
def test_a_bundle_that_does_not_fit_is_refused(tmp_path: Path, wheel: str | None, sentence: str) -> None:
    if wheel is not None:
        (tmp_path / wheel).write_bytes(b"")
    done = check("--bundle", str(tmp_path))
    assert done.returncode == 2
    assert sentence in done.stderr and len(done.stderr.splitlines()) == 1
