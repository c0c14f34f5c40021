"""Runs on the CPU and on the pretend device, to be compared: `python pretend_runs.py FOLDER DATA GROUP ...`.

Registering a device is for the whole process, so the tests start this file in a process of its own. It prints one JSON
object: for each run of the group what went wrong, null where both devices gave the same numbers bit for bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

import pretend_device
from tiny_runs import QUIET, TINY_TEXT, TINY_VISION, folder_of, read_metrics, read_summary, write_fashion_mnist
from weight_decay.cli import make_plan
from weight_decay.config.plain import to_dict
from weight_decay.config.run import RunConfig, build
from weight_decay.device import traits
from weight_decay.errors import UserError
from weight_decay.experiments.catalog import experiments as declared_experiments
from weight_decay.runs.folder import Labels
from weight_decay.training.loop import Training
from weight_decay.training.run import run
from weight_decay.training.schedule import ReferenceMissingError
from weight_decay.training.stretch import Segment

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
# Everything a run can measure, average and branch off, in six steps.
VISION = (
    f"{TINY_VISION} {QUIET} probes.within_branches=false data.augment=true averaging.within_epoch=true "
    "probes.layer_gradients=true probes.regularised_loss=true averaging.tail_start='2 steps' probes.reestimated=true "
    "averaging.ensemble='{start: 1 steps, every: 2 steps, stop: 6 steps}' probes.curvature='{every: 6 steps, "
    "per_class: 1, trace_draws: 2, top_steps: 1, similarity_draws: 2, spectrum_steps: 1, spectrum_draws: 1, "
    "averages: false}' branches='[{name: finetuned, start: 3 steps, every: null, duration: 2 steps, lr: 0.01, "
    "strength: 0.0, keep_optimizer_state: false}]'"
)
TEXT = (
    f"{TINY_TEXT} {QUIET} model.attention=math averaging.ema=[0.9,0.5] averaging.tail_start='2 steps' "
    "probes.stability_every='3 steps' probes.parameter_norms=true data.held_out=0.1 "
    "probes.token_error=true probes.layer_gradients=true probes.regularised_loss=true model.tied=false "
    "model.initial_scale=1.5 "
    "branches='[{name: tiny_lr, start: 2 steps, every: 2 steps, duration: 2 steps, lr: 0.001, strength: 0.1, "
    "keep_optimizer_state: true}]'"
)
MAIN = {
    "vision": VISION,
    "text": TEXT,
    "vision with an estimated Jacobian norm": f"{TINY_VISION} {QUIET} probes.jacobian_draws=2",
    "vision in micro-batches": f"{TINY_VISION} {QUIET} micro_batch_size=8",
    "text with clipping in micro-batches": f"{TINY_TEXT} {QUIET} model.attention=math optimizer.clip_norm=0.5 "
    "micro_batch_size=2",
    "text with replacement": f"{TINY_TEXT} {QUIET} model.attention=math data.sampling=with_replacement "
    "data.train_tokens=2000",
}
RESUMED = {
    "vision": f"{VISION} probes.curvature=null probes.jacobian_every=null",
    "text": TEXT,
    "rounded text": f"{TEXT} precision=bfloat16 precision.rounding=stochastic ",
}


def numerics() -> Iterator[tuple[str, RunConfig]]:
    """Every precision that a CPU can emulate, and every kind of decay, every optimizer with some."""
    vision = single(f"{TINY_VISION} {QUIET} averaging.ema=[] probes.jacobian_every=null duration='4 steps'")
    text = single(f"{TINY_TEXT} {QUIET} model.attention=math averaging.ema=[] duration='4 steps'")
    for precision in ("float32", "tf32", "bfloat16_autocast", "float16_autocast", "bfloat16"):
        for regime, base in (("vision", vision), ("text", text)):
            yield f"{regime} {precision}", changed(base, precision=option("precision", precision))
    for rounding in ("nearest", "stochastic", "kahan"):
        yield f"text {rounding}", changed(text, precision={"kind": "bfloat16", "rounding": rounding})
    optimizers = options("optimizer")
    for index, decay in enumerate(options("decay")):
        # The optimizers and their kernels in turn; where one does not go with this decay, the next.
        for optimizer in optimizers[index % len(optimizers) :] + optimizers:
            kernel = ("fused", "foreach")[index // len(optimizers) % 2]
            groups = {
                "optimizer": {**option("optimizer", optimizer), "lr": 0.01, "kernel": kernel, "clip_norm": 0.5},
                "decay": {**option("decay", decay), "strength": 0.1},
            }
            with contextlib.suppress(UserError):
                yield f"{optimizer} {decay} {kernel}", changed(text, **groups)
                break


def options(group: str) -> list[str]:
    return sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))


def option(group: str, name: str) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text())


def changed(config: RunConfig, **groups: dict[str, Any]) -> RunConfig:
    """The run with some groups exchanged; much faster than to compose it anew."""
    return build({**to_dict(config), **groups})


def experiments() -> Iterator[tuple[str, RunConfig]]:
    """Of every experiment at micro the first cell, a few steps of a tiny net, and those of a kind that no other has.

    Two that measure and branch alike, and are of one kind, are one run: what differs is how much, not what is called.
    """
    kinds = set()
    # The kinds of decay on text are those on images; to compose all of them again takes four seconds.
    for name in sorted(set(declared_experiments()) - {"decay_rules_under_training"}):
        plan, _ = make_plan([f"experiment={name}", "execution.progress=false"])  # the rest is for `placed`
        for cell in plan.cells:
            config = cell.config
            # Precisions, optimizers and kinds of decay are the matter of `numerics`.
            kind = (config.schedule.kind, getattr(config.schedule, "norm", None), config.model.kind, config.data.kind)
            measured = tuple(bool(value) for value in to_dict(config.probes).values())
            averaged = tuple(bool(value) for value in to_dict(config.averaging).values())
            whole = (*kind, measured, averaged, bool(config.branches), config.optimizer.kind, config.sphere_radius)
            if kind in kinds and (cell.index > 0 or whole in kinds):
                continue
            kinds |= {kind, whole}
            yield f"{name}:{cell.index}", cut(config)


STEPS = 4


def cut(config: RunConfig) -> RunConfig:
    """The same run, its every length shortened in proportion, with a tiny net on little data."""
    values = to_dict(config)
    data, model = values["data"], values["model"]
    images = "train_size" in data
    if images:
        data |= {"train_size": 16 * STEPS, "test_size": 32, "image_size": 32 if model["kind"] == "vgg" else 16}
        values["batch_size"] = 16
        model["width"] = 4
    else:
        data |= {"context": 8, "evaluation_windows": 16}
        values["batch_size"] = 4
        model |= {"width": 8, "heads": 2, "layers": 1, "attention": "math"}
    if values["micro_batch_size"] is not None:
        values["micro_batch_size"] = values["batch_size"] // 2
    number, unit = str(values["duration"]).split(" ", 1)
    factor = STEPS / float(re.sub(r"\D", "", number))
    values = _shortened(values, unit.rstrip("s"), factor)
    probes = values["probes"]
    probes |= {"evaluation_batch": 16, "log_every": "2 steps"}
    probes["evaluation_train_samples"] = probes["evaluation_train_samples"] and 16
    if images:
        values["averaging"]["reestimate_samples"] = 32
        probes["jacobian_per_class"] = 1
    else:
        probes["stability_windows"] = 4
    for name, most in (("per_class", 1), ("trace_draws", 2), ("top_steps", 2), ("similarity_draws", 2),
                       ("spectrum_steps", 2), ("spectrum_draws", 1)):  # fmt: skip
        if probes.get("curvature"):
            probes["curvature"][name] = min(probes["curvature"][name], most)
    return build(values)


def _shortened(values: Any, unit: str, factor: float) -> Any:
    if isinstance(values, dict):
        return {key: _shortened(value, unit, factor) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_shortened(value, unit, factor) for value in values]
    if isinstance(values, str) and (length := re.fullmatch(rf"([\d.]+)M? {unit}s?", values)):
        return f"{max(1, round(float(length[1]) * factor))} steps"
    return values


def single(words: str) -> RunConfig:
    return make_plan(shlex.split(words))[0].cells[0].config


def placed(config: RunConfig, device: str, results: Path, data: Path) -> RunConfig:
    """The run on a device, in a results folder of its own."""
    execution = dataclasses.replace(config.execution, device=device, results=str(results), threads=1)
    tracking = dataclasses.replace(config.tracking, mode="disabled")
    checkpoint = dataclasses.replace(config.checkpoint, final=False)
    return dataclasses.replace(
        config, execution=execution, tracking=tracking, checkpoint=checkpoint,
        data=dataclasses.replace(config.data, root=str(data)),
    )  # fmt: skip


def finish(config: RunConfig) -> Path:
    """Run it, after the run that it takes its learning rates from; the folder."""
    labels = Labels("pretend", "micro", "pretend")
    try:
        outcome = run(config, labels)
    except ReferenceMissingError:
        from weight_decay.training.schedule import reference_config

        finish(reference_config(config, config.schedule))
        outcome = run(config, labels)
    folder = folder_of(config)
    if outcome not in ("completed", "diverged", "skipped"):
        lines = (folder / "error.txt").read_text().strip().splitlines()
        raise AssertionError(
            f"{outcome}: {lines[-1][:300]} ... {[line for line in lines if 'weight_decay/' in line][-1]}"
        )
    return folder


# Its strengths follow from singular values, which LAPACK computes by another routine when called through the device: a
# few units in the last place apart.
NEARLY = {"spectral": 1e-6}


def difference(left: Path, right: Path, tolerance: float = 0.0) -> str | None:
    """The first number that differs between two runs or their branches by more than a share; None if none does."""
    if not tolerance and read_summary(left)["weights_sha256"] != read_summary(right)["weights_sha256"]:
        first = "the weights at the end differ"
    else:
        first = None
    for file in sorted(left.rglob("metrics.jsonl")):
        other = right / file.relative_to(left)
        lines = list(zip(read_metrics(file.parent), read_metrics(other.parent), strict=True))
        for a, b in lines:
            if a.keys() != b.keys():
                return f"{file.parent.name}: other metrics at step {a['step']}: {sorted(a.keys() ^ b.keys())}"
            for name in a:
                if a[name] != b[name] and not abs(a[name] - b[name]) <= tolerance * abs(a[name]):
                    return f"{file.parent.name}: {name} at step {a['step']}: {a[name]} and {b[name]}"
    return first


def interrupted(config: RunConfig, at: int) -> None:
    """Run it until it fails in step `at`, with a checkpoint after every step."""
    advance = Training.advance

    def failing(self: Training, observe: bool) -> None:
        if self.step == at:
            raise RuntimeError("as asked for")
        advance(self, observe)

    Training.advance = failing  # type: ignore[method-assign]
    try:
        assert run(config, Labels("pretend", "micro", "pretend")) == "failed"
    finally:
        Training.advance = advance  # type: ignore[method-assign]


def group(name: str) -> Iterator[tuple[str, RunConfig]]:
    if name in ("experiments", "numerics"):
        yield from {"experiments": experiments, "numerics": numerics}[name]()
    else:
        yield from ((title, single(words)) for title, words in {"main": MAIN, "resumed": RESUMED}[name].items())


def compare(title: str, config: RunConfig, results: Path, data: Path) -> str | None:
    """What goes wrong when the run is made on both devices."""
    try:
        on_cpu = finish(placed(config, "cpu", results / "cpu", data))
        on_device = placed(config, "auto", results / "pretend", data)
        if results.name == "resumed":
            often = dataclasses.replace(on_device.checkpoint, every_seconds=0.0)
            on_device = dataclasses.replace(on_device, checkpoint=often)
            interrupted(on_device, 5)
        folder = finish(on_device)
        if read_summary(folder)["device"] != pretend_device.NAME:
            return f"it ran on {read_summary(folder)['device']}"
        if results.name == "resumed" and (len(RESUMED_AT) != 1 or RESUMED_AT[0] < 4):
            return f"it went on from {RESUMED_AT}, not from the checkpoint at step 4 or 5"  # 4: it failed in a branch
        return difference(on_cpu, folder, max((NEARLY.get(word, 0.0) for word in title.split()), default=0.0))
    except Exception:
        return traceback.format_exc().strip().splitlines()[-1]
    finally:
        RESUMED_AT.clear()


RESUMED_AT: list[int] = []
"""The steps at which the runs, not their branches, of a comparison went on."""


def noting(resume: Callable[[Segment], bool]) -> Callable[[Segment], bool]:
    def noted(self: Segment) -> bool:
        went_on = resume(self)
        if went_on and self.course.first == 0:
            RESUMED_AT.append(self.training.step)
        return went_on

    return noted


def main() -> None:
    results, data = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    device = pretend_device.install()
    # An accelerator in all but its arithmetic, which is the CPU's; and the CPU that it is compared with likewise.
    like = dataclasses.replace(traits.KNOWN["cpu"], host=False, learning_rate_on_device=True)
    traits.KNOWN[device.type] = like
    traits.KNOWN["cpu"] = dataclasses.replace(like, host=True)
    Segment.resume = noting(Segment.resume)  # type: ignore[method-assign]
    write_fashion_mnist(data / "fashion_mnist")
    found = {
        f"{name}: {title}": compare(title, config, results / name, data)
        for name in sys.argv[3:]
        for title, config in group(name)
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
