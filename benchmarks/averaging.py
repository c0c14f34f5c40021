"""Cost of a list of four weight averages beside a training step: ResNet18 width 64, 32×32, batch 128.

Goal: at most 3 % of the step. Both are timed in this run, alternating, on the same model.
"""

from __future__ import annotations

import argparse
import statistics

import torch
import torch.nn.functional as F

from _timed import timed
from weight_decay.config.plain import build_dataclass
from weight_decay.config.registry import OPTIMIZERS
from weight_decay.experiments.catalog import read_option
from weight_decay.models.resnet import PreActResNet
from weight_decay.optim.averaging import Averages
from weight_decay.optim.decay import DecayRule, decay_groups
from weight_decay.optim.optimizers import DecayedOptimizer, Method

DECAYS = [0.9, 0.99, 0.998, 0.999]
GOAL = 0.03


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)

    torch.manual_seed(0)
    model = PreActResNet(width=arguments.width).to(device).to(memory_format=torch.channels_last)
    images = torch.randn(arguments.batch, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (arguments.batch,), device=device)
    groups = decay_groups(model.named_parameters(), [DecayRule(".*")], 0.01)
    settings = build_dataclass(OPTIMIZERS["sgd"], {**read_option("optimizer", "sgd"), "lr": 0.01})
    optimizer = DecayedOptimizer(groups, Method(settings, "decoupled"))
    averages = Averages(model, DECAYS)

    def step() -> None:
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    averages.update()
    steps, updates = [], []
    for _ in range(arguments.repeats):
        steps.append(timed(step, device))
        updates.append(timed(averages.update, device))
    ratio = statistics.median(updates) / statistics.median(steps)
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{device.type}, {torch.get_num_threads()} threads, {parameters:,} parameters, "
        f"batch {arguments.batch}: step {statistics.median(steps) * 1e3:.1f} ms, "
        f"{len(DECAYS)} averages {statistics.median(updates) * 1e3:.2f} ms"
    )
    print(f"ratio {ratio:.4f} (goal: at most {GOAL}) {'met' if ratio <= GOAL else 'MISSED'}")


if __name__ == "__main__":
    main()
