"""What each kind of device can do and how it likes to be treated: the one place where devices differ.

Everything else asks `traits(device)` for an ability and never for the name of a device. A kind that is not listed is
taken for an accelerator of which nothing special is known.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Traits:
    """Abilities of a kind of device.

    host: its memory is the host's: a copy to it waits for nobody.
    pinned: copies from page-locked host memory run beside the computation.
    float64: it computes in double precision.
    sums: the type in which norms of many numbers are added up.
    learning_rate_on_device: the fused optimizers read the learning rate from device memory, so that the host never
        waits and a captured graph can be replayed.
    compiled: `torch.compile` makes kernels for it that are worth the wait.
    half: number formats of 16 bits that it multiplies in.
    chunk_logits: logits of a language model held at a time (rows × vocabulary): near the caches of a CPU, enough for
        full-speed matrix products on an accelerator.
    backwards_at_once: backward passes through one graph that are made as one: on a GPU small ones wait for the host one
        by one, on a CPU they stay in the caches.
    chosen_by: the environment variable that says which of a machine's devices a process sees.
    ranks: what `torch.distributed` sends its tensors with.
    """

    host: bool = False
    pinned: bool = False
    float64: bool = True
    sums: torch.dtype = torch.float32
    learning_rate_on_device: bool = True
    compiled: bool = False
    half: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16)
    chunk_logits: int = 2**27
    backwards_at_once: int = 16
    chosen_by: str | None = None
    ranks: str | None = None


KNOWN: dict[str, Traits] = {
    # torch's float32 norm on the CPU adds up naively: 4e-5 off for a few million entries.
    "cpu": Traits(
        host=True,
        sums=torch.float64,
        learning_rate_on_device=False,
        chunk_logits=2**23,
        backwards_at_once=1,
        ranks="gloo",
    ),
    "cuda": Traits(pinned=True, compiled=True, chosen_by="CUDA_VISIBLE_DEVICES", ranks="nccl"),
    "xpu": Traits(pinned=True, compiled=True, chosen_by="ZE_AFFINITY_MASK", ranks="xccl"),
    "mps": Traits(float64=False, learning_rate_on_device=False),
}


def traits(device: torch.device) -> Traits:
    """What `device` can do."""
    return KNOWN.get(device.type, Traits())


def widest_float(device: torch.device) -> torch.dtype:
    """float64 where the device has it."""
    return torch.float64 if traits(device).float64 else torch.float32
