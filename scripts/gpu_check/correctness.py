"""Does it compute what it should: runs beside the CPU's, a run that was killed, both regimes' main jobs."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import torch
from sizes import Sizes
from table import Row

import pretend_runs
from tiny_runs import QUIET, read_metrics, read_summary
from weight_decay.cli import make_plan
from weight_decay.config.run import RunConfig
from weight_decay.device.choose import device_description
from weight_decay.device.traits import traits

TOLERANCE = 0.03
"""Relative difference of losses after a few steps that rounding explains; a wrong formula gives more."""


def runs(device: torch.device, sizes: Sizes, folder: Path) -> list[Row]:
    """What the tests run on a pretend device: on this one, with every loss beside the CPU's."""
    pretend_runs.write_fashion_mnist(folder / "data" / "fashion_mnist")
    rows = []
    for name in ("main", "numerics", "experiments"):
        worst, failed, count = 0.0, [], 0
        for title, config in pretend_runs.group(name):
            if sizes.job_steps < 10 and count == 1:
                break
            count += 1
            try:
                on_cpu = pretend_runs.finish(pretend_runs.placed(config, "cpu", folder / name / "cpu", folder / "data"))
                here = pretend_runs.finish(pretend_runs.placed(config, "auto", folder / name / "here", folder / "data"))
                worst = max(worst, deviation(on_cpu, here))
            except Exception as error:
                failed.append(f"{title} ({str(error).splitlines()[0][:80]})")
        what = f"{name}: runs of {count} that crash{': ' + '; '.join(failed[:3]) if failed else ''}"
        rows += [
            Row(what, len(failed), "runs", "<= 0"),
            Row(f"{name}: largest relative difference of a loss from the CPU's", worst, "", f"<= {TOLERANCE}"),
        ]
    return rows


def deviation(left: Path, right: Path) -> float:
    """The largest relative difference of a recorded loss between two runs, branches included."""
    worst = 0.0
    for file in sorted(left.rglob("metrics.jsonl")):
        other = right / file.relative_to(left)
        for a, b in zip(read_metrics(file.parent), read_metrics(other.parent), strict=True):
            for name in a:
                if name.endswith("/loss") and a[name] is not None and b[name] is not None:
                    worst = max(worst, abs(a[name] - b[name]) / max(abs(a[name]), 1e-6))
    return worst


def resume(device: torch.device, sizes: Sizes, folder: Path) -> list[Row]:
    """A run that was killed and went on, beside one that was not: bitwise, or how close; with and without flags."""
    rows = []
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        torch.backends.cudnn.benchmark = False
        for title in ("vision", "text"):
            config = pretend_runs.single(pretend_runs.RESUMED[title])
            where = folder / f"{title}-{deterministic}"
            whole = pretend_runs.finish(placed(config, where / "whole", folder))
            cut = placed(config, where / "cut", folder)
            often = dataclasses.replace(cut.checkpoint, every_seconds=0.0)
            cut = dataclasses.replace(cut, checkpoint=often)
            pretend_runs.interrupted(cut, 5)
            again = pretend_runs.finish(cut)
            same = read_summary(whole)["weights_sha256"] == read_summary(again)["weights_sha256"]
            flags = "deterministic algorithms" if deterministic else "no flags"
            rows += [
                Row(f"{title}, {flags}: bitwise equal weights (1: yes)", float(same), ""),
                Row(
                    f"{title}, {flags}: largest relative difference of a loss", deviation(whole, again), "",
                    f"<= {TOLERANCE}",
                ),
            ]  # fmt: skip
    torch.use_deterministic_algorithms(False)
    return rows


def placed(config: RunConfig, results: Path, folder: Path) -> RunConfig:
    """The run on this machine's accelerator, or where there is none on the CPU."""
    return pretend_runs.placed(config, "auto", results, folder / "data")


def main_jobs(device: torch.device, sizes: Sizes, folder: Path) -> list[Row]:
    """Both regimes' main job for some hundred steps, with logs, evaluations, probes and averages; memory peaks."""
    from speed import write_tokens

    (folder / "data" / "nanogpt").mkdir(parents=True)
    write_tokens(folder / "data" / "nanogpt")
    context, batch = sizes.contexts[0]
    language = sizes.language.format(context=context, batch=batch)
    half = "bfloat16_autocast"
    jobs = {
        "vision": f"{sizes.vision} optimizer.lr=0.1 decay.strength=0.0005 precision={half}",
        "language": f"{language} optimizer=adamw decay=decoupled_except_norms decay.strength=0.1 averaging=language "
        f"probes=language schedule=warmup_cosine schedule.warmup=3% precision={half} data.evaluation_windows=64 "
        "probes.evaluation_batch=16 probes.evaluation_train_samples=64",
    }
    rows = []
    for name, words in jobs.items():
        module: Any = torch if traits(device).host else torch.get_device_module(device)
        if hasattr(module, "reset_peak_memory_stats"):
            module.reset_peak_memory_stats()
        length = f"'duration={sizes.job_steps} steps' 'probes.log_every={max(1, sizes.job_steps // 10)} steps'"
        every = f"'probes.evaluate_every={max(1, sizes.job_steps // 3)} steps'"
        probes = "probes.jacobian_every=50% probes.jacobian_per_class=2" if name == "vision" else ""
        config = make_plan(shlex.split(f"{words} {QUIET} {length} {every} {probes} execution.device=auto"))[0]
        done = pretend_runs.finish(placed(config.cells[0].config, folder / name, folder))
        told, lines = read_summary(done), [line for line in read_metrics(done) if "batch/loss" in line]
        rows += [
            Row(f"{name}: completed on {device_description(device)}", told["step"], "steps",
                "it completes there", told["status"] == "completed" and told["device"] == device_description(device)),
            Row(f"{name}: last logged loss as a share of the first", lines[-1]["batch/loss"] / lines[0]["batch/loss"],
                "", sizes.goal("<= 1")),
            Row(f"{name}: seconds, evaluations and probes included", told["seconds"], "s"),
        ]  # fmt: skip
        if hasattr(module, "max_memory_allocated"):
            rows.append(Row(f"{name}: peak memory", module.max_memory_allocated() / 2**30, "GiB"))
    return rows
