"""docs/extending.md, "A decay rule": a rule in a folder of one's own, in a package, and beside a plain optimizer."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import forked
from conftest import QUIET, TINY_VISION
from weight_decay.cli import main
from weight_decay.config.own import OWN_CONFIGS

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "extending.md"
SOURCES = DOCUMENT.parents[1] / "src"
SECTION = re.search(r"^## A decay rule\n(.*?)(?=^## |\Z)", DOCUMENT.read_text(encoding="utf-8"), re.M | re.S)
assert SECTION is not None
BLOCKS = dict(re.findall(r"```(python|yaml|toml)\n(.*?)```", SECTION[1], re.DOTALL))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder as the document says to make it, and a place beside it to run in."""
    (tmp_path / "my_rules" / "decay").mkdir(parents=True)
    (tmp_path / "my_rules" / "capped.py").write_text(BLOCKS["python"], encoding="utf-8")
    (tmp_path / "my_rules" / "decay" / "capped.yaml").write_text(BLOCKS["yaml"], encoding="utf-8")
    return tmp_path


def weight_decay(words: list[str], cwd: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    return forked.run(["-m", "weight_decay", *words], cwd, os.environ | {"PYTHONPATH": f"{SOURCES}{os.pathsep}{path}"})


def test_the_documents_command_trains_with_it(
    folder: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = re.findall(r"^    \.venv/bin/weight-decay (.*)$", SECTION[1], re.MULTILINE)
    words = shlex.split(line)
    given = {word.partition("=")[0] for word in words}
    small = [w for w in shlex.split(f"{TINY_VISION} {QUIET}") if w.partition("=")[0] not in given]
    monkeypatch.chdir(folder)
    monkeypatch.setenv(OWN_CONFIGS, "")
    words = [str(folder / "my_rules") if word == "my_rules" else word for word in words]
    trains = [*words, *small, f"data.root={data_root}", "schedule.drop_at=2 steps"]
    for line, code in ((trains, 0), ([*words[:2], "--info"], 0), ([*words, "decay.cap=-1"], 2)):
        with pytest.raises(SystemExit) as left:
            main(line)
        assert left.value.code == code
    said, wrong = capsys.readouterr()
    (config,) = (folder / "results" / "runs").glob("*/config.yaml")
    assert "kind: capped" in config.read_text() and "cap: 0.02" in config.read_text()
    assert re.search(r"^  capped +Decay of small weights, a constant pull on those above `cap`\.$", said, re.M)
    assert "decay.cap: must be positive, got -1." in wrong


def test_an_entry_point_of_a_package_does_the_same(folder: Path) -> None:
    package, described = folder / "site" / "my_package", folder / "site" / "my_package-1.dist-info"
    package.mkdir(parents=True)
    described.mkdir()
    (package / "__init__.py").write_text("")
    (folder / "my_rules" / "capped.py").rename(package / "capped.py")
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1\n")
    entry = BLOCKS["toml"].replace('[project.entry-points."weight_decay.decay_kinds"]', "[weight_decay.decay_kinds]")
    (described / "entry_points.txt").write_text(entry.replace('"', ""))
    words = ["--dry-run", "--config-dir", "my_rules", "decay=capped", "decay.cap=0.5"]
    done = weight_decay(words, folder, str(folder / "site"))
    assert done.returncode == 0 and "decay.cap=0.5" in done.stdout, done.stderr


def test_it_is_its_formula_beside_a_plain_optimizer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHT_DECAY_OWN_CONFIGS", str(folder / "my_rules"))
    from weight_decay.config.groups import DecayRuleConfig
    from weight_decay.config.plain import build_dataclass
    from weight_decay.config.registry import DECAY_KINDS
    from weight_decay.optim.decay_kinds.rule import Group, join

    all_of_it = build_dataclass(DecayRuleConfig, {"match": ".*", "scale": 1.0})
    made = DECAY_KINDS["capped"](kind="capped", strength=0.1, rules=(all_of_it,), window=None, cap=0.5)
    weight = nn.Parameter(torch.tensor([2.0, -0.25], dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], 0.1)
    join(optimizer, [Group(("w",), [weight], 0.1)], made.rule(None))
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    expected = torch.tensor([2.0 - 0.01 * 0.5 - 0.1, -0.25 + 0.01 * 0.25 - 0.1], dtype=torch.float64)
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-14, atol=1e-14)
    DECAY_KINDS._classes.pop("capped")
    sys.modules.pop("weight_decay.config.own.capped")
    importlib.invalidate_caches()
