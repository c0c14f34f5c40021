"""A run's fingerprint of code covers what its own numbers come from: no less, and nothing beside it."""

from __future__ import annotations

import ast
import io
import re
import shutil
import time
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from weight_decay.config import registry
from weight_decay.config.own import OWN_CONFIGS
from weight_decay.config.registry import DATA, DECAY_KINDS, PROBES, REGISTRIES, Place
from weight_decay.runs import fingerprint
from weight_decay.runs.fingerprint import SILENT, code_fingerprint, essence, other_code, sources

PACKAGE = registry.PACKAGE
TEXT = {
    "model": {"kind": "gpt"},
    "data": {"kind": "synthetic_text"},
    "optimizer": {"kind": "adamw"},
    "decay": {"kind": "decoupled"},
    "probes": {"stability_every": "9 steps"},
}
IMAGES = {
    "model": {"kind": "resnet"},
    "data": {"kind": "cifar10"},
    "optimizer": {"kind": "sgd"},
    "decay": {"kind": "stable"},
    "probes": {"jacobian_every": "9 steps"},
}
REGIMES = {"under_training": TEXT, "over_training": IMAGES}


def forget() -> None:
    """As a new process would see the files."""
    fingerprint._fingerprint.cache_clear()
    registry._ours.cache_clear()


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("copied") / "weight_decay"
    shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns("__pycache__"))
    return target


@pytest.fixture
def copy(copied: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the package, read in place of it."""
    monkeypatch.setattr(registry, "PACKAGE", copied)
    monkeypatch.setattr(fingerprint, "PACKAGE", copied)
    forget()
    yield copied
    monkeypatch.undo()
    forget()


def changed_by(file: Path, more: str) -> set[str]:
    """The regimes whose run has another fingerprint once `more` stands at the end of a file."""
    before = {regime: code_fingerprint(settings, regime) for regime, settings in REGIMES.items()}
    assert None not in before.values()
    source = file.read_text()
    file.write_text(source + more)
    forget()
    changed = {regime for regime, code in before.items() if code_fingerprint(REGIMES[regime], regime) != code}
    file.write_text(source)
    forget()
    return changed


def files_of(regime: str) -> set[Path]:
    places = [each.place(kind) for each in REGISTRIES for _, kind in each.named_in(REGIMES[regime])]
    return set(sources(regime, [place for place in places if place]).values())


@pytest.mark.parametrize(
    ("file", "whose"),
    [
        ("data/images/fashion_mnist.py", set()),  # neither run's data
        ("data/images/cifar.py", {"over_training"}),
        ("training/measure.py", {"over_training", "under_training"}),
    ],
)
def test_an_edited_file_makes_those_runs_stale_whose_numbers_come_from_it(
    copy: Path, file: str, whose: set[str]
) -> None:
    assert changed_by(copy / file, "\nEDITED = 1\n") == whose
    assert not changed_by(copy / file, "\n# Only said.\n")


def test_the_files_behind_a_run_are_those_that_it_uses() -> None:
    of_text, of_images = files_of("under_training"), files_of("over_training")
    for file in ("models/initialise", "optim/optimizers", "training/loop", "probes/weights", "config/groups"):
        assert PACKAGE / f"{file}.py" in of_text & of_images
    for file in (
        "models/gpt",
        "data/text/synthetic_text",
        "tasks/under_training",
        "optim/optimizer_kinds/adamw",
        "optim/decay_kinds/own",
        "probes/stability",
    ):
        assert PACKAGE / f"{file}.py" in of_text - of_images
    for file in (
        "models/resnet",
        "tasks/over_training",
        "probes/jacobian",
        "optim/optimizer_kinds/sgd",
        "optim/decay_kinds/stable",
    ):
        assert PACKAGE / f"{file}.py" in of_images - of_text
    for file in (
        "models/vgg",
        "optim/optimizer_kinds/muon",
        "optim/decay_kinds/spectral",
        "probes/lanczos",
        "runs/lock",
        "report/statistics",
        "experiments/sweep",
    ):
        assert (PACKAGE / f"{file}.py").is_file() and PACKAGE / f"{file}.py" not in of_text | of_images


def test_a_new_file_leaves_every_run_as_it_is(copy: Path) -> None:
    before = code_fingerprint(TEXT, "under_training")
    forget()
    new = copy / "data" / "images" / "new_loader.py"
    new.write_text(
        "from weight_decay.config.registry import DATA\n\n\n"
        '@DATA.add("new_loader")\nclass NewLoader:\n    """Images of a new kind."""\n'
    )
    assert code_fingerprint(TEXT, "under_training") == before
    assert DATA.place("new_loader") == Place("weight_decay.data.images.new_loader", new)


def test_a_file_of_ones_own_counts_with_what_it_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path.parent)
    monkeypatch.setenv(OWN_CONFIGS, tmp_path.name)  # as `--config-dir ideas` gives it
    (tmp_path / "own_rule.py").write_text(
        "from weight_decay.config.own import own_pieces\nfrom weight_decay.config.registry import DECAY_KINDS\n"
        '@DECAY_KINDS.add("mine")\nclass Mine: ...\n'
    )
    (tmp_path / "own_pieces.py").write_text("CAP = 1\n")
    (tmp_path / "other.py").write_text("NOT_USED = 1\n")
    settings = {**TEXT, "decay": {"kind": "mine"}}
    seen = []
    for name in ("other", "own_pieces", "own_rule"):
        seen.append(code_fingerprint(settings, "under_training"))
        (tmp_path / f"{name}.py").write_text((tmp_path / f"{name}.py").read_text() + "MORE = 2\n")
        forget()
    seen.append(code_fingerprint(settings, "under_training"))
    assert None not in seen and seen[0] == seen[1] and len(set(seen)) == 3
    place = DECAY_KINDS.place("mine")
    assert place is not None and {PACKAGE / "training" / "loop.py", place.file} <= set(
        sources("under_training", [place]).values()
    )
    # Where the folder is not named, nobody can tell, and nobody calls the run stale.
    monkeypatch.delenv(OWN_CONFIGS)
    assert code_fingerprint(settings, "under_training") is None
    assert other_code({"code_fingerprint": seen[0], "identity": settings, "regime": "under_training"}) is None


def test_the_file_of_another_package_counts(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    for name, code in (("__init__", ""), ("mlp", "import theirs.layers\nimport numpy\n"), ("layers", "")):
        (tmp_path / "theirs" / f"{name}.py").write_text(code)
    found = sources("over_training", [Place("theirs.mlp", tmp_path / "theirs" / "mlp.py", "MLP")])
    assert {name for name in found if name.startswith("theirs")} == {"theirs", "theirs.mlp", "theirs.layers"}


def test_what_is_silent_cannot_compute() -> None:
    for name in SILENT:
        for file in [PACKAGE / f"{name}.py", *(PACKAGE / name).rglob("*.py")]:
            assert not file.is_file() or not re.search(r"^\s*(import|from) torch\b", file.read_text(), re.MULTILINE), (
                file
            )


def test_many_summaries_cost_one_reading() -> None:
    summary: dict[str, Any] = {"code_fingerprint": "0" * 12, "identity": TEXT, "regime": "under_training"}
    started = time.process_time()
    assert {other_code(summary) for _ in range(20_000)} == {"0" * 12}
    assert time.process_time() - started < 1.0
    assert other_code({"code_fingerprint": "0" * 12}) == "0" * 12  # older than what summaries say today
    assert other_code({**summary, "code_fingerprint": None}) is None


def essence_of(source: str) -> str:
    return essence(source, ast.parse(source))


def test_only_what_can_change_a_number_changes_the_essence() -> None:
    source = '"""Doc."""\nx = 1  # one\n\n\ndef f(a):\n    """Doc\n    of f."""\n    return a + x  # two\n'
    same = 'x = 1\ndef f(a):\n    """Other."""\n    return a + x\n'
    assert essence_of(source) == essence_of(same)
    assert essence_of(source) != essence_of(source.replace("a + x", "a - x"))
    assert essence_of("y = '# é # none' # é # one\n") == "y = '# é # none'"
    kept = 'y = f"""{z:#x} # no\n# no comment"""'
    assert essence_of(f"{kept} # 'a' comment\n#\n") == kept


def test_the_essence_loses_the_comments_that_python_sees() -> None:
    for file in (PACKAGE / "training").glob("*.py"):
        source = file.read_text()
        tokens = tokenize.generate_tokens(io.StringIO(essence_of(source)).readline)
        assert not [token for token in tokens if token.type == tokenize.COMMENT], file


def test_probes_count_where_they_are_on() -> None:
    def named(**probes: object) -> list[str]:
        return sorted(kind for _, kind in PROBES.named_in({"probes": probes}))

    assert named(jacobian_every=None, jacobian_per_class=1) == []
    assert named(jacobian_every="9 steps", curvature={"every": "9 steps"}) == ["curvature", "jacobian"]
    assert named(jacobian_every=None, more=[{"kind": "confidence", "every": "9 steps"}]) == ["confidence"]
