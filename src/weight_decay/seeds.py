"""Separate random streams for separate purposes, all derived from a run's one seed.

Data order, initialisation and probes must not share a stream: otherwise measuring more often, or changing the model,
would change which data a run sees, and runs that differ only in λ would no longer be paired.
"""

from __future__ import annotations

import hashlib

import torch


def stream_seed(seed: int, purpose: str) -> int:
    """A 63-bit seed for one purpose ("data", "initialisation", "probes", ...)."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, purpose: str) -> torch.Generator:
    """A torch generator for one purpose. It draws on the CPU and its draws are moved: so every device sees the same."""
    return torch.Generator().manual_seed(stream_seed(seed, purpose))
