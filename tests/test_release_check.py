"""What `make release-check` looks at: one version, and a licence of every dependency."""

from __future__ import annotations

import sys
from importlib.metadata import Distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import release_check  # noqa: E402


class Made(Distribution):
    """A distribution with metadata made up."""

    def __init__(self, text: str) -> None:
        self.text = text

    def read_text(self, filename: str) -> str | None:
        return self.text if filename == "METADATA" else None

    def locate_file(self, path: object) -> Path:
        return Path(str(path))


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("License-Expression: MIT\nLicense: other", "MIT"),
        (
            "Classifier: Programming Language :: Python\nClassifier: License :: OSI Approved :: BSD License",
            "BSD License",
        ),
        ("License: Apache 2.0", "Apache 2.0"),
        ("", ""),
    ],
)
def test_a_licence_is_read_where_it_is_told(lines: str, told: str) -> None:
    assert release_check.licence_of(Made(f"Metadata-Version: 2.1\nName: a\nVersion: 1\n{lines}\n")) == told


def test_dependencies_follow_extras() -> None:
    core, report = (set(release_check.dependencies([name])) for name in ("weight-decay", "weight-decay[report]"))
    assert {"torch", "omegaconf", "weight-decay", "antlr4-python3-runtime"} <= core
    assert "pandas" not in core and {"pandas", "scipy", "markupsafe"} <= report
    assert "pytest" not in set(release_check.dependencies(["weight-decay[all]"]))


def test_a_missing_or_copyleft_licence_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for licence, told in (("", "no licence is told by other"), ("GNU GPLv3", "copyleft: other"), ("LGPL", "copyleft")):
        made = Made(f"Metadata-Version: 2.1\nName: other\nVersion: 1\nLicense: {licence}\n")
        monkeypatch.setattr(release_check, "dependencies", lambda names, made=made: {"other": made})
        assert release_check.main(["licences"]) == 1
        assert told in capsys.readouterr().out


def test_our_own_dependencies_pass(capsys: pytest.CaptureFixture[str]) -> None:
    assert release_check.main(["version", "licences"]) == 0
    assert "ok      version" in capsys.readouterr().out


def test_two_versions_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "CITATION.cff").write_text("version: 0.0.1\n")
    (tmp_path / "CHANGELOG.md").write_text((ROOT / "CHANGELOG.md").read_text())
    monkeypatch.setattr(release_check, "ROOT", tmp_path)
    assert release_check.main(["version"]) == 1
    assert "CITATION.cff says 0.0.1" in capsys.readouterr().out
    assert release_check.main(["nothing"]) == 2
