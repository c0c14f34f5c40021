"""What an estimated cost rests on: our assumption, what gpu-check measured, or what the user says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from weight_decay.cli import main
from weight_decay.config.run import RunConfig
from weight_decay.errors import UserError
from weight_decay.experiments.throughput import COMPILED_GPU, CPU_CORE, GPU, Assumptions, take_assumptions

Tiny = Callable[..., RunConfig]
TABLE = """piece,what,value,unit,goal,verdict,device,torch,git_commit,date
steps-vision,"bfloat16_autocast: ours, compile=true: sustained",55,TFLOP/s,,,NVIDIA X,2.11,abc,2026-01-01
steps-vision,"bfloat16_autocast: ours, compile=graphs: sustained",77,TFLOP/s,,,NVIDIA X,2.11,abc,2026-01-01
steps-language,"context 256: ours, compiled: sustained",333,TFLOP/s,,,NVIDIA X,2.11,abc,2026-01-01
steps-language,context 256: ours: sustained,111,TFLOP/s,,,NVIDIA X,2.11,abc,2026-01-01
"""


def test_a_gpu_is_assumed_compiled_or_not_as_the_run_would_be(tiny: Tiny) -> None:
    for more, expected in (("execution.compile=auto", COMPILED_GPU), ("execution.compile=false", GPU)):
        assert Assumptions().throughput("paper", tiny("text", more)) == expected
        assert Assumptions().throughput("micro", tiny("text", more)) == CPU_CORE


def test_what_was_measured_is_believed_before_what_is_assumed(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "gpu_check.csv").write_text(TABLE)

    def found(regime: str, more: str) -> tuple[float, str, str]:
        throughput = Assumptions().throughput("paper", tiny(regime, more), tmp_path)
        return throughput.operations / 1e12, throughput.source, throughput.device

    assert found("text", "execution.compile=true") == (333, "measured", "NVIDIA X")
    assert found("text", "execution.compile=false") == (111, "measured", "NVIDIA X")
    assert found("vision", "execution.compile=true") == (55, "measured", "NVIDIA X")
    assert found("vision", "execution.compile=auto") == (77, "measured", "NVIDIA X")
    assert found("vision", "execution.compile=false")[1] == "assumed"


def test_what_is_given_wins(tiny: Tiny) -> None:
    words, given = take_assumptions(["scale=paper", "cost.tflops=250", "seed=3", "cost.step_ms=1e0"])
    assert words == ["scale=paper", "seed=3"]
    expected = dataclasses.replace(COMPILED_GPU, operations=250e12, step=1e-3, source="given")
    assert given.throughput("small", tiny("text", "execution.compile=true")) == expected


@pytest.mark.parametrize(
    "wrong", ["cost.tflops=0", "cost.tflops=-1", "cost.step_ms=fast", "cost.tflops=inf", "cost.x=1"]
)
def test_what_cannot_be_is_refused(wrong: str) -> None:
    with pytest.raises(UserError, match=r"^cost\.\w+: (must be a positive number|there is no such setting)"):
        take_assumptions([wrong])


def test_the_dry_run_says_what_it_rests_on(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--dry-run", "experiment=fig06_language_model", "scale=paper", "cell=0"]
    costs = []
    for tflops in (80, 160):
        with pytest.raises(SystemExit) as ended:
            main([*words, f"cost.tflops={tflops}", "cost.step_ms=0.001"])
        assert ended.value.code == 0
        costs.append(next(line for line in capsys.readouterr().out.splitlines() if line.startswith("cost: about ")))
    first, second = (float(line.split()[2]) for line in costs)
    assert first == pytest.approx(2 * second, rel=0.02)
