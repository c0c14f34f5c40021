"""Our training loop against a plain PyTorch loop over a `DataLoader`, same model, same data, side by side.

Goals on a CPU, ResNet18 of width 8 on 16×16 images, batch 128: at least 1.3 times the images per second, and a loop
overhead (all that is not forward, backward and optimizer step: data, averages, norms, logging) of at most 3 %.

The plain loop is what a tutorial writes: per-image transforms of torchvision, `DataLoader(shuffle=True)`, SGD of
`torch.optim`, the running loss read after every step. The loops take turns in short rounds in one process; the
ratios are medians over rounds, and on a CPU the process's own time is what counts.

    python benchmarks/training_step_vision.py                       # the goals, about a minute
    python benchmarks/training_step_vision.py --width 64 --size 32  # for a GPU
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from _timed import clock_of, timed
from weight_decay.cli import make_plan
from weight_decay.config.groups import ImageData
from weight_decay.config.run import RunConfig
from weight_decay.device.choose import choose_device
from weight_decay.tasks.choose import build_regime
from weight_decay.tasks.over_training import load_sets
from weight_decay.tasks.regime import Regime
from weight_decay.training.assemble import build_training, divergence_monitor
from weight_decay.training.build import build_model
from weight_decay.training.checkpoint import Owner
from weight_decay.training.course import Cadence, Course, Every, Origin
from weight_decay.training.loop import Training
from weight_decay.training.record import Progress, Recorder, Telling
from weight_decay.training.stretch import Segment

SPEED_GOAL, OVERHEAD_GOAL = 1.3, 0.03


class PlainImages(Dataset[tuple[Tensor, int]]):
    """The training set as a tutorial would wrap it: one PIL image at a time through torchvision's transforms."""

    def __init__(self, data: ImageData) -> None:
        train, _ = load_sets(data)
        self.images = [Image.fromarray(image) for image in train.images[range(len(train))]]
        self.labels = train.labels.tolist()
        mean, std = (tuple(values / 255) for values in train.channel_statistics())
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def plain_loop(config: RunConfig, device: torch.device) -> Callable[[int], None]:
    assert isinstance(config.data, ImageData)
    model = build_model(config).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=config.optimizer.lr, weight_decay=config.decay.strength)
    loader = DataLoader(PlainImages(config.data), config.batch_size, shuffle=True, drop_last=True)

    def endless() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from loader

    batches = endless()
    running = 0.0

    def steps(count: int) -> None:
        nonlocal running
        for _ in range(count):
            images, labels = (tensor.to(device) for tensor in next(batches))
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            running += loss.item()

    return steps


def our_loop(config: RunConfig, regime: Regime, training: Training, folder: Path, log: int) -> Callable[[int], None]:
    """Steps of the real loop with the real log; no evaluation, which the plain loop does not do either."""
    never = Every(sys.maxsize, 1, also_last=False)
    recorder = Recorder(folder, None)

    def steps(count: int) -> None:
        origin = Origin(Owner("0" * 12, "main"), "", "", {})
        course = Course(folder, training.step, training.step + count, origin)
        monitor = divergence_monitor(config, regime.clock, course.first, course.last)
        telling = Telling(recorder, Progress(count, "", shown=False), print)
        segment = Segment(config, training, course, Cadence(log, never, None, ()), monitor, telling, None)
        segment.train(lambda: False)

    return steps


class Watch:
    """Adds up the time spent in what it wraps: forward, backward and optimizer step of our loop."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.total, self._clock = 0.0, clock

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, timed."""

        def timed(*arguments: Any, **named: Any) -> Any:
            started = self._clock()
            result = call(*arguments, **named)
            self.total += self._clock() - started
            return result

        return timed

    def watch(self, training: Training) -> None:
        """Put the watch on the calls that a step cannot do without."""
        training.forward = self.wrap(training.forward)
        F.cross_entropy = self.wrap(F.cross_entropy)
        training.optimizer.step = self.wrap(training.optimizer.step)  # type: ignore[method-assign]
        training.optimizer.zero_grad = self.wrap(training.optimizer.zero_grad)  # type: ignore[method-assign]
        torch.Tensor.backward = self.wrap(torch.Tensor.backward)  # type: ignore[method-assign]


def seconds(work: Callable[[int], None], count: int, device: torch.device) -> float:
    """Seconds a step."""
    return timed(functools.partial(work, count), device) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20, help="per round and loop, and between two logs")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = [f"model.width={arguments.width}", f"data.image_size={arguments.size}", f"data.root={folder}"]
        settings += ["probes.jacobian_every=null"]
        settings += [f"batch_size={arguments.batch}", f"probes.log_every={arguments.steps} steps"]
        config = (
            make_plan([*settings, "optimizer.lr=0.1", "decay.strength=0.01", "tracking=disabled"])[0].cells[0].config
        )
        torch.set_num_threads(config.execution.threads)
        device = choose_device(config.execution, config.precision)
        regime = build_regime(config, device)
        training = build_training(config, regime, device)
        loops = {
            "plain": plain_loop(config, device),
            "ours": our_loop(config, regime, training, folder, arguments.steps),
        }
        for work in loops.values():
            work(2)
        times: dict[str, list[float]] = {name: [] for name in loops}
        for _ in range(arguments.rounds):
            for name, work in loops.items():
                times[name].append(seconds(work, arguments.steps, device))
        overheads = []
        if device.type == "cpu":  # on a GPU the calls return before the work is done
            watch = Watch(clock_of(device))
            watch.watch(training)
            for _ in range(arguments.rounds):
                watch.total = 0.0
                whole = seconds(loops["ours"], arguments.steps, device)
                overheads.append(1 - watch.total / (whole * arguments.steps))
    for name, values in times.items():
        each = statistics.median(values)
        print(f"{name:5s} {1000 * each:7.2f} ms a step, {arguments.batch / each:8.0f} images/s")
    speed = statistics.median(plain / ours for plain, ours in zip(times["plain"], times["ours"], strict=True))
    told = f"{speed:.2f} times (goal: at least {SPEED_GOAL})"
    print(f"images/s against the plain loop: {told} {verdict(speed >= SPEED_GOAL)}")
    if overheads:
        overhead = statistics.median(overheads)
        told = f"{100 * overhead:.1f} % of the step (goal: at most {100 * OVERHEAD_GOAL:g} %)"
        print(f"loop overhead: {told} {verdict(overhead <= OVERHEAD_GOAL)}")


def verdict(met: bool) -> str:
    return "met" if met else "MISSED"


if __name__ == "__main__":
    main()
