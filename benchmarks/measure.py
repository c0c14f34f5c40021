"""Overhead of `weight_decay.Measure` at its default cadence beside a step of GPT-2's width, without a Jacobian batch.

A measured step copies the weights before it and reads both; the 49 steps between cost a counter. Goal: at most 3 % of
a step on average. Both loops are timed in alternation, the fastest round of each counts.
"""

from __future__ import annotations

import argparse

import torch

import weight_decay
from _timed import timed
from weight_decay.models.gpt import GPT, Sizes

GOAL = 0.03


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2, help="sequences of a step; the paper's step has 256")
    parser.add_argument("--vocabulary", type=int, default=50304)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    width = arguments.width
    sizes = Sizes(arguments.layers, width // 64, width, arguments.context, arguments.vocabulary)
    model = GPT(sizes).to(device)
    model.initialise(torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(weight_decay.decay_groups(model, 0.1, "except_norms"), lr=1e-4, fused=True)
    tokens = torch.randint(0, arguments.vocabulary, (arguments.batch, arguments.context + 1), device=device)

    def step() -> None:
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    plain = min(timed(step, device) for _ in range(arguments.rounds))
    measure = weight_decay.Measure(model, optimizer, every=1)

    def measured() -> None:
        step()
        measure.step()

    measured()
    both = min(timed(measured, device) for _ in range(arguments.rounds))
    again = weight_decay.Measure(model, optimizer)  # the default cadence
    measure.close()
    each = again.every
    ratio = max(both - plain, 0.0) / each / plain
    print(
        f"{device.type}, {arguments.layers} layers of width {arguments.width}, {arguments.batch} sequences: a step "
        f"{1e3 * plain:.1f} ms, a measured one {1e3 * both:.1f} ms, one in {each} is measured"
    )
    print(f"ratio {ratio:.4f} (goal: at most {GOAL}) {'met' if ratio <= GOAL else 'MISSED'}")


if __name__ == "__main__":
    main()
