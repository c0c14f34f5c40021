"""Run folders made up by formula, in the exact format of real ones, so that tests know every number."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OVER_TRAINING = {
    # (η, λ): iterate's error before the drop, EMA's there, final; ‖J‖² of the EMA before the drop, final; ‖w‖
    (0.3, 0.015): (0.394, 0.224, 0.237, 92.0, 111.0, 20.0),
    (0.3, 0.0): (0.323, 0.312, 0.313, 218.0, 224.0, 41.0),
    (0.02, 0.015): (0.732, 0.719, 0.720, 563.0, 588.0, 30.0),
    (0.02, 0.0): (0.743, 0.733, 0.736, 623.0, 657.0, 36.0),
}
UNDER_TRAINING = {
    # λ: loss in the middle, final loss, final loss of the EMA, final ‖w‖
    0.0: (1.693, 1.526, 1.516, 321.0),
    0.05: (1.734, 1.510, 1.489, 151.0),
}
REPLAY = {"foreach": 0.0, "fused": 0.85, "nearest": 0.86, "stochastic": 1.001, "kahan": 0.9999}
"""Share of float32's decay that each arithmetic keeps."""
SEED_SHIFT = 0.004
"""Seed s moves every error and loss by s times this: paired differences stay exact."""


@dataclass
class Run:
    """One made-up run: what goes into its folder."""

    coordinates: dict[str, Any]
    regime: str
    rows: list[dict[str, Any]]
    data: str = "procedural"
    scale: str = "micro"
    status: str = "completed"
    extra: dict[str, Any] = field(default_factory=dict)
    branches: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def run_id(self) -> str:
        return hashlib.sha256(json.dumps([self.coordinates, self.data, self.scale]).encode()).hexdigest()[:12]


def write_run(results: Path, run: Run) -> dict[str, Any]:
    """Write the folder of a run; returns its cell for the experiment file."""
    name = f"{run.regime}-{run.run_id}"
    folder = results / "runs" / name
    summary = {
        "run_id": run.run_id,
        "folder": name,
        "status": run.status,
        "divergence_step": run.rows[-1]["step"] if run.status == "diverged" else None,
        "seed": run.coordinates["seed"],
        "scale": run.scale,
        "data": {
            "name": run.data,
            "fingerprint": "0f" * 8,
            "split": {"train": "first 2048", "test": "next 1000"},
        },
        "regime": run.regime,
        "git_commit": "c0ffee1",
        "versions": {"torch": "2.9.0"},
        "device": "cpu",
        "seconds": 41.5,
        "parameters": 176_000,
        "error": None,
        **run.extra,
    }
    write_records(folder, summary, run.rows)
    for branch, rows in run.branches.items():
        start = {"status": "completed", "start_step": int(branch.rsplit("-", 1)[1])}
        write_records(folder / "branches" / branch, {**summary, **start}, rows)
    return {"run_id": run.run_id, "folder": name, "coordinates": run.coordinates}


def write_records(folder: Path, summary: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    final: dict[str, Any] = {}
    for row in rows:
        final.update({name: value for name, value in row.items() if name not in ("step", "epoch", "samples")})
    (folder / "config.yaml").write_text("scale: micro\n", encoding="utf-8")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "summary.json").write_text(json.dumps({**summary, "final": final}), encoding="utf-8")


def write_experiment(
    results: Path, name: str, cells: list[dict[str, Any]], regime: str, scale: str = "micro", **changes: Any
) -> Path:
    """Write results/experiments/<name>-<scale>.json."""
    record = {
        "experiment": name,
        "scale": scale,
        "title": name.replace("_", " "),
        "figure": "2",
        "regime": regime,
        "data": "procedural",
        "command": f"weight-decay -m experiment={name} scale={scale}",
        "cells": cells,
        **changes,
    }
    path = results / "experiments" / f"{name}-{scale}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record), encoding="utf-8")
    return path


def over_training_run(lr: float, decay: float, seed: int = 0, **changes: Any) -> Run:
    """960 steps, evaluated every 40; the learning rate drops after step 480. EMA and ‖J‖ as in the table."""
    before, ema_before, final, jacobian_before, jacobian_final, norm = OVER_TRAINING[lr, decay]
    shift = SEED_SHIFT * seed
    rows: list[dict[str, Any]] = []
    for step in range(0, 961, 40):
        large = step <= 480
        start = math.exp(-step / 90)
        wobble = 0.02 * math.sin(step * (1 + lr)) if large and 0 < step < 480 else 0.0
        settle = 0.0 if large else 1 - math.exp(-(step - 480) / 40)
        last = step == 960
        row = {
            "step": step,
            "epoch": step / 16,
            "samples": step * 128,
            "lr": lr if large else 2e-3,
            "test/error": _blend(0.9, before, start) + wobble,
            "ema/test/error": _blend(0.9, ema_before, start),
            "train/loss": _blend(2.3, 0.4 if decay > 0 and lr > 0.1 else 0.02, start),
            "jacobian/mean_square": _blend(900.0, 1.3 * jacobian_before, start),
            "ema/jacobian/mean_square": _blend(900.0, jacobian_before, start),
            "weights/norm": _blend(28.0, norm, math.exp(-step / 300)),
            "time/seconds": step * 0.04,
        }
        if step == 480:
            row |= {
                "test/error": before,
                "ema/test/error": ema_before,
                "ema/jacobian/mean_square": jacobian_before,
            }
        if not large:
            for name, value in (("test/error", before), ("ema/test/error", ema_before)):
                row[name] = final if last else value + (final - value) * settle
            row["train/loss"] = _blend(row["train/loss"], 0.01, 1 - settle)
            for name, value in (("jacobian/mean_square", 1.3), ("ema/jacobian/mean_square", 1.0)):
                row[name] = jacobian_final if last else _blend(jacobian_before * value, jacobian_final, 1 - settle)
        for name in ("test/error", "ema/test/error"):
            row[name] += shift
        rows.append(row)
    rows[-1]["weights/norm"] = norm
    return Run(_coordinates(lr, decay, seed), "over_training", rows, **changes)


def under_training_run(decay: float, seed: int = 0, steps: int = 2000, **changes: Any) -> Run:
    """Validation loss at `middle` from 45 % to 55 % of the run, then down to the final value."""
    middle, final, ema_final, norm = UNDER_TRAINING[decay]
    rows: list[dict[str, Any]] = []
    for step in range(0, steps + 1, steps // 50):
        progress = step / steps
        rate = 1e-2 * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))
        weights = 45 + (norm - 45) * (1 - math.exp(-4 * progress)) / (1 - math.exp(-4))
        if progress < 0.45:
            loss = middle + 3.8 * math.exp(-step / (0.04 * steps))
        else:
            loss = middle if progress <= 0.55 else middle + (final - middle) * (progress - 0.55) / 0.45
        ema = loss - (middle - ema_final) * 0.2 if progress < 1 else ema_final
        rows.append(
            {
                "step": step,
                "epoch": progress,
                "samples": step * 8,
                "lr": rate,
                "val/loss": loss + SEED_SHIFT * seed,
                "batch/loss": loss + SEED_SHIFT * seed,
                "ema/val/loss": ema + SEED_SHIFT * seed,
                "effective_lr/adamw": rate / weights,
                "weights/norm": weights,
            }
        )
    data = changes.pop("data", "synthetic_text")
    return Run(_coordinates(1e-2, decay, seed), "under_training", rows, data=data, **changes)


def write_demo(results: Path, seeds: tuple[int, ...] = (0,)) -> None:
    """The demo's three experiments, complete."""
    over = [write_run(results, over_training_run(lr, decay, seed)) for lr, decay in OVER_TRAINING for seed in seeds]
    write_experiment(results, "demo_over_training", over, "over_training")
    under = [write_run(results, under_training_run(decay, seed)) for decay in UNDER_TRAINING for seed in seeds]
    write_experiment(results, "demo_under_training", under, "under_training", data="python_text", figure="6")
    replays = [write_run(results, replay_run(seed)) for seed in seeds]
    write_experiment(results, "bfloat16_replay", replays, "under_training", data="synthetic_text", figure="ours")


def replay_run(seed: int = 0) -> Run:
    """A run of 300 steps and what its gradients did in every arithmetic of REPLAY."""
    row = {"step": 300, "epoch": 0.03, "samples": 2400, "val/loss": 2.0}
    row |= {f"replay/{name}/kept_0.05": kept for name, kept in REPLAY.items()}
    return Run({"seed": seed}, "under_training", [row], data="synthetic_text")


def _blend(start: float, end: float, weight: float) -> float:
    return weight * start + (1 - weight) * end


def _coordinates(lr: float, decay: float, seed: int) -> dict[str, Any]:
    return {"optimizer.lr": lr, "decay.strength": decay, "seed": seed}


RATES, DECAYS, SIZES = (0.05, 0.1, 0.2), (0.0, 0.005, 0.01, 0.02), (512, 2048, 8192)


def write_vision_suite(results: Path, seeds: tuple[int, ...] = (0, 1)) -> None:
    """The vision experiments in small, with laws that tests know.

    Grid: EMA error .2 + |log10(ηλ / 1e-3)| / 10 and ‖J‖² .1 / (ηλ + 1e-4), functions of the product alone.
    Size: error .5 - .1 log10(size / 512), .04 less with λ = .01, .02 less with λ = .02 (but .05 at 8192).
    """
    grid = [_grid_run(lr, decay, seed) for lr in RATES for decay in DECAYS for seed in seeds]
    sizes = [_size_run(size, decay, seed) for size in SIZES for decay in (0.0, 0.01, 0.02) for seed in seeds]
    epochs = [over_training_run(lr, decay, seed) for lr, decay in OVER_TRAINING for seed in seeds]
    ball = [_grid_run(lr, 0.01 * lr, seed, data="sphere") for lr in (1e-3, 3e-3, 1e-2) for seed in seeds]
    tuned = []
    for lr in RATES:
        run = _grid_run(lr, 0.0125, 0, data="finetune")
        for row in run.rows[:-1]:
            start = row["step"]
            run.branches[f"finetune-{start:09d}"] = [{**run.rows[-1], "step": start + 100, "epoch": start / 16 + 6.25}]
        tuned.append(run)
    curved = [_curved_run(lr, decay, seed) for lr, decay in OVER_TRAINING for seed in seeds]
    suite = {
        "fig01_cifar5m_size": sizes,
        "fig02_cifar10": epochs,
        "fig02_real_images": epochs,
        "fig02d_tiny_imagenet": epochs,
        "fig03_grid_tiny_imagenet": grid,
        "fig05_finetune": tuned,
        "fig10_grid_cifar10": grid,
        "fig11a_vgg": epochs,
        "fig13_similarity": curved[:2],
        "fig15_sphere": ball,
        "fig16_spectra": curved,
        "tab02_ensemble": curved,
    }
    for name, runs in suite.items():
        write_experiment(results, name, [write_run(results, run) for run in runs], "over_training", figure=name[3:5])


def _grid_run(lr: float, decay: float, seed: int, data: str = "procedural") -> Run:
    product = lr * decay
    error = 0.2 + abs(math.log10(max(product, 1e-5) / 1e-3)) / 10 + SEED_SHIFT * seed
    rows: list[dict[str, Any]] = []
    for step in range(0, 961, 160):
        left = math.exp(-step / 150)
        row = {
            "step": step,
            "epoch": step / 16,
            "samples": step * 128,
            "lr": lr,
            "noise/scale": 0.05 + 20 * product,
        }
        for prefix, worse in (("", 1.3), ("ema/", 1.0)):
            row[f"{prefix}test/error"] = _blend(0.9, worse * error, left)
            row[f"{prefix}train/loss"] = _blend(2.3, worse * (0.01 + 50 * product), left)
            row[f"{prefix}jacobian/mean_square"] = _blend(900.0, worse * 0.1 / (product + 1e-4), left)
        rows.append({**row, "weights/norm": _blend(74.0, 20.0, left)})
    rows[-1] |= {"ema/test/error": error, "ema/jacobian/mean_square": 0.1 / (product + 1e-4)}
    return Run(_coordinates(lr, decay, seed), "over_training", rows, data=data)


SPECTRUM = {1e-9: 0.9, 1.0: 0.06, 100.0: 0.04}
"""Eigenvalues and their weights of the noise in the large-rate phase; decoupled they are twice as large."""


def _curved_run(lr: float, decay: float, seed: int) -> Run:
    """A grid run with a drop of the rate at half-time, and curvature and ensemble measured there and at the end."""
    run = _grid_run(lr, decay, seed, data="curved")
    for row in run.rows[3:]:
        row["lr"] = lr if row["step"] == 480 else 1e-3
        scale = 1.0 if row["step"] == 480 else 1e-3
        for factor, kind in ((1.0, "noise"), (2.0, "decoupled")):
            for k, (node, weight) in enumerate(SPECTRUM.items()):
                row[f"spectrum/{kind}/node_{k:03d}"] = scale * factor * node
                row[f"spectrum/{kind}/weight_{k:03d}"] = weight
        for pair, value in (("hessian_noise", 0.5), ("gauss_newton_noise", 0.8), ("hessian_gauss_newton", 0.6)):
            row |= {f"similarity/{pair}": value + SEED_SHIFT * seed, f"similarity/{pair}_error": 0.01}
        row |= {"ensemble/test/error": 0.25, "ensemble/total_variation": 0.1, "ensemble/members": 4}
    return run


def _size_run(size: int, decay: float, seed: int) -> Run:
    gain = {0.0: 0.0, 0.01: 0.04, 0.02: 0.05 if size == 8192 else 0.02}[decay]
    error = 0.5 - 0.1 * math.log10(size / 512) - gain + SEED_SHIFT * seed
    row = {"step": 960, "epoch": 122_880 / size, "samples": 122_880, "lr": 2e-3}
    row |= {"test/error": error, "train/error": max(0.0, 0.1 * math.log10(size / 512) + decay)}
    return Run({"data.train_size": size, "decay.strength": decay, "seed": seed}, "over_training", [row])
