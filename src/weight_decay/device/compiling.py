"""Whether a forward pass is compiled, and the sentence where it cannot be."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch

# torch imports it when the first optimizer is made, and an error that it meets and catches then would keep the frames
# of that run, and with them model and data, until the garbage collector comes by.
import torch._dynamo

from weight_decay.device.traits import traits

PAYS_AT = ("small", "paper")
"""The scales whose runs are long enough to wait for a compiler."""

BACKEND = "inductor"
"""What compiles; tests take one that needs no toolchain."""


def compiled(
    forward: Callable[..., Any],
    wanted: bool | Literal["auto", "graphs"],
    scale: str,
    device: torch.device,
    say: Callable[[str], None],
    waits_for_host: bool = False,
) -> Callable[..., Any]:
    """`forward` compiled if `wanted`; "auto" compiles on an accelerator that gains by it, at the scales `PAYS_AT`.

    "graphs" also replays its kernels as one launch (CUDA graphs), where a small net keeps a GPU waiting for the host;
    "auto" does so if told that this one `waits_for_host`.
    Where the compiler does not work it says so in one sentence and returns `forward` as it is.
    """
    if wanted == "auto":
        pays = traits(device).compiled and scale in PAYS_AT
        wanted = "graphs" if pays and waits_for_host else pays
    if wanted is False:
        return forward
    problem = compiler_problem(device.type)
    if problem is not None:
        say(f"execution.compile: not compiled, since the compiler does not work here ({problem}); the run is slower")
        return forward
    options: dict[str, Any] = {"mode": "reduce-overhead" if wanted == "graphs" else None}
    if BACKEND != "inductor":
        options = {"backend": BACKEND}
    return torch.compile(forward, **options)


def is_compiled(forward: Callable[..., Any]) -> bool:
    """Whether `forward` is what torch.compile has made of a module or a function."""
    return isinstance(forward, torch._dynamo.OptimizedModule) or hasattr(forward, "_torchdynamo_orig_callable")


@functools.cache
def compiler_problem(kind: str) -> str | None:
    """Why nothing can be compiled for a kind of device, found by compiling one line for it; None if it works."""
    try:
        torch.compile(_one_line, backend=BACKEND)(torch.ones(8, device=kind))
    except Exception as error:  # a compiler fails in as many ways as there are toolchains
        lines = [line.strip() for line in str(error).splitlines()]
        # torch's own first line only says that the compiler raised something.
        return next((line for line in lines if line and not line.endswith("raised:")), type(error).__name__)[:160]
    return None


def _one_line(values: torch.Tensor) -> torch.Tensor:
    return (2 * values).sin().sum()
