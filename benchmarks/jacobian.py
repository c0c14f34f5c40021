"""Exact Jacobian norm against `vmap(jacrev)` and against the bare backward passes it cannot do without.

Goals, on ResNet18 of width 64, 32×32 images, a batch of 10, one process, warm: at least 8 times faster than
`vmap(jacrev)` with at most 1/8 of its memory, and at most 1.6 times the time of one forward pass and one
activation-gradient backward per class. Times are the best of several interleaved rounds in one process;
memory is each variant's peak above what model and inputs already took, in a process of its own.
Most of the time of `vmap(jacrev)` goes into getting its gigabytes from the system, so the first ratio depends on
the machine; the third does not.

    python benchmarks/jacobian.py                        # the goals, about 2 minutes
    python benchmarks/jacobian.py --width 8 --size 16    # seconds
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from weight_decay.models.resnet import PreActResNet
from weight_decay.probes.jacobian import jacobian_mean_square_estimate, jacobian_norm

CLASSES = 10


def build(width: int, size: int, batch: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = PreActResNet(depth=18, width=width, classes=CLASSES)
    images = torch.randn(batch, 3, size, size)
    # Statistics by hand: a forward pass in training mode would leave a memory peak of its own.
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0.0, 0.1)
            module.running_var.uniform_(0.5, 2.0)
    return model.eval(), images


def bare(model: nn.Module, images: Tensor) -> None:
    """One forward and one backward per class, to the output of the first layer and to no parameter."""
    flags = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(False)
    first_output: list[Tensor] = []

    def keep(module: nn.Module, arguments: object, output: Tensor) -> None:
        first_output.append(output.requires_grad_())

    # The first layer is a norm on 3 channels: its output is the earliest gradient that any method needs.
    handle = model.get_submodule("input_norm").register_forward_hook(keep)
    logits = model(images)
    handle.remove()
    for c in range(CLASSES):
        torch.autograd.grad(logits[:, c].sum(), first_output, retain_graph=c + 1 < CLASSES)
    for parameter, flag in zip(model.parameters(), flags, strict=True):
        parameter.requires_grad_(flag)


def exact(model: nn.Module, images: Tensor) -> Tensor:
    return jacobian_norm(model, [images]).per_sample_square


def estimate(model: nn.Module, images: Tensor) -> None:
    jacobian_mean_square_estimate(model, [images], torch.Generator().manual_seed(0))


def dense(model: nn.Module, images: Tensor) -> Tensor:
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def logits(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(model, parameters, (image[None],))[0]

    jacobian = vmap(jacrev(logits), in_dims=(None, 0))(parameters, images)
    return torch.stack([block.flatten(1).square().sum(1) for block in jacobian.values()]).sum(0)


VARIANTS: dict[str, Callable[[nn.Module, Tensor], Tensor | None]] = {
    "bare": bare,
    "exact": exact,
    "estimate": estimate,
    "dense": dense,
}


def peak_megabytes(arguments: argparse.Namespace) -> float:
    """Peak resident memory that one call adds, in this process."""
    model, images = build(arguments.width, arguments.size, arguments.batch)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    VARIANTS[arguments.memory_of](model, images)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / unit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: torch's own")
    parser.add_argument("--memory-of", choices=VARIANTS, help="only print this variant's peak memory, in MB")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        print(json.dumps(peak_megabytes(arguments)))
        return

    # First, while this process is small: on Linux a child's peak starts at its parent's size.
    memory = {}
    for name in VARIANTS:
        command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", name]
        memory[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    model, images = build(arguments.width, arguments.size, arguments.batch)
    difference = (exact(model, images) / dense(model, images) - 1).abs().max().item()
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for name, variant in VARIANTS.items():
        if name not in ("exact", "dense"):
            variant(model, images)  # warm
    for _ in range(arguments.rounds):
        for name, variant in VARIANTS.items():
            start = time.perf_counter()
            variant(model, images)
            seconds[name].append(time.perf_counter() - start)
    best = {name: min(values) for name, values in seconds.items()}

    print(
        f"ResNet18 width {arguments.width}, {arguments.size}×{arguments.size}, batch {arguments.batch}, "
        f"{CLASSES} classes, {arguments.threads} thread(s), best of {arguments.rounds}"
    )
    print(f"{'':10}{'ms/sample':>12}{'peak MB':>12}")
    for name in VARIANTS:
        print(f"{name:10}{1e3 * best[name] / arguments.batch:>12.1f}{memory[name]:>12.0f}")
    print(f"exact and dense agree to       {difference:.1e}")
    print(f"dense / exact, time            {best['dense'] / best['exact']:.1f}   (goal: at least 8)")
    print(f"dense / exact, memory          {memory['dense'] / memory['exact']:.1f}   (goal: at least 8)")
    print(f"exact / bare backwards, time   {best['exact'] / best['bare']:.2f}   (goal: at most 1.6)")


if __name__ == "__main__":
    main()
