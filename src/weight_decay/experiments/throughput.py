"""What a device is taken to sustain when a cost is estimated: assumed, measured by gpu-check, or given by the user."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from weight_decay.config.groups import ImageData
from weight_decay.config.run import RunConfig
from weight_decay.errors import UserError

_SETTINGS = ("cost.tflops", "cost.step_ms")
_MEASURED = {
    "over_training": (
        "steps-vision",
        "bfloat16_autocast: ours, compile={}: sustained",
        {False: "false", True: "true", "graphs": "graphs"},
    ),
    "under_training": (
        "steps-language",
        "context 256: ours{}: sustained",
        {False: "", True: ", compiled", "graphs": ", compiled"},
    ),
}


@dataclass(frozen=True)
class Throughput:
    """What a device sustains on these nets.

    operations: per second. step: least seconds of one optimizer step; a small net keeps a GPU waiting for the host.
    source: "assumed", "measured" or "given".
    """

    device: str
    operations: float
    step: float
    unit: str
    source: str = "assumed"


CPU_CORE = Throughput("one CPU core, float32", 30e9, 0.0, "core-hours")
GPU = Throughput("one A100-class GPU, 16-bit, not compiled", 40e12, 6e-3, "GPU-hours")
COMPILED_GPU = Throughput("one A100-class GPU, 16-bit, compiled", 80e12, 3e-3, "GPU-hours")


@dataclass(frozen=True)
class Assumptions:
    """What the user takes the device to sustain; None: what gpu-check measured, or our own assumption.

    tflops: tera-operations a second (`cost.tflops=`). step_ms: least milliseconds of a step (`cost.step_ms=`).
    """

    tflops: float | None = None
    step_ms: float | None = None

    def throughput(self, scale: str, config: RunConfig, results: Path | None = None) -> Throughput:
        """What the device that a scale is meant for sustains on a run; `results`: where gpu-check left its table."""
        found = CPU_CORE
        if scale != "micro":
            how = config.execution.compile
            if how == "auto":
                how = "graphs" if config.waits_for_host else True
            found = COMPILED_GPU if how else GPU
            found = _measured(config, how, results, found.step) or found
        if self.tflops is not None:
            found = replace(found, operations=1e12 * self.tflops, source="given")
        return found if self.step_ms is None else replace(found, step=1e-3 * self.step_ms, source="given")


def take_assumptions(words: Sequence[str]) -> tuple[list[str], Assumptions]:
    """The words of a command without `cost.tflops=` and `cost.step_ms=`, and what these say."""
    given: dict[str, float] = {}
    for word in words:
        key, _, value = word.partition("=")
        if key not in _SETTINGS:
            if key.startswith("cost."):
                raise UserError(f"{key}: there is no such setting; there are {' and '.join(_SETTINGS)}.")
            continue
        try:
            given[key.removeprefix("cost.")] = number = float(value)
        except ValueError:
            number = float("nan")
        if not 0 < number < float("inf"):
            raise UserError(f"{key}: must be a positive number, got {value!r}.")
    return [word for word in words if word.partition("=")[0] not in _SETTINGS], Assumptions(**given)


def _measured(config: RunConfig, how: bool | str, results: Path | None, step: float) -> Throughput | None:
    """What gpu-check measured on a net like this, compiled so; None if it has not been run here.

    It measured large steps; small ones are taken to last `step` seconds at least, as long as nobody has measured them.
    """
    path = None if results is None else results / "tables" / "gpu_check.csv"
    if path is None or not path.is_file():
        return None
    piece, what, forms = _MEASURED["over_training" if isinstance(config.data, ImageData) else "under_training"]
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if (row["piece"], row["what"]) == (piece, what.format(forms[how])):
                return Throughput(row["device"], 1e12 * float(row["value"]), step, "GPU-hours", "measured")
    return None
