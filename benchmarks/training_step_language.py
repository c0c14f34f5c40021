"""Our language-model training step against a plain one in nanoGPT's manner: same model, same tokens, one run.

The plain step does what nanoGPT's train.py does: windows gathered one by one from a memory map, logits of the whole
batch, `clip_grad_norm_`, torch's AdamW with its default kernel (fused on GPUs only), the loss read on the host every
10 steps. With `--nanogpt FOLDER`, a checkout of nanoGPT beside this project, its own model and optimizer are a
third contestant. Ours is `Training.advance`, without and with the EMA that the plain step has not, and with
`execution.compile=true` (its compilation falls into the first, untimed round).

Goals on a CPU: at least 1.15 times the plain step's tokens per second at micro size, no slower at GPT-2-Small's width
with 2 layers; and the loop at most 3 % above its own bare parts. Rounds alternate and the best of each counts; on a
CPU with one thread the clock is the process's own, so other jobs on the machine disturb less.

    python benchmarks/training_step_language.py                 # micro size, then width 768
    python benchmarks/training_step_language.py --size micro --nanogpt ../nanoGPT
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from _timed import timed
from weight_decay.cli import make_plan
from weight_decay.config.run import RunConfig
from weight_decay.data.text.files import open_folder
from weight_decay.data.text.python_text import ensure_python_text
from weight_decay.device.choose import apply_precision, autocast, choose_device
from weight_decay.tasks.choose import build_regime
from weight_decay.training.assemble import build_training
from weight_decay.training.build import build_model
from weight_decay.training.loop import Event, Training, train

SIZES = {
    "micro": "data=python_text data.sampling=with_replacement data.context=64 model=gpt_micro batch_size=8 ",
    "width768": "data=nanogpt data.vocabulary=50304 data.context=256 model=gpt2_small model.layers=2 batch_size=2",
}
COMMON = (
    "optimizer=adamw optimizer.lr=1e-3 decay=decoupled_except_norms decay.strength=0.1 "
    "schedule=warmup_cosine averaging=language probes=language duration=100000steps tracking=disabled "
    "execution.progress=false data.evaluation_windows=8 probes.evaluation_train_samples=8 "
    "probes.stability_every=null probes.log_every=100000steps"
)
GOALS = {"micro": 1.15, "width768": 1.0}
OVERHEAD_GOAL = 0.03
NEVER = Event(lambda: None, every=10**9, start=10**9, also_last=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=[*SIZES, "both"], default="both")
    parser.add_argument("--precision", default="float32", help="a precision group, such as bfloat16_autocast")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, help="steps of a round (default: 40 micro, 2 width768)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, help="sequences per step")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="without the compiled contestant")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT to compare with")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for size in SIZES if arguments.size == "both" else [arguments.size]:
        with tempfile.TemporaryDirectory() as folder:
            compare(size, Path(folder), arguments)


def compare(size: str, folder: Path, arguments: argparse.Namespace) -> None:
    config = {ema: make_config(size, folder, ema, arguments) for ema in ("[]", "[0.99]")}
    plainest = config["[]"]
    device = choose_device(plainest.execution, plainest.precision)
    apply_precision(plainest.precision)
    if size == "micro":
        (folder / "nanogpt").mkdir()
        tokens = open_folder(ensure_python_text(folder), "train").tokens
        tokens.astype(np.uint16).tofile(folder / "nanogpt" / "train.bin")
    else:
        write_tokens(folder)
    regime = build_regime(plainest, device)
    ours, averaged, pieces = (build_training(c, regime, device) for c in (plainest, config["[0.99]"], plainest))
    peers: dict[str, Callable[[int], object]] = {
        "ours": lambda steps: train(ours, ours.step + steps, [], NEVER, lambda: False),
        "ours, with EMA": lambda steps: train(averaged, averaged.step + steps, [], NEVER, lambda: False),
        "its bare parts": lambda steps: bare(pieces, steps),
        "plain": plain_step(plainest, folder, device),
    }
    if arguments.compile:
        words = ["execution.compile=true"]
        compiled = build_training(make_config(size, folder, "[]", arguments, words), regime, device)
        peers["ours, compiled"] = lambda steps: train(compiled, compiled.step + steps, [], NEVER, lambda: False)
    if arguments.nanogpt is not None:
        peers["nanoGPT"] = nanogpt_step(plainest, folder, device, arguments.nanogpt)
    steps = arguments.steps or (40 if size == "micro" else 2)
    best = dict.fromkeys(peers, float("inf"))
    for step in peers.values():
        step(steps)
    for _ in range(arguments.rounds):
        for name, step in peers.items():
            best[name] = min(best[name], timed(functools.partial(step, steps), device) / steps)
    data: Any = plainest.data
    step_tokens = plainest.batch_size * data.context
    print(f"{size}, {device}, {arguments.threads} thread(s), {arguments.precision}, {step_tokens} tokens a step")
    for name, seconds in best.items():
        print(f"  {name:16s} {1e3 * seconds:9.3f} ms  {step_tokens / seconds:12,.0f} tokens/s")
    for peer in [name for name in ("plain", "nanoGPT") if name in best]:
        for name in [name for name in best if name.startswith("ours")]:
            ratio = best[peer] / best[name]
            verdict = "met" if ratio >= GOALS[size] else "MISSED"
            print(f"ratio of {name} to {peer} {ratio:.3f} (goal: at least {GOALS[size]}) {verdict}")
    overhead = best["ours"] / best["its bare parts"] - 1
    verdict = "met" if overhead <= OVERHEAD_GOAL else "MISSED"
    print(f"loop overhead {overhead:.4f} (goal: at most {OVERHEAD_GOAL}) {verdict}")


def make_config(
    size: str, folder: Path, ema: str, arguments: argparse.Namespace, more: Sequence[str] = ()
) -> RunConfig:
    words = [*f"{COMMON} {SIZES[size]}".split(), *more]
    words += [f"data.root={folder}", f"averaging.ema={ema}", f"precision={arguments.precision}"]
    words += [f"execution.threads={arguments.threads}"]
    if arguments.batch is not None:
        words = [word for word in words if not word.startswith("batch_size=")] + [f"batch_size={arguments.batch}"]
    return make_plan(words)[0].cells[0].config


def write_tokens(folder: Path) -> None:
    """Random tokens in nanoGPT's own format, as folder/nanogpt, so that all contestants read the same files."""
    (folder / "nanogpt").mkdir()
    generator = np.random.default_rng(0)
    for name, count in (("train", 2_000_000), ("val", 100_000)):
        generator.integers(0, 50257, count).astype(np.uint16).tofile(folder / "nanogpt" / f"{name}.bin")


def bare(training: Training, steps: int) -> None:
    """What a step cannot do without, made of the same parts: the rest of `train` is its overhead."""
    for _ in range(steps):
        training.optimizer.set_lr(training.schedule(training.step))
        with training.autocast():
            loss = training.task.loss(training.forward, training.stream.batch(training.step))
        loss.backward()
        training.optimizer.step(None)
        training.optimizer.zero_grad()
        training.step += 1


def batches(folder: Path, batch_size: int, context: int, device: torch.device) -> Iterator[tuple[Any, Any]]:
    """Windows at random places, one slice of a memory map after the other."""
    while True:
        tokens = np.memmap(folder / "nanogpt" / "train.bin", dtype=np.uint16, mode="r")
        places = torch.randint(len(tokens) - context, (batch_size,)).tolist()
        shifted = [
            torch.stack([torch.from_numpy(tokens[i + s : i + s + context].astype(np.int64)) for i in places])
            for s in (0, 1)
        ]
        if device.type == "cuda":
            inputs, targets = (part.pin_memory().to(device, non_blocking=True) for part in shifted)
        else:
            inputs, targets = shifted
        yield inputs, targets


def plain_step(config: RunConfig, folder: Path, device: torch.device) -> Callable[[int], object]:
    model: Any = build_model(config).to(device)

    def loss(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())

    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": config.decay.strength},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    more: dict[str, Any] = {"fused": True} if device.type == "cuda" else {}
    settings: Any = config.optimizer
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, **more)
    return repeated(config, folder, device, model, loss, optimizer)


def nanogpt_step(config: RunConfig, folder: Path, device: torch.device, checkout: Path) -> Callable[[int], object]:
    path = checkout / "model.py"
    if not path.is_file():
        sys.exit(f"--nanogpt: there is no model.py in {checkout}; name the folder of a nanoGPT checkout.")
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module
    shape: Any = config.model
    data: Any = config.data
    settings: Any = config.optimizer
    with contextlib.redirect_stdout(None):
        spec.loader.exec_module(module)
        chosen: Any = module.GPTConfig(
            block_size=data.context,
            vocab_size=data.vocabulary,
            n_layer=shape.layers,
            n_head=shape.heads,
            n_embd=shape.width,
            dropout=0.0,
            bias=False,
        )
        model = module.GPT(chosen).to(device)
        optimizer = model.configure_optimizers(config.decay.strength, settings.lr, settings.betas, device.type)
    return repeated(config, folder, device, model, lambda inputs, targets: model(inputs, targets)[1], optimizer)


def repeated(
    config: RunConfig,
    folder: Path,
    device: torch.device,
    model: torch.nn.Module,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    optimizer: torch.optim.Optimizer,
) -> Callable[[int], object]:
    stream = batches(folder, config.batch_size, config.data.context, device)  # type: ignore[union-attr]
    context = autocast(config.precision, device)
    assert config.optimizer.clip_norm is not None
    limit = config.optimizer.clip_norm
    following = next(stream)

    def run(steps: int) -> None:
        nonlocal following
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = config.optimizer.lr
            with context():
                value = loss(*following)
            following = next(stream)  # on a GPU, while it computes
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if step % 10 == 0:
                value.item()

    return run


if __name__ == "__main__":
    main()
