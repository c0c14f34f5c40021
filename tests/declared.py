"""The declared experiments as plans, each composed once in a test process: composing takes longer than most tests."""

from __future__ import annotations

import functools

from weight_decay.cli import make_plan
from weight_decay.experiments.plan import Plan


@functools.cache
def plan(experiment: str, scale: str) -> Plan:
    """An experiment at a scale as its file declares it."""
    return make_plan([f"experiment={experiment}", f"scale={scale}"])[0]
