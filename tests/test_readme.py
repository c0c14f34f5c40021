"""README.md: its numbers are those of the committed tables, and its commands are real."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import forked
from weight_decay.cli import make_plan
from weight_decay.errors import UserError
from weight_decay.experiments.catalog import groups
from weight_decay.report.commands import COMMANDS
from weight_decay.report.page.readme import sections, with_sections

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_generated_sections_are_current() -> None:
    """`weight-decay readme` puts them right."""
    made = sections(ROOT / "results")
    assert with_sections(README, made) == README
    assert not any("| nan |" in text for text in made.values())


def test_a_missing_mark_is_said() -> None:
    with pytest.raises(UserError, match="begin demo"):
        with_sections("no marks here", {"demo": "x"})


def test_outside_a_checkout_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "results").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"readme: there is no README.md in .*; run it in the folder of a checkout"):
        COMMANDS["readme"]([])


def commands() -> list[list[str]]:
    lines = re.findall(r"^\.venv/bin/weight-decay (.*)$", README, re.MULTILINE)
    found = [re.sub(r"\s+#.*$", "", line) for line in lines]
    assert len(found) >= 6
    return [[quoted or plain for quoted, plain in re.findall(r'"([^"]*)"|(\S+)', line)] for line in found]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_is_understood(words: list[str]) -> None:
    settings = [word for word in words if "=" in word and "," not in word]
    if words[0] in COMMANDS or words[0] in ("--info", "--help"):
        return  # each command's own tests give it its words
    assert make_plan(settings)[0].cells


@pytest.mark.parametrize("words", [words for words in commands() if "model.width=4" in words], ids=" ".join)
def test_the_runs_of_your_own_run(words: list[str], tmp_path: Path) -> None:
    more = ["tracking=disabled", "execution.progress=false", f"data.root={tmp_path}", f"execution.results={tmp_path}"]
    more += ["data.train_size=512", "data.test_size=128", "probes.evaluation_train_samples=128"]
    kept = [word for word in words if not word.startswith("tracking=")]
    done = forked.run(["-m", "weight_decay", *kept, *more], tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("runs/*/summary.json"))


def test_pictures_and_files_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).is_file(), target


def test_every_data_set_is_named() -> None:
    page = (ROOT / "docs" / "data.md").read_text()
    for name in groups()["data"]:
        assert f"`{name}`" in page


def test_it_stays_the_front_door() -> None:
    """The rest stands in docs/; what is generated is folded away."""
    written = re.sub(r"<!-- begin (\w+) -->.*?<!-- end \1 -->", "", README, flags=re.DOTALL)
    assert len(written.splitlines()) < 160
    for name in ("demo", "claims", "experiments"):
        before = README[: README.index(f"<!-- begin {name} -->")]
        assert before.rstrip().endswith("</summary>")
