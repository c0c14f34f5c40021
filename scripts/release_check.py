"""Is this checkout ready to be released? Each piece says one line; the exit code is 1 if one of them fails.

python scripts/release_check.py [version wheel metadata licences tests docs]
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
COPYLEFT = re.compile(r"\b(A|L)?GPL|General Public", re.IGNORECASE)
"""Licences that would bind those who pass the program on; tqdm's MPL binds only its own files."""
NOTHING_TOLD = {"cuda-toolkit": "NVIDIA's; it only names libraries that say so themselves"}
"""Distributions whose metadata name no licence, with what their files say."""


class FailedError(Exception):
    """What a piece found wrong, in one sentence."""


def version() -> str:
    """One version, in the package, CITATION.cff and the newest heading of CHANGELOG.md."""
    import weight_decay

    ours = weight_decay.__version__
    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    newest = re.search(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    told = {"CITATION.cff": cited and cited[1], "CHANGELOG.md": newest and newest[1]}
    if wrong := [f"{name} says {value}" for name, value in told.items() if value != ours]:
        raise FailedError(f"the package is {ours}, but {' and '.join(wrong)}; put them right.")
    return ours


def build(folder: Path) -> tuple[Path, Path]:
    """The sdist of this checkout and the wheel that is built from it, as an index would."""
    code = f"import setuptools.build_meta as b; print(b.build_sdist({str(folder)!r}))"
    told = run([sys.executable, "-c", code])
    sdist = folder / told.splitlines()[-1]
    words = [
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-build-isolation",
        "--no-deps",
        "--wheel-dir",
        str(folder),
        str(sdist),
    ]
    run([sys.executable, *words])
    return sdist, next(folder.glob("*.whl"))


def wheel() -> str:
    """The sdist builds a wheel that has every config and the paper's curves, and nothing of tests or results."""
    with tempfile.TemporaryDirectory() as folder:
        sdist, made = build(Path(folder))
        with zipfile.ZipFile(made) as file:
            inside = set(file.namelist())
        with tarfile.open(sdist) as archive:
            packed = len(archive.getnames())
        configs = {f"weight_decay/{f.relative_to(ROOT)}" for f in (ROOT / "configs").rglob("*.yaml")}
        if lacking := sorted((configs | {"weight_decay/reference/paper_curves.csv"}) - inside):
            raise FailedError(f"{made.name} lacks {lacking[0]} ({len(lacking)} files); see setup.py and MANIFEST.in.")
        if strange := sorted(name for name in inside if name.startswith(("tests", "results", "build"))):
            raise FailedError(f"{made.name} has {strange[0]}, which does not belong there.")
        return f"{made.name} from {sdist.name}: {len(inside)} and {packed} files"


def metadata() -> str:
    """What an index reads is valid, and its links and files are there."""
    with tempfile.TemporaryDirectory() as folder:
        _, made = build(Path(folder))
        with zipfile.ZipFile(made) as file:
            name = next(name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
            read = Metadata.from_email(file.read(name), validate=True)
            licences = [name for name in file.namelist() if name.endswith("LICENSE")]
    if read.license_expression != "MIT" or not licences:
        raise FailedError("the wheel does not say MIT and carry LICENSE; see pyproject.toml.")
    if not read.summary or not read.requires_python or not read.description:
        raise FailedError("the wheel has no summary, Python range or description; see pyproject.toml.")
    return f"{read.name} {read.version}, Python {read.requires_python}, {len(read.requires_dist or [])} requirements"


def dependencies(names: Iterable[str]) -> dict[str, importlib.metadata.Distribution]:
    """Every installed distribution that these need, by name, themselves among them; extras and markers are followed."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = [Requirement(name) for name in names]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        wanted = waiting.pop()
        key = (canonicalize_name(wanted.name), frozenset(wanted.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            found[key[0]] = importlib.metadata.distribution(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform or Python, or of an extra that is not installed
        for line in found[key[0]].requires or []:
            needed = Requirement(line)
            extras = [{"extra": extra} for extra in wanted.extras or ("",)]
            if needed.marker is None or any(needed.marker.evaluate(extra) for extra in extras):
                waiting.append(needed)
    return found


def licence_of(distribution: importlib.metadata.Distribution) -> str:
    """What its metadata say: the expression, the classifiers, or the first line of the licence; empty if nothing."""
    told: Any = distribution.metadata  # a message of `email`, which its type does not say
    if expression := told.get("License-Expression"):
        return expression
    classifiers = told.get_all("Classifier") or []
    if classified := [line.rpartition("::")[2].strip() for line in classifiers if line.startswith("License")]:
        return ", ".join(classified)
    return (told.get("License") or "").strip().partition("\n")[0]


def licences() -> str:
    """Every dependency of the program and its extras names a licence, and none is a copyleft one."""
    needed = dependencies(["weight-decay[all]"])
    needed.pop("weight-decay", None)
    told = {name: licence_of(distribution) or NOTHING_TOLD.get(name, "") for name, distribution in needed.items()}
    for name in sorted(told):
        print(f"    {name} {needed[name].version}: {told[name] or 'nothing told'}")
    if unknown := sorted(name for name, licence in told.items() if not licence):
        raise FailedError(f"no licence is told by {', '.join(unknown)}; look into their files.")
    if bound := sorted(f"{name} ({licence})" for name, licence in told.items() if COPYLEFT.search(licence)):
        raise FailedError(f"copyleft: {', '.join(bound)}; is that meant?")
    return f"{len(told)} dependencies"


def tests() -> str:
    """The wheel runs where no checkout is in sight, and the notebooks run."""
    return run([sys.executable, "-m", "pytest", "-q", "tests/test_wheel.py", "tests/test_notebooks.py"]).splitlines()[
        -1
    ]


def docs() -> str:
    """The site builds strictly."""
    run([sys.executable, "-m", "mkdocs", "build", "--strict"])
    return f"{len(list((ROOT / 'site').rglob('*.html')))} pages in site/"


PIECES: dict[str, Callable[[], str]] = {
    piece.__name__: piece for piece in (version, wheel, metadata, licences, docs, tests)
}


def run(words: list[str], more: dict[str, str] | None = None) -> str:
    """What a command prints, started in the checkout with `more` in its environment; FailedError if it fails."""
    try:
        done = subprocess.run(
            words, cwd=ROOT, env={**os.environ, **(more or {})}, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise FailedError(f"there is no {words[0]} here.") from error
    if done.returncode:
        last = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()][-5:]
        raise FailedError(f"{' '.join(words[:4])} failed: {' / '.join(last)}")
    return done.stdout


def main(names: list[str]) -> int:
    """Try the named pieces, or all; the exit code."""
    if unknown := sorted(set(names) - set(PIECES)):
        print(f"release-check: there is no piece {unknown[0]}; there are {', '.join(PIECES)}.", file=sys.stderr)
        return 2
    failed = 0
    for name in names or PIECES:
        try:
            print(f"ok      {name}: {PIECES[name]()}")
        except FailedError as error:
            failed = 1
            print(f"FAILED  {name}: {error}")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
