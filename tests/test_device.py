"""The room that knows devices: what is chosen, compiled, cut into pieces and dealt out to workers."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from weight_decay.cli import make_plan
from weight_decay.config.run import RunConfig, run_id
from weight_decay.device import choose, compiling, memory
from weight_decay.device.traits import KNOWN, traits
from weight_decay.errors import UserError
from weight_decay.experiments.dry_run import describe
from weight_decay.tasks.choose import build_regime
from weight_decay.training.assemble import build_training
from weight_decay.training.build import check

CPU, PACKAGE = torch.device("cpu"), Path(__file__).resolve().parents[1] / "src" / "weight_decay"
Tiny = Callable[..., RunConfig]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with four GPUs, for what only asks and computes nothing."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)


def test_only_this_room_knows_the_names_of_devices() -> None:
    name = re.compile(r"""\.type\s*(==|!=|in)\s*\(?["'](cuda|cpu|xpu|mps)|torch\.(cuda|xpu|mps)\.|\.is_cuda|\.cuda\(""")
    for file in PACKAGE.rglob("*.py"):
        if file.parent.name != "device":
            assert not name.search(file.read_text()), file


@pytest.mark.parametrize("wanted", ["cuda", "xpu", "mps"])
def test_a_device_that_is_not_there_is_refused_before_any_work(tiny: Tiny, wanted: str) -> None:
    if choose.accelerator() == wanted:
        pytest.skip(f"this machine has {wanted}")
    with pytest.raises(UserError, match=rf"^execution\.device: {wanted} was asked for, but torch sees no accelerator"):
        check(tiny("text", f"execution.device={wanted}"))


def chosen(config: RunConfig) -> torch.device:
    return choose.choose_device(config.execution, config.precision)


def test_auto_takes_the_accelerator_and_cpu_is_obeyed(tiny: Tiny, gpu: None) -> None:
    assert chosen(tiny("text", "execution.device=auto")) == torch.device("cuda")
    assert chosen(tiny("text", "execution.device=cpu")) == CPU


def test_auto_leaves_out_an_accelerator_without_double_precision(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("mps"))
    assert chosen(tiny("text", "execution.device=auto")) == CPU
    assert chosen(tiny("text", "execution.device=mps")) == torch.device("mps")


@pytest.mark.parametrize("precision", ["float32", "tf32"])
@pytest.mark.parametrize("kernel", ["flash", "cudnn"])
def test_a_kernel_that_no_gpu_has_is_refused_before_any_work(
    tiny: Tiny, gpu: None, kernel: str, precision: str
) -> None:
    config = tiny("text", f"model.attention={kernel} precision={precision} execution.device=cuda")
    with pytest.raises(UserError, match=rf"^model: {kernel} attention multiplies in 16 bits"):
        check(config)
    check(dataclasses.replace(config, precision=dataclasses.replace(config.precision, kind="bfloat16_autocast")))


def test_cells_for_a_gpu_that_it_would_refuse_show_in_the_dry_run() -> None:
    plan = make_plan(["experiment=fig08_bfloat16_divergence", "scale=paper"])[0]
    assert len(plan.cells) == 99
    assert all(cell.config.model.impossible_on("cuda", cell.config.precision) is None for cell in plan.cells)
    assert "refused" not in describe(plan)
    words = ["experiment=fig08_bfloat16_divergence", "scale=paper", "precision=tf32", "model.attention=flash", "cell=0"]
    assert "refused on a GPU: flash attention multiplies in 16 bits" in describe(make_plan(words)[0])


@pytest.mark.parametrize("position", range(6))
@pytest.mark.parametrize(("given", "devices"), [("", ["0", "1", "2", "3"]), ("2,GPU-ab", ["2", "GPU-ab"])])
def test_each_worker_of_a_job_has_a_gpu_of_its_own(
    gpu: None, monkeypatch: pytest.MonkeyPatch, given: str, devices: list[str], position: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with choose.environment_of_worker(position, 3):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == devices[position % len(devices)]
        assert os.environ["OMP_NUM_THREADS"] == os.environ["MKL_NUM_THREADS"] == "3"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == given and "MKL_NUM_THREADS" not in os.environ


def test_compiling_pays_on_an_accelerator_at_small_and_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda forward, **options: made.append(options) or forward)
    monkeypatch.setattr(compiling, "compiler_problem", lambda kind: None)
    gpu = torch.device("cuda")
    for wanted, scale, device, expected in (
        ("auto", "micro", CPU, False),
        ("auto", "paper", CPU, False),
        ("auto", "micro", gpu, False),
        ("auto", "small", gpu, True),
        ("auto", "paper", gpu, True),
        (True, "micro", CPU, True),
        (False, "paper", gpu, False),
        ("graphs", "small", gpu, True),
    ):
        made.clear()
        compiling.compiled(len, wanted, scale, device, pytest.fail)  # type: ignore[arg-type]
        assert bool(made) == expected, (wanted, scale, device)
    assert made == [{"mode": "reduce-overhead"}]
    for waits, mode in ((True, "reduce-overhead"), (False, None)):
        made.clear()
        compiling.compiled(len, "auto", "paper", gpu, pytest.fail, waits)  # type: ignore[arg-type]
        assert made == [{"mode": mode}]
    assert compiling.compiled(len, "auto", "paper", CPU, pytest.fail, True) is len  # type: ignore[arg-type]


def test_small_nets_that_are_replayed_have_no_branches(tiny: Tiny) -> None:
    branch = "branches=[{name: on, start: 2 steps, every: null, duration: 1 steps, lr: 0.01, strength: 0.0, "
    assert tiny("vision").waits_for_host and not tiny("text").waits_for_host
    assert not tiny("vision", f"'{branch}keep_optimizer_state: true}}]'").waits_for_host


def test_without_a_compiler_a_run_says_so_once_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("\n  Failed to find C compiler. Please specify via CC.\nmore\n")

    monkeypatch.setattr(torch, "compile", broken)
    compiling.compiler_problem.cache_clear()
    said: list[str] = []
    assert compiling.compiled(len, True, "paper", CPU, said.append) is len
    compiling.compiler_problem.cache_clear()
    assert said == [
        "execution.compile: not compiled, since the compiler does not work here "
        "(Failed to find C compiler. Please specify via CC.); the run is slower"
    ]


def test_pieces_are_halved_until_they_fit_and_cover_everything() -> None:
    tried: list[int] = []

    def compute(piece: slice) -> list[int]:
        tried.append(piece.stop - piece.start)
        if tried[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return list(range(piece.start, piece.stop))

    pieces = list(memory.in_pieces(compute, 10, 8))
    assert [sample for piece in pieces for sample in piece] == list(range(10))
    assert tried == [8, 4, 2, 2, 2, 2, 2]


def test_what_does_not_fit_at_all_is_one_sentence() -> None:
    def compute(piece: slice) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    with pytest.raises(UserError, match=r"^execution\.device: one sample alone .* Tried to allocate 2 GiB\.\)") as told:
        list(memory.in_pieces(compute, 10, 8))
    assert "\n" not in str(told.value)


def test_a_copy_on_the_host_is_a_copy() -> None:
    state = {"model": {"w": torch.ones(2)}, "list": [1, (torch.zeros(1), "text")], "none": None}
    copied = memory.copy_on_host(state)
    state["model"]["w"].zero_()  # type: ignore[index]
    assert torch.equal(copied["model"]["w"], torch.ones(2))  # type: ignore[index]
    assert copied["list"][1][1] == "text" and copied["none"] is None  # type: ignore[index]


def test_nothing_of_a_device_is_part_of_a_runs_identity(tiny: Tiny) -> None:
    ids = {
        run_id(tiny("text", f"execution.device={device} execution.compile={compile}"))
        for device, compile in (("auto", "auto"), ("cpu", "true"), ("cuda", "graphs"), ("mps", "false"))
    }
    assert len(ids) == 1


def test_a_device_that_nobody_listed_is_an_accelerator() -> None:
    strange = traits(torch.device("hpu"))
    assert not strange.host and not strange.pinned
    assert KNOWN["cpu"].host


@pytest.mark.parametrize("regime", ["vision", "text"])
def test_evaluation_and_probes_take_smaller_pieces_where_memory_is_small(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, regime: str
) -> None:
    config = tiny(regime)
    found = build_regime(config, CPU)
    training = build_training(config, found, CPU)
    (probe,) = found.probes
    whole = {**found.task.evaluate(training.model), **probe.measure(training.model)}
    sizes: list[int] = []

    def small(model: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        sizes.append(len(inputs[0]))
        if len(inputs[0]) > 5:
            raise torch.OutOfMemoryError("out of memory.")

    entrance = next(
        module for name, module in training.model.named_modules() if name.endswith(("token_embedding", "norm"))
    )
    entrance.register_forward_pre_hook(small)
    in_parts = {**found.task.evaluate(training.model), **probe.measure(training.model)}
    assert max(sizes) > 5 and min(sizes) >= 1
    tried = len([size for size in sizes if size > 5])
    assert tried <= 16, "what did not fit once is tried again and again"
    for name in whole:
        assert float(in_parts[name]) == pytest.approx(float(whole[name]), rel=1e-5), name


def test_how_many_samples_fit_follows_from_the_memory_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory.that_fit(CPU, 256, 1e30) == 256  # a host does not say
    monkeypatch.setattr(memory, "free_memory", lambda device: 10 * 2**30)
    assert memory.that_fit(torch.device("cuda"), 256, 2**30) == 4
    assert memory.that_fit(torch.device("cuda"), 256, 2**20) == 256
    assert memory.that_fit(torch.device("cuda"), 256, 2**40) == 1
