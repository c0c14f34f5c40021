"""Precision and recall of the divergence monitor on continuations of the paper's own curves (Figs 7c, 8, 2b).

The digitised curves are smoothed and given every few hundred steps; here each becomes a loss per step, with noise, from
the first step on. Where a curve leaves the axes of Fig 8 or 7c, a reader says "diverged", and what happens after it is
drawn: stays, climbs to some level, NaN. Runs that must pass: the paper's other curves as they are, with spikes of every
height and length that come back, with a slow rise in the middle as a large λ gives it, with an LR drop that ends it.
Images: the curves of Fig 2b, whose loss hovers, also with a jump to chance that stays, climbs or ends in NaN.

The seed is fixed; nothing is timed. Prints the step that is called on each of the paper's curves beside the reader's,
then precision, recall and how far the steps are apart over all draws.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections import defaultdict
from pathlib import Path

import numpy as np

from weight_decay.probes.divergence import DivergenceMonitor

CURVES = Path(__file__).resolve().parents[1] / "results" / "reference" / "paper_curves.csv"
TEXT_STEPS, TEXT_START, WARMUP = 50_000, 10.9, 400
EPOCH, EPOCHS = 390, 500
Points = tuple[np.ndarray, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=10, help="draws of every kind of continuation")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    paper_curves(np.random.default_rng(1))
    found: dict[str, list[tuple[int | None, int | None]]] = defaultdict(list)
    for _, lost, points in text_curves():
        kinds = ("stays", "climbs", "NaN") if lost else ("as it is", "spike", "slow rise")
        for kind in kinds:
            for _ in range(arguments.each):
                losses, reader = (continued if lost else healthy)(points, kind, rng)
                found[f"text, {kind}"].append((text_monitor().update(0, losses.tolist()), reader))
    for points in image_curves():
        for kind in ("as it is", "jump that stays", "jump that climbs", "jump to NaN", "jump that comes back"):
            for _ in range(max(1, arguments.each // 5)):
                losses, reader = image(points, kind, rng)
                found[f"images, {kind}"].append((image_monitor().update(0, losses.tolist()), reader))
    report(found)


def paper_curves(rng: np.random.Generator) -> None:
    """One line for each curve of Figs 7c and 8: the step at which a reader sees it leave the axes, and those called."""
    for name, lost, points in text_curves():
        kinds = ("stays", "climbs", "NaN") if lost else ("as it is",)
        steps = [(continued if lost else healthy)(points, kind, rng) for kind in kinds]
        called = [
            f"{kind} {text_monitor().update(0, losses.tolist())}"
            for kind, (losses, _) in zip(kinds, steps, strict=True)
        ]
        print(f"{name}: reader {steps[0][1]}; called: {', '.join(called)}")


def report(found: dict[str, list[tuple[int | None, int | None]]]) -> None:
    """One line a kind, and precision and recall of all."""
    right = wrong = missed = 0
    for kind, pairs in found.items():
        lost = [(step, reader) for step, reader in pairs if reader is not None]
        called = sum(step is not None for step, _ in pairs)
        away = [step - reader for step, reader in lost if step is not None]
        where = f"; step minus the reader's {min(away)} ... {max(away)}, median {np.median(away):.0f}" if away else ""
        print(f"{kind:32s} {len(pairs):4d} runs, {len(lost):4d} diverged, {called:4d} called so{where}")
        right += len(away)
        wrong += called - len(away)
        missed += len(lost) - len(away)
    print(f"precision {right / (right + wrong):.3f} ({wrong} called wrongly), ", end="")
    print(f"recall {right / (right + missed):.3f} ({missed} missed of {right + missed})")


# -- the monitors as a run at paper scale makes them ---------------------------------------------------------------


def text_monitor() -> DivergenceMonitor:
    """As configs/config.yaml has it, for 50,000 steps of text."""
    return DivergenceMonitor(0.5, TEXT_STEPS // 20, TEXT_STEPS // 20, 0.25, TEXT_STEPS // 20)


def image_monitor() -> DivergenceMonitor:
    """As configs/config.yaml has it, for 500 epochs of CIFAR-10."""
    return DivergenceMonitor(0.5, EPOCH * EPOCHS // 20, EPOCH * EPOCHS // 20)


# -- text ----------------------------------------------------------------------------------------------------------


def text_curves() -> list[tuple[str, bool, Points]]:
    """(name, whether it leaves the axes, points) of every training-loss curve of Figs 7c and 8."""
    curves: dict[tuple[str, ...], list[tuple[float, float]]] = defaultdict(list)
    for row in read():
        if row["figure"] in ("7c", "8") and row["metric"] == "train_loss":
            key = tuple(row[name] for name in ("figure", "lr", "weight_decay", "precision", "seed", "note"))
            curves[key].append((float(row["x"]), float(row["y"])))
    made = []
    for (figure, lr, strength, precision, seed, note), points in curves.items():
        x, y = np.array(points).T
        run = [f"Fig {figure}", f"decay {strength}", precision, f"seed {seed}" if seed else note]
        name = ", ".join(part for part in (*run, f"lr {lr}" if lr else "") if part)
        made.append((name, bool(x[-1] < 49_000), (x, y)))
    return made


def healthy(points: Points, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, None]:
    """A run that ended as the paper's did."""
    losses = along(points, TEXT_STEPS)
    if kind == "spike":
        for _ in range(rng.integers(1, 5)):
            losses += spike(TEXT_STEPS, 0.3, 7.0, rng)
    elif kind == "slow rise":
        middle, width = rng.uniform(0.25, 0.6) * TEXT_STEPS, rng.uniform(0.1, 0.25) * TEXT_STEPS
        losses += rng.uniform(0.1, 0.5) * np.exp(-(((np.arange(TEXT_STEPS) - middle) / width) ** 2))
    return noisy(losses, rng.uniform(0.01, 0.06), rng), None


def continued(points: Points, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """A run that left the axes, and how it may have gone on; also the step at which it left them."""
    left = int(points[0][-1])
    losses = along(points, TEXT_STEPS)
    after = np.arange(TEXT_STEPS - left)
    top = losses[left - 1]
    if kind == "stays":
        losses[left:] = top + rng.uniform(0.0, 0.15) + 0.03 * np.sin(after / rng.uniform(100, 1000))
    else:
        end = rng.uniform(4.0, 8.0)
        losses[left:] = end - (end - top) * np.exp(-after / rng.uniform(100, 2000))
    losses = noisy(losses, rng.uniform(0.01, 0.06), rng)
    if kind == "NaN":
        losses[left + rng.integers(1, 1500) :] = math.nan
    return losses, left


# -- images --------------------------------------------------------------------------------------------------------


def image_curves() -> list[Points]:
    """Steps and training loss of the curves of Fig 2b."""
    curves: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for row in read():
        if row["figure"] == "2b":
            curves[row["lr"], row["weight_decay"]].append((float(row["x"]) * EPOCH, float(row["y"])))
    return [(np.array(points).T[0], np.array(points).T[1]) for points in curves.values()]


def image(points: Points, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, int | None]:
    """A run on images; a jump goes to about chance, ln 10, at a random step of the large-learning-rate phase."""
    steps = EPOCH * EPOCHS
    losses = np.interp(np.arange(steps), *points)
    at = int(rng.uniform(0.1, 0.85) * steps)
    after = np.arange(steps - at)
    reader: int | None = None if kind in ("as it is", "jump that comes back") else at
    if kind == "jump that comes back":
        losses[at:] += rng.uniform(0.5, 4.0) * np.exp(-after / rng.uniform(50, 2000))
    elif reader is not None:
        losses[at:] = math.log(10) + 0.05
    if kind == "jump that climbs":
        losses[at:] += rng.uniform(1, 20) * (1 - np.exp(-after / rng.uniform(100, 5000)))
    losses = np.abs(noisy(losses, 0.0, rng) * (1 + 0.15 * rng.standard_normal(steps)))
    if kind == "jump to NaN":
        losses[at + rng.integers(0, 200) :] = math.nan
    return losses, reader


# -- losses per step -----------------------------------------------------------------------------------------------


def read() -> list[dict[str, str]]:
    """The rows of the digitised curves."""
    with CURVES.open() as file:
        return list(csv.DictReader(file))


def along(points: Points, steps: int) -> np.ndarray:
    """A curve at every step, with the fall before its first point, which lies outside the paper's axes."""
    x, y = points
    step = np.arange(steps, dtype=float)
    losses = np.interp(step, x, y)
    # A power law from the start to the first point.
    fall = step < x[0]
    losses[fall] = y[0] + (TEXT_START - y[0]) * (1 + step[fall] / WARMUP) ** -1.0 * (1 - step[fall] / x[0])
    return losses


def noisy(losses: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """With independent noise of every batch."""
    return losses + deviation * rng.standard_normal(len(losses))


def spike(steps: int, least: float, most: float, rng: np.random.Generator) -> np.ndarray:
    """Up within a few steps, then back, in up to a thousand."""
    at, rise, back = rng.uniform(0.06, 0.98) * steps, rng.uniform(2, 60), rng.uniform(10, 400)
    away = np.arange(steps) - at
    return rng.uniform(least, most) * np.where(
        away < 0, np.exp(np.minimum(away, 0) / rise), np.exp(-np.maximum(away, 0) / back)
    )


if __name__ == "__main__":
    main()
