"""Cost of everything that watches stability beside training, at the paper's cadence, per step.

Attention-logit, activation and output-logit maxima of iterate and EMA every 200 steps on 16 windows; gradient maximum
and norm, update norm, rotation and lost updates with every log (10 steps); spike scores. Goal: together at most 3 % of
a step. The paper's step has 256 sequences, and what is measured here scales with the batch on one side only, so the
step is timed on a few sequences and scaled up: tokens per step cost alike.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from pathlib import Path

import torch

from _timed import timed
from training_step_language import COMMON, write_tokens
from weight_decay.cli import make_plan
from weight_decay.device.choose import choose_device
from weight_decay.probes.losses import SpikeScore
from weight_decay.tasks.choose import build_regime
from weight_decay.training.assemble import build_training
from weight_decay.training.measure import Measurements

GOAL = 0.03
PAPER_BATCH, PROBE_EVERY, LOG_EVERY = 256, 200, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2, help="sequences of the timed step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="float32")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_tokens(Path(folder))
        words = COMMON.replace("probes.stability_every=null", "probes.stability_every=200steps").split()
        words += f"data=nanogpt data.vocabulary=50304 data.context={arguments.context} model=gpt2_small".split()
        words += [f"model.layers={arguments.layers}", f"model.width={arguments.width}", f"data.root={folder}"]
        words += [f"batch_size={arguments.batch}", f"precision={arguments.precision}"]
        words = [word for word in words if not word.startswith("data.evaluation_windows")]
        config = make_plan([*words, "data.evaluation_windows=16"])[0].cells[0].config
        device = choose_device(config.execution, config.precision)
        regime = build_regime(config, device)
        training = build_training(config, regime, device)
        probe = functools.partial(Measurements(training, config.probes).probe, *regime.probes)
        training.advance(observe=True)
        probe()
        spikes = SpikeScore()
        spikes.update([3.0 + (i % 7) / 10 for i in range(1000)])
        plain, observed, probed, spiked = (
            min(timed(work, device) for _ in range(arguments.rounds))
            for work in (
                lambda: training.advance(observe=False),
                lambda: training.advance(observe=True),
                probe,
                lambda: spikes.update([3.0] * LOG_EVERY),
            )
        )
    step = plain * PAPER_BATCH / arguments.batch
    parts = {
        "maxima of attention logits, activations, output logits": probed / PROBE_EVERY,
        "gradient and update sizes": max(observed - plain, 0.0) / LOG_EVERY,
        "spike scores": 2 * spiked / LOG_EVERY,
    }
    print(
        f"{device.type}, {arguments.layers} layers of width {arguments.width}, context {arguments.context}: "
        f"{arguments.batch} sequences {plain:.3f} s, so a step of {PAPER_BATCH} about {step:.1f} s"
    )
    for name, seconds in parts.items():
        print(f"  {name:56s} {1e3 * seconds:9.2f} ms a step  {seconds / step:.5f}")
    ratio = sum(parts.values()) / step
    print(f"ratio {ratio:.4f} (goal: at most {GOAL}) {'met' if ratio <= GOAL else 'MISSED'}")


if __name__ == "__main__":
    main()
