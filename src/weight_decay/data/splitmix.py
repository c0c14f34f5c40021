"""Random draws by integer hashing alone (splitmix64): the same bits on every machine, in any order and chunking."""

from __future__ import annotations

import numpy as np

GAMMA = 0x9E3779B97F4A7C15
"""The generator's step; its multiples modulo 2^64 spread small numbers over all bits."""


def mix(words: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: a bijection of uint64 words that scatters neighbouring counters."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def keys(seed: int, numbers: np.ndarray) -> np.ndarray:
    """What `draw` takes for each of these numbers, uint64: a hash of (seed, number)."""
    start = mix(np.array([seed], dtype=np.uint64) + np.uint64(GAMMA))
    return mix(start ^ mix(numbers.astype(np.uint64) * np.uint64(GAMMA)))


def draw(key: np.ndarray, number: int) -> np.ndarray:
    """Draw `number` (from 0) of each key: 64 hashed bits."""
    return mix(key + np.uint64((number + 1) * GAMMA % 2**64))
