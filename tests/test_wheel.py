"""The wheel: built here, installed where no checkout is in sight, and run in an empty folder.

With WEIGHT_DECAY_WHEEL_PYTHON it is tried as it is installed for that Python, which `make test-wheels` does first.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import weight_decay

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = os.environ.get("WEIGHT_DECAY_WHEEL_PYTHON")
"""The interpreter of an environment that has the wheel and all its extras; else the one that runs the tests."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the checkout, without a network."""
    copy, made = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("made")
    for name in ("src", "configs", "results/reference"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    words = ["pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--wheel-dir", str(made), str(copy)]
    subprocess.run([sys.executable, "-m", *words], check=True)
    return next(made.glob("weight_decay-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the wheel: unpacked beside the packages of the tests, or where pip has put them."""
    if ELSEWHERE is None:
        folder = tmp_path_factory.mktemp("installed")
        with zipfile.ZipFile(wheel) as file:
            file.extractall(folder)
        return folder
    told = subprocess.run(
        [ELSEWHERE, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    folder = Path(told.stdout.strip())
    with zipfile.ZipFile(wheel) as file:
        for name in file.namelist():
            if name.startswith("weight_decay/"):
                assert (folder / name).read_bytes() == file.read(name), f"{ELSEWHERE} has another {name}"
    return folder


def python(installed: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Python with the wheel and the packages, and no trace of the checkout: no .pth file of an editable install."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("WEIGHT_DECAY", "PYTHON"))}
    environment["OMP_NUM_THREADS"] = "1"
    if ELSEWHERE is None:
        environment["PYTHONPATH"] = os.pathsep.join([str(installed), sysconfig.get_path("purelib")])
        # -S: the site-packages folder is a plain entry of the path, so its .pth files are not read.
        words = ("-S", *words)
    return subprocess.run(
        [ELSEWHERE or sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_the_wheel_has_configs_and_curves_and_the_one_version(wheel: Path) -> None:
    assert wheel.name.startswith(f"weight_decay-{weight_decay.__version__}-py3-none-any")
    inside = set(zipfile.ZipFile(wheel).namelist())
    configs = {f"weight_decay/{f.relative_to(ROOT)}" for f in (ROOT / "configs").rglob("*.yaml")}
    assert len(configs) > 60 and configs <= inside
    assert {"weight_decay/reference/paper_curves.csv", "weight_decay/py.typed"} <= inside
    ours = {f"weight_decay/{f.relative_to(ROOT / 'src' / 'weight_decay')}" for f in _files()}
    assert ours <= inside
    assert not [name for name in inside if name.startswith(("tests", "build", "results"))]


def _files() -> list[Path]:
    here = ROOT / "src" / "weight_decay"
    return [f for f in here.rglob("*") if f.is_file() and f.suffix != ".pyc"]


MAIN = """
import json, pathlib, sys, weight_decay, weight_decay.cli as cli
assert weight_decay.__file__.startswith(sys.argv.pop(1)), weight_decay.__file__
try:
    cli.main(sys.argv[1:])
except SystemExit as left:
    assert not left.code
from weight_decay.config.registry import REGISTRIES
from weight_decay.runs.fingerprint import SILENT, sources
(file,) = pathlib.Path("results/runs").glob("*/summary.json")
ran = json.loads(file.read_text())
kinds = [registry.place(kind) for registry in REGISTRIES for _, kind in registry.named_in(ran["identity"])]
beside = {"weight_decay", "__main__", "cli", "experiments", "report", *SILENT}
loaded = {name for name in sys.modules if name.startswith("weight_decay.") and name.split(".")[1] not in beside}
loaded -= {"weight_decay.device.workers"}  # the sweep's
assert loaded <= set(sources(ran["regime"], kinds)), loaded - set(sources(ran["regime"], kinds))
assert ran["code_fingerprint"] and ("torch" not in sys.modules or len(loaded) > 30)
"""


@pytest.fixture(scope="module")
def folder(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a tiny cell of the demo was run, and its tables made, by the wheel."""
    cwd, code, place = tmp_path_factory.mktemp("empty"), MAIN, str(installed)
    cell = ["experiment=demo_over_training", "scale=micro", "cell=0", "model.width=2", "tracking=disabled"]
    small = ["duration=4 steps", "schedule.drop_at=50%", "data.train_size=256", "data.test_size=128"]
    small += ["probes.jacobian_every=null", "averaging.reestimate_samples=128", "probes.evaluation_train_samples=128"]
    ran = python(installed, cwd, "-c", code, place, *cell, *small, "execution.progress=false")
    assert ran.returncode == 0, ran.stderr
    assert {f.name for f in cwd.iterdir()} == {"results", "data"}
    assert len(list(cwd.glob("results/runs/*/summary.json"))) == 1
    collected = python(installed, cwd, "-c", code, place, "collect")
    assert collected.returncode == 0, collected.stderr
    return cwd


def test_the_main_job_runs_in_an_empty_folder(folder: Path) -> None:
    """And what Python really loaded for it is in the run's fingerprint of code, which found it by reading."""
    assert list(folder.glob("results/tables/*.summary.csv"))


SAID = """
import contextlib, io, json, sys
import weight_decay.cli as cli
from weight_decay.experiments.catalog import experiments

def said(*words):
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main(words)
        except SystemExit as left:
            code = left.code or 0
    return code, out.getvalue(), err.getvalue()

"""


def all_said(installed: Path, cwd: Path, expression: str) -> dict[str, tuple[int, str, str]]:
    """`expression`, a dict of what the command answers to some words, in one process: exit code, output, errors."""
    ran = python(installed, cwd, "-c", f"{SAID}print(json.dumps({expression}))")
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_every_command_tells_what_it_takes(installed: Path, tmp_path: Path) -> None:
    told = all_said(installed, tmp_path, "{name: said(name, '--help') for name in cli._commands()}")
    assert len(told) > 15
    assert [name for name, (code, out, _) in told.items() if code or f"weight-decay {name}" not in out] == []


ANSWERED = [
    *("status", "watch once", "collect", "figures", "claims", "power", "report", "sync", "experiments", "--info"),
    *("--version", "--cfg job", "wandb-sweep experiment=fig02_cifar10 scale=small"),
    "advise parameters=124M tokens=3.3B batch=256 context=256 lr=6e-4",
]
REFUSED = {"readme": "no README.md", "verify": "got none", "pull": "which W&B project", "dashboard": "whose it is"}


def test_every_command_works_in_the_folder_of_a_run(installed: Path, folder: Path) -> None:
    words = [*ANSWERED, *REFUSED]
    told = all_said(installed, folder, f"{{words: said(*words.split()) for words in {words!r}}}")
    assert {name: told[name] for name in ANSWERED if told[name][0] or not told[name][1].strip()} == {}
    for name, reason in REFUSED.items():
        code, _, err = told[name]
        assert code == 2 and reason in err and err.startswith("weight-decay: ") and err.count("\n") == 1, (name, err)
    assert list(folder.glob("results/figures/*.png")) and (folder / "results" / "report.html").is_file()
    # demo-report is `weight-decay demo` without its training.
    done = set(words) | {"demo", "demo-report"}
    assert set(all_said(installed, folder, "dict.fromkeys(cli._commands(), (0, '', ''))")) <= {
        w.split()[0] for w in done
    }


# All take half a minute of a processor, so only where the wheel is the matter; its files are looked at anyway.
ASKED, EVERY = ("'--dry-run'", 1) if ELSEWHERE else ("'--cfg', 'job'", 8)


def test_every_experiment_is_there_without_a_checkout(installed: Path, tmp_path: Path) -> None:
    asked = f"said({ASKED}, f'experiment={{n}}', 'scale=micro') if i % {EVERY} == 0 else None"
    told = all_said(installed, tmp_path, f"{{n: {asked} for i, n in enumerate(experiments())}}")
    assert set(told) == {f.name for f in (ROOT / "configs" / "experiment").iterdir() if f.is_dir()}
    answers = {name: answer for name, answer in told.items() if answer is not None}
    assert len(answers) > 3
    assert {name: answer for name, answer in answers.items() if answer[0] or len(answer[1]) < 500} == {}
    assert not list(tmp_path.iterdir())


def test_a_tiny_cell_of_a_language_experiment_runs(installed: Path, tmp_path: Path) -> None:
    tiny = "model.width=16 data.context=16 data.evaluation_windows=8 batch_size=2 execution.progress=false"
    cell = f"experiment=fig06_language_model scale=micro cell=1 branches=[] tracking=disabled {tiny}"
    ran = python(
        installed, tmp_path, "-m", "weight_decay", *cell.split(), "duration=4 steps", "schedule.warmup=1 steps"
    )
    assert ran.returncode == 0 and "1 completed of 1" in ran.stderr, ran.stderr


def test_the_ten_lines_of_the_sites_first_page_run(installed: Path, tmp_path: Path) -> None:
    code = re.search(r"```python\n(.*?)```\n<!-- end start -->", (ROOT / "docs" / "index.md").read_text(), re.DOTALL)
    assert code
    seen = "\nprint(measure.records[-1]['effective_lr/adamw'], measure.records[-1]['jacobian/mean_square'])"
    ran = python(installed, tmp_path, "-c", code[1] + seen)
    assert ran.returncode == 0, ran.stderr
    assert all(float(value) > 0 for value in ran.stdout.split()[-2:])
    assert [f.name for f in tmp_path.iterdir()] == ["mine.png"]


def test_experiments_and_claims_are_there_without_a_checkout(installed: Path, tmp_path: Path) -> None:
    code = (
        "import weight_decay.places as p; from weight_decay.cli import make_plan; "
        "from weight_decay.experiments.catalog import experiments; "
        "from weight_decay.report.claims.protocol import protocol; "
        "assert p.CHECKOUT is None and len(experiments()) > 20 and protocol().entries; "
        "print(len(make_plan(['experiment=fig06_language_model', 'scale=micro'])[0].cells))"
    )
    ran = python(installed, tmp_path, "-c", code)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) >= 9


def test_a_missing_extra_is_one_sentence(installed: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['pandas'] = None; import weight_decay.cli as cli; cli.main(['figures', 'results=.'])"
    )
    ran = python(installed, tmp_path, "-c", code)
    assert ran.returncode == 2
    assert ran.stderr == "weight-decay: pandas is not installed; run: pip install 'weight-decay[report]'.\n"


def test_extras_are_read_from_the_metadata_and_other_modules_are_not_explained(installed: Path, tmp_path: Path) -> None:
    code = (
        "import json; from weight_decay.extras import extras, sentence; "
        "told = [sentence(ModuleNotFoundError(name=n)) for n in ('weight_decay.x', 'submitit.slurm')]; "
        "print(json.dumps([extras(), told]))"
    )
    found, (ours, theirs) = json.loads(python(installed, tmp_path, "-c", code).stdout)
    assert {"vision", "text", "report", "wandb", "cluster"} == set(found.values())
    assert found["torchvision"] == "vision" and found["PIL"] == "vision" and found["pandas"] == "report"
    assert ours is None and theirs == "submitit is not installed; run: pip install 'weight-decay[cluster]'."


def test_what_is_cited_is_the_version_released() -> None:
    assert f"version: {weight_decay.__version__}\n" in (ROOT / "CITATION.cff").read_text()
