"""Which windows a token set has, in which seeded order, and which of them are held out; all without torch."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from weight_decay.data.splitmix import mix
from weight_decay.data.text.files import TokenSet
from weight_decay.errors import UserError

_ROUNDS = 6
# Numbers that keep the random streams of one seed apart from each other.
TRAINING_STREAM, VALIDATION_STREAM, HOLD_OUT_STREAM, SEEN_STREAM = 1, 2, 3, 4


class SeededPermutation:
    """A permutation of 0..size-1 in O(1) memory: a Feistel network with cycle walking.

    `size` is enough for a corpus of 9e9 tokens, of which a stored permutation would take gigabytes,
    and any part of the order can be computed on its own, so ranks and resumed runs agree exactly.
    """

    def __init__(self, size: int, seed: int, stream: int) -> None:
        self.size = size
        # Both halves have the same number of bits, so the network permutes at most 4 * size numbers.
        self._half = np.uint64(max(1, (max(size - 1, 1).bit_length() + 1) // 2))
        self._mask = np.uint64((1 << int(self._half)) - 1)
        words = np.random.SeedSequence([seed, stream, size]).generate_state(_ROUNDS, np.uint64)
        self._keys = [np.uint64(word) for word in words]

    def _shuffle_once(self, values: np.ndarray) -> np.ndarray:
        left, right = values >> self._half, values & self._mask
        for key in self._keys:
            left, right = right, left ^ (mix(right + key) & self._mask)
        return (left << self._half) | right

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """The elements at `positions` (any shape, each in 0..size-1) of the permuted order, int64."""
        values = self._shuffle_once(np.asarray(positions).astype(np.uint64))
        # Walking the cycle until the value is in range again keeps this a permutation of 0..size-1.
        while (outside := values >= self.size).any():
            values[outside] = self._shuffle_once(values[outside])
        return values.astype(np.int64)


class WindowIndex:
    """Numbers the windows of a token set: those that start anywhere, and the disjoint ones."""

    def __init__(self, token_set: TokenSet, context: int) -> None:
        whole = np.array([[0, len(token_set.tokens)]], dtype=np.int64)
        segments = whole if token_set.segments is None else token_set.segments
        lengths = segments[:, 1] - segments[:, 0]
        self._context = context
        self._segment_starts = segments[:, 0]
        self._ends_anywhere = np.cumsum(np.maximum(lengths - context, 0))
        self._ends_disjoint = np.cumsum(np.maximum(lengths - 1, 0) // context)
        self.anywhere = int(self._ends_anywhere[-1])
        self.disjoint = int(self._ends_disjoint[-1])
        if self.anywhere < 1:
            raise UserError(
                f"the {token_set.split} split of {token_set.name} has no {context + 1} successive tokens: "
                "choose a shorter context."
            )

    def _start(self, ordinals: np.ndarray, ends: np.ndarray, stride: int) -> np.ndarray:
        segment = np.searchsorted(ends, ordinals, side="right")
        before = np.where(segment > 0, ends[segment - 1], 0)
        return self._segment_starts[segment] + (ordinals - before) * stride

    def start_anywhere(self, ordinals: np.ndarray) -> np.ndarray:
        """Where the windows numbered `ordinals` (each below `anywhere`) start in the tokens, int64."""
        return self._start(ordinals, self._ends_anywhere, 1)

    def start_disjoint(self, ordinals: np.ndarray) -> np.ndarray:
        """Where the disjoint windows numbered `ordinals` (each below `disjoint`) start, int64."""
        return self._start(ordinals, self._ends_disjoint, self._context)


def hold_out_windows(token_set: TokenSet, fraction: float, block_tokens: int, seed: int) -> tuple[TokenSet, TokenSet]:
    """Split a token set into seen and unseen blocks of the same documents (the generalisation gap, Fig 19).

    The text is cut into blocks of `block_tokens`; a seeded `fraction` of them (at least one) is kept
    from training. No window of one part touches a token of the other. Unlike a split by document,
    this leaves both parts with the same distribution. Memory: 16 bytes per held-out block or less.

    Returns:
        (seen, unseen): token sets over the same tokens, with `split` "<split>-seen" and "<split>-unseen".

    Raises:
        UserError: `fraction` is not between 0 and 1, or the text is shorter than two blocks.
    """
    blocks = len(token_set.tokens) // max(block_tokens, 1)
    if token_set.segments is not None or not 0.0 < fraction < 1.0 or block_tokens < 2 or blocks < 2:
        raise UserError(
            f"cannot hold out a fraction {fraction} of {len(token_set.tokens):,} tokens in blocks of "
            f"{block_tokens}: the fraction must lie between 0 and 1, and the text must be whole and have at "
            "least two blocks."
        )
    count = min(max(round(fraction * blocks), 1), blocks - 1)
    chosen = np.sort(SeededPermutation(blocks, seed, HOLD_OUT_STREAM)(np.arange(count)))
    unseen = np.stack([chosen, chosen + 1], axis=1) * block_tokens
    edges = np.concatenate([[0], unseen.flatten(), [len(token_set.tokens)]])
    seen = edges.reshape(-1, 2)
    seen = seen[seen[:, 1] > seen[:, 0]]
    parts = []
    for label, segments in (("seen", seen), ("unseen", unseen)):
        said = f"{token_set.fingerprint} {label} {fraction!r} {block_tokens} {seed}"
        digest = hashlib.sha256(said.encode()).hexdigest()
        parts.append(replace(token_set, split=f"{token_set.split}-{label}", fingerprint=digest, segments=segments))
    return parts[0], parts[1]
