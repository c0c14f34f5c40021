"""Kinds are found without importing them, in our files, in a folder of one's own and in packages of others."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from weight_decay.config import registry
from weight_decay.config.own import OWN_CONFIGS
from weight_decay.config.registry import MODELS, Registry
from weight_decay.errors import UserError

REGISTRIES = [each for each in vars(registry).values() if isinstance(each, Registry)]

OWN = """
from dataclasses import dataclass
from weight_decay.config.groups import ModelConfig
from weight_decay.config.registry import MODELS

@MODELS.add("{kind}")
@dataclass(frozen=True)
class Plain(ModelConfig):
    width: int
"""


@pytest.fixture
def ideas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of `--config-dir`."""
    monkeypatch.setenv(OWN_CONFIGS, str(tmp_path))
    return tmp_path


def test_names_are_known_without_torch() -> None:
    code = (
        "import sys; from weight_decay.config.registry import MODELS; MODELS.names(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("kinds", REGISTRIES, ids=lambda kinds: kinds.setting)
def test_every_kind_can_be_had(kinds: Registry) -> None:
    for kind in kinds.names():
        place = kinds.place(kind)
        assert place is not None and kinds[kind].__module__ == place.module


def test_a_file_of_ones_own_adds_a_kind(ideas: Path) -> None:
    (ideas / "plain_model.py").write_text(OWN.format(kind="plain"))
    assert "plain" in MODELS.names() and "resnet" in MODELS.names()
    assert MODELS["plain"](kind="plain", width=3).width == 3
    # What a worker process is handed carries the name of the class; the worker finds it by the environment alone.
    code = f"import {MODELS['plain'].__module__} as own; own.Plain"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_name_that_exists_is_refused(ideas: Path) -> None:
    (ideas / "mine.py").write_text(OWN.format(kind="resnet"))
    with pytest.raises(UserError, match=r"mine\.py adds resnet, which .*resnet\.py has; give it another name"):
        MODELS.names()


def test_a_file_that_cannot_be_imported_is_named(ideas: Path) -> None:
    (ideas / "broken.py").write_text(OWN.format(kind="unfinished") + "\nimport no_such_package\n")
    with pytest.raises(UserError, match=r"model\.kind: unfinished is in .*broken\.py, .*no_such_package"):
        MODELS["unfinished"]


def test_a_package_of_others_adds_a_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an installed package would: a module on the path, and its metadata with the entry point."""
    (tmp_path / "their_networks.py").write_text(OWN.format(kind="theirs").replace('@MODELS.add("theirs")\n', ""))
    described = tmp_path / "their_networks-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: their-networks\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text("[weight_decay.models]\ntheirs = their_networks:Plain\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    registry._others.cache_clear()
    try:
        place = MODELS.place("theirs")
        assert place is not None and place.file == tmp_path / "their_networks.py"
        assert "their_networks" not in sys.modules
        assert MODELS["theirs"](kind="theirs", width=2).width == 2
    finally:
        registry._others.cache_clear()
