"""Compiled runs: the same numbers, also after a crash, in branches and averages, and over several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conftest import folder_of, read_metrics, read_summary
from weight_decay.config.run import RunConfig
from weight_decay.device import compiling
from weight_decay.runs.folder import Labels
from weight_decay.training import assemble
from weight_decay.training.loop import Training
from weight_decay.training.run import run

LABELS = Labels("test", "micro", "test")
SOURCES = Path(__file__).resolve().parents[1] / "src"
BRANCHES = (
    'branches="[{name: tail, start: 2 steps, every: 2 steps, duration: 2 steps, lr: 1e-3, strength: 0, '
    'keep_optimizer_state: true}]"'
)
Tiny = Callable[..., RunConfig]


@pytest.fixture(autouse=True)
def backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile with a backend that needs no C++ compiler and no minute."""
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    compiling.compiler_problem.cache_clear()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def close(one: Path, two: Path, relative: float) -> None:
    for file in sorted(one.rglob("metrics.jsonl")):
        other = two / file.relative_to(one)
        lines = list(zip(read_metrics(file.parent), read_metrics(other.parent), strict=True))
        assert lines
        for a, b in lines:
            assert a.keys() == b.keys()
            for name in [name for name in a if name.endswith(("loss", "weights/norm"))]:
                assert b[name] == pytest.approx(a[name], rel=relative), (file, a["step"], name)


@pytest.mark.parametrize("regime", ["vision", "text"])
def test_run_branches_and_averages_are_compiled_and_give_the_numbers_of_the_uncompiled(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, regime: str
) -> None:
    compiled_forwards: list[object] = []
    compile = assemble.compiled

    def counting(forward: Callable[..., object], *rest: object) -> Callable[..., object]:
        made = compile(forward, *rest)  # type: ignore[arg-type]
        compiled_forwards.append(made is not forward)
        return made

    monkeypatch.setattr(assemble, "compiled", counting)
    plain = tiny(regime, f"{BRANCHES} execution.compile=false execution.results={tmp_path / 'plain'}")
    compiled = tiny(regime, f"{BRANCHES} execution.compile=true execution.results={tmp_path / 'compiled'}")
    for config in (plain, compiled):
        assert run(config, LABELS) == "completed"
    assert compiled_forwards == [False] * 4 + [True] * 4  # a run and its branches at steps 2, 4 and 6
    close(folder_of(plain), folder_of(compiled), 1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2, "each branch was compiled anew"


def test_a_compiled_run_goes_on_bitwise(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = f"{BRANCHES} execution.compile=true checkpoint.every_seconds=0"
    whole = tiny("text", f"{more} execution.results={tmp_path / 'whole'}")
    cut = tiny("text", f"{more} execution.results={tmp_path / 'cut'}")
    assert run(whole, LABELS) == "completed"
    advance = Training.advance

    def failing(self: Training, observe: bool) -> None:
        if self.step == 5:
            raise RuntimeError("as asked for")
        advance(self, observe)

    with monkeypatch.context() as patched:
        patched.setattr(Training, "advance", failing)
        assert run(cut, LABELS) == "failed"
    assert run(cut, LABELS) == "completed"
    assert read_metrics(folder_of(whole)) == read_metrics(folder_of(cut))
    assert read_summary(folder_of(whole))["weights_sha256"] == read_summary(folder_of(cut))["weights_sha256"]


def test_two_processes_train_a_compiled_model(words: Callable[..., list[str]], tiny: Tiny, tmp_path: Path) -> None:
    alone = tiny("text", f"execution.results={tmp_path / 'alone'}")
    assert run(alone, LABELS) == "completed"
    given = words("text", f"execution.compile=true micro_batch_size=1 execution.results={tmp_path / 'both'}")
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(Path(__file__).with_name("compiled_main.py")), *given]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "not compiled" not in done.stderr
    both = next((tmp_path / "both" / "runs").iterdir())
    close(folder_of(alone), both, 1e-4)
