"""Memory of a device: how much is at hand, how data get there, and work cut into pieces that fit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from weight_decay.device.traits import traits, widest_float
from weight_decay.errors import UserError

_DEVICE_SHARE = 0.4
_HOST_SHARE = 0.125
_Result = TypeVar("_Result")


def pinned(host: Tensor, device: torch.device) -> Tensor:
    """The tensor in memory from which a copy to `device` can run beside the computation, where there is such memory."""
    return host.pin_memory() if traits(device).pinned else host


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`. From pinned memory the host does not wait for the copy."""
    if host.device == device or (host.device.type == device.type and device.index is None):
        return host
    return pinned(host, device).to(device, non_blocking=traits(device).pinned)


def copy_on_host(state: Any) -> Any:
    """Nested dicts and lists with every tensor copied to the host's memory, for somebody else to read at leisure."""
    if isinstance(state, Tensor):
        return state.detach().clone() if traits(state.device).host else state.detach().cpu()
    if isinstance(state, dict):
        return {key: copy_on_host(value) for key, value in state.items()}
    return type(state)(copy_on_host(value) for value in state) if isinstance(state, list | tuple) else state


def to_host(metrics: Mapping[str, Any]) -> dict[str, float | int]:
    """Metrics as Python numbers, with a single wait for the device however many tensors there are.

    Tensors may lie on several devices: what was already read back is stacked apart from what is still on the device.
    """
    together: dict[torch.device, dict[str, Tensor]] = {}
    for name, value in metrics.items():
        if isinstance(value, Tensor):
            together.setdefault(value.device, {})[name] = value.detach().reshape(())
    host: dict[str, float | int] = {k: v for k, v in metrics.items() if not isinstance(v, Tensor)}
    for device, tensors in together.items():
        stacked = torch.stack([value.to(widest_float(device)) for value in tensors.values()])
        host.update(zip(tensors, stacked.cpu().tolist(), strict=True))
    return {name: host[name] for name in metrics}


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on an accelerator; None where it does not say, and on the host."""
    if traits(device).host:
        return None
    ask = getattr(torch.get_device_module(device), "mem_get_info", None)
    return None if ask is None else int(ask(device)[0])


def room_for_data(device: torch.device) -> float:
    """Bytes that a data set may take: 40 % of what is free on an accelerator, or an eighth of the host's memory."""
    free = free_memory(device)
    if free is not None:
        return free * _DEVICE_SHARE
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * _HOST_SHARE


def samples_at_once(device: torch.device, on_host: int, elsewhere: int) -> int:
    """How many samples a probe takes at a time: few that stay in a CPU's caches, many where kernels are launched."""
    return on_host if traits(device).host else elsewhere


_fitted: dict[str, int] = {}
"""For each purpose the largest piece that did not fail, where a larger one has failed."""


def in_pieces(
    compute: Callable[[slice], _Result], samples: int, at_once: int, purpose: str = "work"
) -> Iterator[_Result]:
    """`compute` of successive pieces of `samples`, each of at most `at_once`; pieces are halved until they fit.

    What did not fit for a `purpose` once is not tried again before `try_large_pieces_again`.
    Raises UserError if a single sample does not fit the device's memory.
    """
    start = 0
    at_once = min(at_once, _fitted.get(purpose, at_once))
    while start < samples:
        piece = slice(start, min(start + at_once, samples))
        try:
            result = compute(piece)
        except torch.OutOfMemoryError as error:
            result = None
            if at_once == 1:
                raise UserError(
                    f"execution.device: one sample alone does not fit the memory that is left "
                    f"({str(error).splitlines()[0]}); use a smaller model, fewer cells at a time, or a larger device."
                ) from None
        if result is None:
            # Outside the handler: the error holds the frames, and they hold the memory that is to be freed.
            at_once = _fitted[purpose] = max(1, min(at_once, piece.stop - piece.start) // 2)
            if torch.accelerator.is_available():
                torch.accelerator.empty_cache()
            continue
        yield result
        start = piece.stop


def try_large_pieces_again() -> None:
    """For a new run, whose model may be smaller."""
    _fitted.clear()


def that_fit(device: torch.device, most: int, bytes_each: float) -> int:
    """How many samples of so many bytes fit into a device's room for data, at least 1 and at most `most`."""
    free = free_memory(device)
    return most if free is None else max(1, min(most, int(free * _DEVICE_SHARE / max(bytes_each, 1.0))))
