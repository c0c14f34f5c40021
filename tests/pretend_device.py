"""A second torch device made in Python: tensors live in CPU memory, but mixing them with CPU tensors fails as on a GPU.

It lets a machine without an accelerator run training, evaluation, probes and checkpoints "on a device" and finds every
place where a CPU tensor meets a device tensor. Its kernels are the CPU's, so what it computes must equal the CPU's
numbers bit for bit. Speed, streams, pinned memory and kernels are not what it shows.

`install()` registers it, once and for the whole process: call it only in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_map_only

NAME = "pretend"
MISSING = (
    None
    if hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
    else f"torch {torch.__version__} cannot be given a device made in Python"
)
"""Why there is no pretend device here; None if there is one."""

aten = torch.ops.aten
_MOVES = {aten.copy_.default, aten._to_copy.default, aten._copy_from.default, aten._copy_from_and_resize.default}
_INDEXING = {aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default, aten.index_put.default}
_NO_SCALARS = {aten.stack.default, aten.cat.default, aten.index_copy_.default, aten.dot.default}


class _Module:
    """What torch asks of a device's module."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """Nothing: the device draws nothing."""

    def get_rng_state(self, device: Any = None) -> Tensor:
        """The state of no generator."""
        return torch.empty(0, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        """Nothing: the device draws nothing."""

    def synchronize(self, device: Any = None) -> None:
        """Nothing: the device is never behind."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


class OnDevice(Tensor):
    """A CPU tensor that says that it is on the pretend device."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> OnDevice:
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined,no-any-return]
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            layout=raw.layout,
            device=torch.device(NAME, 0),
            requires_grad=False,
        )

    def __init__(self, raw: Tensor) -> None:
        self.raw = raw

    def tolist(self) -> Any:
        """Refused: a wait for the device should be seen in the code, as `.cpu().tolist()`."""
        raise RuntimeError("tolist of a device tensor; say .cpu().tolist()")

    def numpy(self, *, force: bool = False) -> Any:
        """Refused, as on a GPU."""
        raise TypeError("can't convert pretend:0 device type tensor to numpy. Use Tensor.cpu() first")

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        # torch swaps what is behind the wrapper; what it wraps must follow.
        if not isinstance(value, OnDevice):
            raise TypeError("the data of a device tensor must be on the device")
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.raw = value.raw

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"OnDevice({self.raw!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = _tensors(args)
        if kwargs:
            tensors += _tensors(tuple(kwargs.values()))
        _refuse_mixture(func, tensors, args)
        target = kwargs.get("device")
        if target is not None:
            kwargs["device"] = "cpu"
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        out = _compute(func, _raw(args), {key: _raw(value) for key, value in kwargs.items()})
        if func is aten.copy_.default and not isinstance(args[0], OnDevice):
            return args[0]
        if target is not None and torch.device(target).type == "cpu":
            return out
        # What was written to is the same tensor afterwards.
        known = {id(t.raw): t for t in tensors if isinstance(t, OnDevice)} if func._schema.is_mutable else {}
        return _wrapped(out, known)


def _tensors(values: Any) -> list[Tensor]:
    tensors: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, list | tuple):
            tensors += _tensors(value)
    return tensors


def _raw(value: Any) -> Any:
    if isinstance(value, OnDevice):
        return value.raw
    return type(value)(map(_raw, value)) if type(value) in (list, tuple) else value


def _wrapped(value: Any, known: dict[int, OnDevice]) -> Any:
    if isinstance(value, Tensor):
        return known[id(value)] if id(value) in known else OnDevice(value)
    return type(value)(_wrapped(part, known) for part in value) if type(value) in (list, tuple) else value


def _refuse_mixture(func: Any, tensors: list[Tensor], args: Any) -> None:
    """RuntimeError where CUDA refuses too: a 0-d CPU tensor may be read by most pointwise kernels, no other may."""
    if func in _MOVES:
        return
    elsewhere = [t for t in tensors if not isinstance(t, OnDevice)]
    if func in _INDEXING:
        elsewhere = [] if isinstance(args[0], OnDevice) else elsewhere
    elif func not in _NO_SCALARS and "foreach" not in func.name() and "fused" not in func.name():
        written = isinstance(args[0], Tensor) and func._schema.is_mutable if args else False
        elsewhere = [t for t in elsewhere if t.dim() > 0 or (written and t is args[0])]
    if elsewhere:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found cpu and {NAME}:0 in {func}")


def _compute(func: Any, args: Any, kwargs: Any) -> Any:
    if func is aten._fused_sdp_choice.default:
        return 0  # math: the only attention kernel this device has
    return func(*args, **kwargs)


# What the CPU's autocast runs in the lower precision, and what in float32.
_LOWER = [
    "conv1d",
    "conv2d",
    "conv3d",
    "bmm",
    "mm",
    "baddbmm",
    "addmm",
    "addbmm",
    "linear",
    "matmul",
    "prelu",
    "scaled_dot_product_attention",
]
_HIGHER = ["mse_loss", "nll_loss", "l1_loss", "kl_div", "prod"]
_KEEP: list[Any] = []


def _empty(size: Any, *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None,
           memory_format: Any = None) -> Tensor:  # fmt: skip
    chosen = memory_format or torch.contiguous_format
    return OnDevice(torch.empty(size, dtype=dtype, device="cpu", memory_format=chosen))


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, layout: Any = None, device: Any = None,
                   pin_memory: Any = None) -> Tensor:  # fmt: skip
    return OnDevice(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))


def _zeros(size: Any, *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None) -> Tensor:
    return OnDevice(torch.zeros(size, dtype=dtype, device="cpu"))


def install() -> torch.device:
    """Register the device with torch and return it."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    library = torch.library.Library("aten", "IMPL")
    library.impl("empty.memory_format", _empty, "PrivateUse1")
    library.impl("empty_strided", _empty_strided, "PrivateUse1")
    library.impl("_efficientzerotensor", _zeros, "PrivateUse1")
    rest = torch.library.Library("_", "IMPL")
    rest.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for names, lower in ((_LOWER, True), (_HIGHER, False)):
        for name in names:
            library.impl(name, _cast_first(getattr(aten, name).default, lower), "AutocastPrivateUse1")
    _KEEP.extend((library, rest))
    return torch.device(NAME, 0)


def _cast_first(func: Any, lower: bool) -> Callable[..., Any]:
    off = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def run(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.get_autocast_dtype(NAME) if lower else torch.float32

        def cast(tensor: Tensor) -> Tensor:
            eligible = isinstance(tensor, OnDevice) and tensor.is_floating_point() and tensor.dtype != torch.float64
            return tensor.to(dtype) if eligible else tensor

        with torch._C._ExcludeDispatchKeyGuard(off):
            args, kwargs = (tree_map_only(Tensor, cast, part) for part in (args, kwargs))
            return func(*args, **kwargs)

    return run
