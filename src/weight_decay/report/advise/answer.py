"""The answer to "what λ, and what will it do?": lines of a value, where it comes from, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from weight_decay.errors import UserError
from weight_decay.report.advise.dynamics import (
    HALF_STEP,
    Schedule,
    equilibrium_norm,
    final_norm,
    forgotten_at,
    norms,
    relative_update,
    rounded_away,
    timescale,
)

SURE, ROUGH, OPEN = "exact", "rough", "open question"
WEIGHTS = {"bfloat16": "bfloat16", "bfloat16_autocast": "float32", "float16_autocast": "float32", "float32": "float32"}
"""In which format each precision keeps the weights themselves; tf32 and autocast only multiply in a shorter one."""

INITIAL_STANDARD_DEVIATION = 0.02
"""Of GPT-2's weights; ‖w‖ starts near 0.02 √parameters (PAPER §4: 235 for 124M)."""


@dataclass(frozen=True)
class Run:
    """A run as somebody describes it. samples: images, or sequences of `context` tokens, in the training set."""

    parameters: float
    samples: float
    passes: float
    batch: int
    schedule: Schedule
    optimizer: str
    precision: str
    kernel: str
    weight_decay: float | None
    drive: float  # size of an update per unit of η and √parameter: near 1 for AdamW (see dynamics.py)

    @property
    def start(self) -> float:
        """‖w‖ at the start, with GPT-2's initialisation."""
        return INITIAL_STANDARD_DEVIATION * math.sqrt(self.parameters)


@dataclass(frozen=True)
class Line:
    """One statement of the answer."""

    name: str
    value: str
    why: str
    sure: str


def suggestion(run: Run) -> tuple[float, float, str]:
    """The range of λ that the study supports for this run, and where that comes from."""
    if run.passes > 1 and run.optimizer == "sgd":
        # The heatmaps' valley lies at η·λ of 5e-4 to 7.5e-4; the text's .005 is not what Figs 3 and 10 show.
        low, high = 5e-4, 7.5e-4
        return low / run.schedule.peak, high / run.schedule.peak, "valley of Figs 3 and 10: η·λ of 5e-4 to 7.5e-4"
    travelled = run.schedule.peak * run.schedule.steps
    return 3 / travelled, 9 / travelled, "Fig 6: λ·η·T of 3 (λ = .1) to 9 (λ = .3) at 50,000 steps of η = 6e-4"


def answer(run: Run) -> list[Line]:
    """What can be said of a run before it is started."""
    low, high, source = suggestion(run)
    given = run.weight_decay
    decay = given if given is not None else low
    schedule, steps = run.schedule, run.schedule.steps
    lines = [
        Line("regime", "over-training" if run.passes > 1 else "under-training",
             f"{run.passes:g} pass(es) over the data in {steps:,} steps", SURE),
        Line("λ supported by the study", f"{low:.3g} to {high:.3g}", source, ROUGH),
        Line("λ below" if given is None else "your λ", f"{decay:.3g}",
             "the low end of that range" if given is None else "as given", SURE),
    ]  # fmt: skip
    scale = timescale(schedule.peak, decay)
    per_pass = run.samples / run.batch
    lines += [
        Line("timescale τ at the peak of η", f"{scale:,.0f} steps, {scale / per_pass:.3g} passes",
             "1/(ηλ): how far back the weights remember (2405.13698)", SURE),
        Line("λ·Ση over the run", f"{decay * schedule.total:.3g}",
             "decay alone shrinks what is not renewed by exp of minus this", SURE),
        Line("initial weights forgotten", _step(forgotten_at(schedule, decay), steps), "where λ·Ση reaches 1", SURE),
        Line("relative update in equilibrium", f"{relative_update(schedule.peak, decay):.2g}",
             "√(2ηλ) at the peak of η, whatever the gradients (2305.17212)", ROUGH),
    ]  # fmt: skip
    if run.optimizer == "adamw":
        lines += _norms(run, decay)
    lines.append(_rounding(run, decay))
    return lines + _warnings(run, decay, low, high)


def _norms(run: Run, decay: float) -> list[Line]:
    drive, schedule = run.drive * math.sqrt(run.parameters), run.schedule
    why = (
        "noise of size η per weight against decay (dynamics.py); measured runs were within a factor of 2, larger in "
        "embeddings, queries and keys, whose gradients push back"
    )
    end, free = (final_norm(schedule, value, run.start, drive) for value in (decay, 0.0))
    last = schedule.last_lr
    return [
        Line("equilibrium ‖w‖ at the peak of η", f"{equilibrium_norm(schedule.peak, decay, drive):.3g}", why, ROUGH),
        Line("‖w‖ at the end", f"{end:.3g} (λ = 0: {free:.3g})", why, ROUGH),
        Line("effective learning rate η/‖w‖ at the end", f"{last / end:.3g} (λ = 0: {last / free:.3g})",
             "Fig 7: what decay changes, and what a schedule alone could change too", ROUGH),
    ]  # fmt: skip


def _rounding(run: Run, decay: float) -> Line:
    weights = WEIGHTS[run.precision]
    share = rounded_away(run.schedule.peak, decay, weights)
    if run.kernel == "fused" and weights == "bfloat16":
        return Line("decay rounded away", "partly", "the fused kernel rounds once, update and decay together; below "
                    f"η·λ = {HALF_STEP[weights] / 2:.2g} foreach kernels lose all of it", ROUGH)  # fmt: skip
    why = f"weights stored in {weights} lose changes below half a unit in the last place"
    return Line("decay rounded away", f"for {share:.0%} of the weights", why, SURE)


def _warnings(run: Run, decay: float, low: float, high: float) -> list[Line]:
    warnings = []
    if run.weight_decay is not None and not low / 3 <= run.weight_decay <= high * 3:
        warnings.append(Line("warning", f"λ = {decay:.3g} is far from the range above",
                             "more than 3 times below or above what the study tried with gain", ROUGH))  # fmt: skip
    if run.passes <= 1:
        warnings.append(Line("warning", "the gain depends on η",
                             "with η tuned for each λ our micro runs end in a tie (MICRO scale)", OPEN))  # fmt: skip
    elif run.optimizer == "adamw":
        warnings.append(Line("warning", "a text seen many times may want more decay",
                             "64 passes over a text: λ·η·T = 15 ended .17 nats below λ = 0; up to 16 passes, nothing "
                             "above 1.5 won (passes_text, MICRO scale)", OPEN))  # fmt: skip
    warnings.append(Line("warning", "decay norms and biases only if you mean to",
                         "the paper decays all of a ResNet and spares LayerNorm in GPT-2", SURE))  # fmt: skip
    return warnings


def _step(step: float | None, steps: int) -> str:
    return "not within the run" if step is None else f"step {step:,.0f} ({step / steps:.0%})"


def as_dict(run: Run) -> dict[str, Any]:
    """The answer for programs: its lines, and ‖w‖ along the run with and without decay, at 101 points at most."""
    low, _, _ = suggestion(run)
    decay = run.weight_decay if run.weight_decay is not None else low
    result: dict[str, Any] = {"lines": [asdict(line) for line in answer(run)]}
    if run.optimizer == "adamw":
        drive = run.drive * math.sqrt(run.parameters)
        paths = {name: norms(run.schedule, value, run.start, drive) for name, value in (("decay", decay), ("none", 0))}
        every = max(len(paths["none"]) // 100, 1)
        result["paths"] = {
            name: [{"step": s, "lr": lr, "weights/norm": w} for s, lr, w in path[::every]]
            for name, path in paths.items()
        }
    return result


# -- the user's words ------------------------------------------------------------------------------------------------

_NUMBERS = ("parameters", "tokens", "images", "passes", "batch", "context", "lr", "weight_decay", "warmup",
            "final_fraction", "drive")  # fmt: skip
_CHOICES = {
    "schedule": ("cosine", "constant", "linear", "drop"),
    "precision": tuple(WEIGHTS),
    "optimizer": ("adamw", "sgd"),
    "kernel": ("fused", "foreach"),
}
_MULTIPLE = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def read_run(words: Mapping[str, str]) -> Run:
    """A run from `key=value` words such as parameters=124M tokens=3.3B batch=256 context=256 lr=6e-4; UserError."""
    for key in words:
        if key not in (*_NUMBERS, *_CHOICES):
            raise UserError(f"advise: {key} is not known here; there are {', '.join((*_NUMBERS, *_CHOICES))}.")
    numbers = {key: _number(key, words[key]) for key in _NUMBERS if key in words}
    text = "tokens" in numbers
    if text == ("images" in numbers):
        raise UserError("advise: say how much data there is, tokens=3.3B or images=50k (one of them).")
    for key in ("parameters", "lr", "batch", *(["context"] if text else [])):
        if key not in numbers:
            raise UserError(
                f"advise: say {key} too, for example parameters=124M tokens=3.3B batch=256 context=256 lr=6e-4, "
                "or parameters=11M images=50k passes=100 batch=128 lr=0.1 optimizer=sgd."
            )
    defaults = {"optimizer": "adamw" if text else "sgd", "schedule": "cosine" if text else "drop",
                "precision": "bfloat16_autocast", "kernel": "fused"}  # fmt: skip
    chosen = {}
    for key, options in _CHOICES.items():
        chosen[key] = words.get(key, defaults[key])
        if chosen[key] not in options:
            raise UserError(f"advise: {key} must be one of {', '.join(options)}, got {chosen[key]}.")
    samples = numbers["tokens"] / numbers["context"] if text else numbers["images"]
    passes = numbers.get("passes", 1.0)
    steps = round(samples * passes / numbers["batch"])
    if steps < 1:
        raise UserError("advise: this is less than one step; give more data or passes, or a smaller batch.")
    fraction = numbers.get("final_fraction", 0.1)
    _check(numbers, steps, fraction)
    schedule = Schedule(chosen["schedule"], numbers["lr"], steps, round(numbers.get("warmup", 0)), fraction)
    return Run(
        parameters=numbers["parameters"],
        samples=samples,
        passes=passes,
        batch=round(numbers["batch"]),
        schedule=schedule,
        optimizer=chosen["optimizer"],
        precision=chosen["precision"],
        kernel=chosen["kernel"],
        weight_decay=numbers.get("weight_decay"),
        drive=numbers.get("drive", 1.0),
    )


def _check(numbers: Mapping[str, float], steps: int, fraction: float) -> None:
    """UserError for what is no run: it would be rounded to another one, or answered by formulas that do not hold."""
    for key in ("batch", "context", "warmup"):
        value = numbers.get(key, 0.0)
        if not math.isclose(value, round(value), rel_tol=1e-9):  # 1.1k is a hair above 1,100
            unit = " of steps" if key == "warmup" else ""
            raise UserError(f"advise: {key} must be a whole number{unit}, got {value:g}.")
    if numbers.get("warmup", 0.0) >= steps:
        raise UserError(f"advise: a warmup of {numbers['warmup']:,.0f} steps does not end within {steps:,} steps.")
    if fraction > 1:
        raise UserError(f"advise: final_fraction must be a share of lr from 0 to 1, got {fraction:g}.")
    if (rate := numbers["lr"] * numbers.get("weight_decay", 0.0)) >= 1:
        raise UserError(f"advise: lr · weight_decay is {rate:g}, so one step would decay more than the whole weight; "
                        "make one of them smaller.")  # fmt: skip


def _number(key: str, word: str) -> float:
    factor = _MULTIPLE.get(word[-1:], 1.0)
    try:
        value = float(word[:-1] if word[-1:] in _MULTIPLE else word) * factor
    except ValueError:
        value = math.nan
    positive = key not in ("weight_decay", "warmup", "final_fraction")
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        raise UserError(f"advise: {key} must be a {'positive ' if positive else ''}number such as 124M or 6e-4, "
                        f"got {word!r}.")  # fmt: skip
    return value
