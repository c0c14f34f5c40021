"""How fast it is, as ratios measured side by side in one process, and as a share of the measured matmul peak."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sizes import Sizes
from table import Row
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.utils.data import DataLoader, Dataset

from weight_decay.cli import make_plan
from weight_decay.config.run import RunConfig
from weight_decay.device.choose import apply_precision, autocast
from weight_decay.device.compiling import compiler_problem
from weight_decay.device.memory import free_memory
from weight_decay.device.traits import traits
from weight_decay.experiments.cost import forward_operations
from weight_decay.models.resnet import PreActResNet
from weight_decay.probes.jacobian import jacobian_norm
from weight_decay.tasks.choose import build_regime
from weight_decay.tasks.over_training import load_sets
from weight_decay.training.assemble import build_training
from weight_decay.training.build import build_model
from weight_decay.training.loop import Event, train

NEVER = Event(lambda: None, every=10**9, start=10**9, also_last=False)
QUIET = "tracking=disabled execution.progress=false 'duration=1000000 steps' 'probes.log_every=1000000 steps'"
LANGUAGE = (
    "optimizer=adamw optimizer.lr=6e-4 decay=decoupled_except_norms decay.strength=0.1 schedule=warmup_cosine "
    "averaging=language averaging.ema=[] probes=language probes.stability_every=null data.evaluation_windows=8 "
    "probes.evaluation_train_samples=8 data.sampling=with_replacement"
)
Step = Callable[[int], object]


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if not traits(device).host:
        torch.accelerator.synchronize()


def best_of(contestants: dict[str, Step], steps: int, rounds: int, device: torch.device) -> dict[str, float]:
    """Seconds a step of each, the best of alternating rounds after one that does not count."""
    for step in contestants.values():
        step(steps)
    best = dict.fromkeys(contestants, float("inf"))
    for _ in range(rounds):
        for name, step in contestants.items():
            wait(device)
            started = time.perf_counter()
            step(steps)
            wait(device)
            best[name] = min(best[name], (time.perf_counter() - started) / steps)
    return best


def matmul_peak(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Floating-point operations a second of large square matrix products."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def multiply(times: int) -> None:
        for _ in range(times):
            left @ right

    return 2.0 * size**3 / best_of({"matmul": multiply}, 20, 3, device)["matmul"]


def environment(device: torch.device, sizes: Sizes, folder: Path) -> list[Row]:
    """Memory and measured matmul peaks: what the other pieces are compared with."""
    rows = [
        Row(f"matmul peak in {name}", matmul_peak(device, dtype, sizes.matmul) / 1e12, "TFLOP/s")
        for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16), ("float32", torch.float32))
    ]
    problem = compiler_problem(device.type)
    rows.append(
        Row(f"the compiler works{'' if problem is None else f' ({problem})'}", float(problem is None), "", ">= 1")
    )
    free = free_memory(device)
    return rows if free is None else [Row("free memory", free / 2**30, "GiB"), *rows]


def ours(config: RunConfig, device: torch.device) -> Step:
    """Steps of the real loop, without what is recorded between them."""
    apply_precision(config.precision)
    training = build_training(config, build_regime(config, device), device)
    return lambda steps: train(training, training.step + steps, [], NEVER, lambda: False)


def one_run(words: str) -> RunConfig:
    """The config of a single run."""
    return make_plan(shlex.split(words))[0].cells[0].config


def write_tokens(folder: Path) -> None:
    """Random tokens in nanoGPT's own format, so that all contestants read the same file."""
    generator = np.random.default_rng(0)
    for name, count in (("train", 2_000_000), ("val", 200_000)):
        generator.integers(0, 50257, count).astype(np.uint16).tofile(folder / f"{name}.bin")


def steps_language(device: torch.device, sizes: Sizes, folder: Path) -> list[Row]:
    """Our language step beside a plain one in nanoGPT's manner, compiled and not: tokens/s and share of the peak."""
    (folder / "nanogpt").mkdir()
    write_tokens(folder / "nanogpt")
    peak = matmul_peak(device, torch.bfloat16, sizes.matmul)
    rows = []
    for context, batch in sizes.contexts:
        base = f"{sizes.language.format(context=context, batch=batch)} {LANGUAGE} {QUIET} data.root={folder}"
        contestants: dict[str, Step] = {}
        for compiled in (False, True):
            config = one_run(f"{base} precision=bfloat16_autocast execution.compile={str(compiled).lower()}")
            label = ", compiled" if compiled else ""
            contestants[f"ours{label}"] = ours(config, device)
            contestants[f"plain{label}"] = plain_language(config, folder, device, sizes.backend if compiled else None)
        seconds = best_of(contestants, sizes.steps, sizes.rounds, device)
        tokens = batch * context
        work = 3 * forward_operations(config) * batch
        for name, each in seconds.items():
            goal = sizes.goal(">= 0.5" if name == "ours, compiled" and context == 1024 else "")
            rows.append(Row(f"context {context}: {name}", tokens / each, "tokens/s"))
            rows.append(Row(f"context {context}: {name}: sustained", work / each / 1e12, "TFLOP/s"))
            rows.append(Row(f"context {context}: {name}: share of the matmul peak", work / each / peak, "", goal))
        for label in ("", ", compiled"):
            ratio = seconds[f"plain{label}"] / seconds[f"ours{label}"]
            rows.append(
                Row(f"context {context}: ours over plain{label}", ratio, "times", sizes.goal(">= 1.2" if label else ""))
            )
    return rows


def plain_language(config: RunConfig, folder: Path, device: torch.device, backend: str | None) -> Step:
    """What nanoGPT's train.py does: windows one by one from a memory map, logits of the whole batch, torch's AdamW."""
    model: Any = build_model(config).to(device)
    data: Any = config.data
    tokens = np.memmap(folder / "nanogpt" / "train.bin", dtype=np.uint16, mode="r")
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": config.decay.strength},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    settings: Any = config.optimizer
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=True)
    cast, pinned = autocast(config.precision, device), traits(device).pinned

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())

    forward = loss if backend is None else torch.compile(loss, backend=backend)

    def batch() -> list[Tensor]:
        places = torch.randint(len(tokens) - data.context - 1, (config.batch_size,)).tolist()
        parts = [
            torch.stack([torch.from_numpy(tokens[i + s : i + s + data.context].astype(np.int64)) for i in places])
            for s in (0, 1)
        ]
        return [(part.pin_memory() if pinned else part).to(device, non_blocking=pinned) for part in parts]

    following = batch()

    def run(steps: int) -> None:
        nonlocal following
        for step in range(steps):
            with cast():
                value = forward(*following)
            following = batch()  # on a GPU, while it computes
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if step % 10 == 0:
                value.item()

    return run


def steps_vision(device: torch.device, sizes: Sizes, folder: Path) -> list[Row]:
    """Our residual-net step beside the plain DataLoader loop, in both 16-bit formats, compiled, and as CUDA graphs."""
    rows = []
    for precision in ("float16_autocast", "bfloat16_autocast"):
        base = f"{sizes.vision} {QUIET} averaging.ema=[] data.root={folder} precision={precision}"
        contestants: dict[str, Step] = {
            f"ours, compile={how}": ours(one_run(f"{base} execution.compile={how}"), device)
            for how in ("false", "true", "graphs")
        }
        config = one_run(base)
        contestants["plain"] = plain_vision(config, device)
        seconds = best_of(contestants, sizes.steps, sizes.rounds, device)
        work = 3 * forward_operations(config) * config.batch_size
        for name, each in seconds.items():
            rows.append(Row(f"{precision}: {name}", config.batch_size / each, "images/s"))
            rows.append(Row(f"{precision}: {name}: sustained", work / each / 1e12, "TFLOP/s"))
        for name in [name for name in seconds if name != "plain"]:
            goal = sizes.goal(">= 1.3" if name == "ours, compile=true" else "")
            rows.append(Row(f"{precision}: {name} over plain", seconds["plain"] / seconds[name], "times", goal))
    return rows


class _PlainImages(Dataset[tuple[Tensor, int]]):
    """The training set as a tutorial would wrap it: one image at a time, to floats, normalised."""

    def __init__(self, config: RunConfig) -> None:
        train: Any = load_sets(config.data)[0]  # type: ignore[arg-type]
        self.images, self.labels = np.asarray(train.images), train.labels.tolist()
        statistics = train.channel_statistics()
        self.mean, self.std = (torch.tensor(values / 255, dtype=torch.float32).view(3, 1, 1) for values in statistics)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = torch.from_numpy(self.images[index]).permute(2, 0, 1).contiguous().float().div(255)
        return image.sub(self.mean).div(self.std), self.labels[index]


def plain_vision(config: RunConfig, device: torch.device) -> Step:
    """What a tutorial writes: DataLoader with four workers, autocast, torch's SGD, the loss read after every step."""
    model = build_model(config).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=5e-4)
    half = config.precision.kind == "float16_autocast"
    scaler, cast = torch.amp.GradScaler(device.type, enabled=half), autocast(config.precision, device)
    workers = 0 if traits(device).host else 4
    loader = DataLoader(
        _PlainImages(config), config.batch_size, shuffle=True, drop_last=True, num_workers=workers,
        pin_memory=traits(device).pinned, persistent_workers=workers > 0,
    )  # fmt: skip

    def endless() -> Any:
        while True:
            yield from loader

    batches = endless()

    def run(steps: int) -> None:
        for _ in range(steps):
            images, labels = (tensor.to(device, non_blocking=True) for tensor in next(batches))
            optimizer.zero_grad()
            with cast():
                loss = F.cross_entropy(model(images), labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            loss.item()

    return run


def jacobian(device: torch.device, sizes: Sizes, folder: Path) -> list[Row]:
    """The exact Jacobian norm beside `vmap(jacrev)` and beside the backwards that it cannot do without."""
    torch.manual_seed(0)
    model = PreActResNet(depth=18, width=sizes.width, classes=10).to(device).eval()
    images = torch.randn(10, 3, sizes.image, sizes.image).to(device)
    apply_precision(one_run(f"{sizes.vision} tracking=disabled").precision)

    def dense() -> Tensor:
        parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

        def logits(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
            return functional_call(model, parameters, (image[None],))[0]

        found = vmap(jacrev(logits), in_dims=(None, 0))(parameters, images)
        return torch.stack([block.flatten(1).square().sum(1) for block in found.values()]).sum(0)

    def exact() -> Tensor:
        return jacobian_norm(model, [images]).per_sample_square

    difference = float((exact() / dense() - 1).abs().max())
    contestants: dict[str, Step] = {
        "exact": lambda times: [exact() for _ in range(times)],
        "vmap(jacrev)": lambda times: [dense() for _ in range(times)],
        "bare backwards": lambda times: bare(model, images, times),
    }
    seconds = best_of(contestants, 1, sizes.rounds, device)
    rows = [Row(f"{name}, 10 images of 10 classes", 1e3 * each, "ms") for name, each in seconds.items()]
    return [
        Row("exact and dense differ by at most", difference, "", "<= 0.001"),
        *rows,
        Row("vmap(jacrev) over exact", seconds["vmap(jacrev)"] / seconds["exact"], "times",
            sizes.goal(">= 8")),
        Row("exact over bare backwards", seconds["exact"] / seconds["bare backwards"], "times"),
    ]  # fmt: skip


def bare(model: nn.Module, images: Tensor, times: int) -> None:
    """So many times one forward and one backward per class, to the input and to no parameter."""
    flags = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(False)
    for _ in range(times):
        inputs = images.clone().requires_grad_()
        logits = model(inputs)
        for index in range(logits.shape[1]):
            torch.autograd.grad(logits[:, index].sum(), inputs, retain_graph=index + 1 < logits.shape[1])
    for parameter, flag in zip(model.parameters(), flags, strict=True):
        parameter.requires_grad_(flag)


def together(device: torch.device, sizes: Sizes, folder: Path) -> list[Row]:
    """Four cells at a time on the device against one after the other: how long the same sweep takes."""
    seconds = {}
    for jobs in (1, 4):
        started = time.perf_counter()
        command = [sys.executable, "-m", "weight_decay", *shlex.split(sizes.cells), "tracking=disabled",
                   "execution.progress=false", f"jobs={jobs}", f"execution.results={folder / str(jobs)}",
                   f"data.root={folder / 'data'}"]  # fmt: skip
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=_paths())
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or ["it failed and said nothing"])[-1])
        seconds[jobs] = time.perf_counter() - started
    return [
        Row("the sweep, one cell after the other", seconds[1], "s"),
        Row("the sweep, four cells at a time", seconds[4], "s"),
        Row("one after the other over four at a time", seconds[1] / seconds[4], "times"),
    ]


def _paths() -> dict[str, str]:
    """The environment in which another Python finds what this one has found."""
    import os

    return {**os.environ, "PYTHONPATH": os.pathsep.join(folder for folder in sys.path if folder)}
