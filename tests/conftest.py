"""Small runs of both regimes, shared by the tests of the loop, the run folder and the command line."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tiny_runs import QUIET, TINY_TEXT, TINY_VISION, folder_of, read_metrics, read_summary
from weight_decay.cli import main, make_plan
from weight_decay.config.run import RunConfig

__all__ = ["QUIET", "TINY_TEXT", "TINY_VISION", "folder_of", "read_metrics", "read_summary"]

# One thread: results do not depend on how the tests are spread over cores, and two workers fit on two cores.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


LONG = ("test_run", "test_sweep", "test_wheel", "test_wandb_client")
"""Files of half a minute whose names would have them begin last, when the other workers have nothing left to do."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONG)


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of embedded data for all workers of a test session."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "embedded-data"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def words(tmp_path: Path, data_root: Path) -> Callable[..., list[str]]:
    """Command-line words of a tiny run, "vision" or "text", with further settings after it."""
    return tiny_words(tmp_path, data_root)


def tiny_words(folder: Path, data_root: Path) -> Callable[..., list[str]]:
    """As the fixture `words`, with a folder for `results` that may be shared."""

    def make(regime: str, more: str = "") -> list[str]:
        text = f"{TINY_VISION if regime == 'vision' else TINY_TEXT} {QUIET} {more}"
        split = shlex.split(text)
        folders = [f"data.root={data_root}", f"execution.results={folder / 'results'}"]
        given = {word.partition("=")[0] for word in shlex.split(more)}
        kept = [word for i, word in enumerate(split) if _last(split, i)]
        return kept + [word for word in folders if word.partition("=")[0] not in given]

    return make


def exit_code(words: list[str]) -> object:
    """What the command ends with, in this process."""
    with pytest.raises(SystemExit) as stopped:
        main(words)
    return stopped.value.code


def _last(words: list[str], index: int) -> bool:
    key = words[index].partition("=")[0]
    return all(word.partition("=")[0] != key for word in words[index + 1 :])


@pytest.fixture
def tiny(words: Callable[[str], list[str]]) -> Callable[..., RunConfig]:
    """The config of a tiny run."""

    def make(regime: str, more: str = "") -> RunConfig:
        return make_plan(words(regime, more))[0].cells[0].config

    return make
