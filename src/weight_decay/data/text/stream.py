"""Token windows for the language model: training batches pure in (seed, step), and fixed validation windows.

A window is `context + 1` successive tokens; inputs are its first `context`, targets its last `context`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from weight_decay.data.prefetch import Prefetcher
from weight_decay.data.text.files import TokenSet
from weight_decay.data.text.windows import (
    SEEN_STREAM,
    TRAINING_STREAM,
    VALIDATION_STREAM,
    SeededPermutation,
    WindowIndex,
)
from weight_decay.device.distributed import Ranks
from weight_decay.device.memory import pinned, to_device
from weight_decay.errors import UserError

RESIDENT_BYTES = 1 << 30
"""A corpus up to this size is copied to the device; of a larger one, read from its memory map, a thread prepares the
next steps."""

_ORDER_CHUNK = 8192
_ALONE = Ranks()


def _narrow(tokens: np.ndarray) -> Tensor:
    # torch can index int16 everywhere but uint16 only in places; `_widen` takes the sign back out.
    tokens = np.array(tokens)
    return torch.from_numpy(tokens if tokens.itemsize == 1 else tokens.view(np.int16))


def _widen(windows: Tensor) -> tuple[Tensor, Tensor]:
    """Split narrow windows (B, context + 1) into int64 inputs and targets, both (B, context)."""
    pair = [part.to(torch.int64, memory_format=torch.contiguous_format) for part in (windows[:, :-1], windows[:, 1:])]
    if windows.dtype == torch.int16:
        pair = [part.bitwise_and_(0xFFFF) for part in pair]
    return pair[0], pair[1]


class TokenStream:
    """Training batches from a token set; `batch(step)` is a pure function of (seed, step).

    Args:
        token_set: where the windows come from.
        context: tokens per window.
        batch_size: windows per step over all ranks, a multiple of their number.
        seed: chooses the windows; the model, its precision and its decay have no part in it.
        device: where batches are returned.
        sampling: "with_replacement" draws every window's start independently and uniformly (the
            paper's); "one_pass" takes each disjoint window exactly once, in a seeded permutation.
        ranks: this process takes the rank-th of so many equal, contiguous parts of each batch.

    Attributes:
        windows: number of disjoint windows, which is what `one_pass` can give and one epoch means.

    Raises:
        UserError: the text is shorter than a window.
    """

    def __init__(
        self,
        token_set: TokenSet,
        context: int,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        sampling: Literal["with_replacement", "one_pass"],
        ranks: Ranks = _ALONE,
    ) -> None:
        self._tokens = token_set.tokens
        self._label = f"the {token_set.split} split of {token_set.name}"
        self.context, self._batch_size, self._seed, self._sampling = context, batch_size, seed, sampling
        self._device = torch.device(device)
        share = batch_size // ranks.count
        self._part = slice(ranks.rank * share, (ranks.rank + 1) * share)
        self._index = WindowIndex(token_set, context)
        self.windows = self._index.disjoint
        self._order = SeededPermutation(max(self.windows, 1), seed, TRAINING_STREAM)
        self._chunk: tuple[int, np.ndarray] | None = None
        self._resident = None
        if token_set.tokens.nbytes <= RESIDENT_BYTES:
            self._resident = _narrow(token_set.tokens).to(self._device)
            self._offsets = torch.arange(context + 1, device=self._device)
        self._read = Prefetcher[Tensor]()

    def check(self, steps: int) -> None:
        """Refuse more steps than the corpus has windows for.

        Raises:
            UserError: with one_pass, `steps` batches need more windows than there are.
        """
        if self._sampling == "one_pass" and steps * self._batch_size > self.windows:
            raise UserError(
                f"one pass over {self._label} has {self.windows:,} windows of {self.context} tokens, but "
                f"{steps:,} steps of {self._batch_size} need {steps * self._batch_size:,}: train at most "
                f"{self.windows // self._batch_size:,} steps, use more text, or sample with_replacement."
            )

    def samples(self, step: int) -> int:
        """Windows presented by all ranks in the first `step` steps."""
        return step * self._batch_size

    def epoch(self, step: int) -> float:
        """Passes' worth of windows in the first `step` steps."""
        return self.samples(step) / self.windows

    def starts(self, step: int) -> np.ndarray:
        """Where this rank's windows of step `step` begin, (batch_size / ranks,) int64."""
        return self.global_starts(step)[self._part]

    def global_starts(self, step: int) -> np.ndarray:
        """Where all ranks' windows of step `step` begin, (batch_size,) int64."""
        if self._sampling == "one_pass":
            self.check(step + 1)
            return self._one_pass_starts(step)
        # The counter's last word keeps this stream apart from any other that uses the same key.
        bits = np.random.Philox(key=np.array([self._seed, step], np.uint64), counter=[0, 0, 0, TRAINING_STREAM])
        ordinals = np.random.Generator(bits).integers(0, self._index.anywhere, size=self._batch_size)
        return self._index.start_anywhere(ordinals)

    def _one_pass_starts(self, step: int) -> np.ndarray:
        # The permutation costs the same for thousands of windows as for one batch, so it is computed
        # in chunks of steps; the last chunk is kept as a cache.
        steps = max(1, _ORDER_CHUNK // self._batch_size)
        number, within = divmod(step, steps)
        chunk = self._chunk
        if chunk is None or chunk[0] != number:
            first = number * steps * self._batch_size
            ordinals = np.arange(first, min(first + steps * self._batch_size, self.windows))
            chunk = self._chunk = (number, self._index.start_disjoint(self._order(ordinals)))
        return chunk[1][within * self._batch_size : (within + 1) * self._batch_size]

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of step `step` (from 0): int64, (batch_size / ranks, context), on the device.

        Raises:
            UserError: one_pass has no windows left for this step.
        """
        if self._resident is None:
            windows = self._read(step, self._read_windows)
            return _widen(windows.to(self._device, non_blocking=windows.is_pinned()))
        starts = to_device(torch.from_numpy(self.starts(step)), self._device)
        positions = (starts[:, None] + self._offsets).flatten()
        return _widen(self._resident.index_select(0, positions).view(-1, self.context + 1))

    def _read_windows(self, step: int) -> Tensor:
        windows = _narrow(self._tokens[self.starts(step)[:, None] + np.arange(self.context + 1)])
        return pinned(windows, self._device)


class FixedWindows:
    """Evaluation batches: the windows that begin at `starts` (N,), the same in every pass and run.

    Iterating gives (inputs, targets), int64, (batch_size, context) on the device; the last batch holds
    what remains, so a mean over all windows must weigh batches by their size.

    Args:
        token_set: where the windows come from.
        starts: where they begin, such as `validation_starts` and `seen_starts` choose them.
        context: tokens per window.
        batch_size: windows per batch.
        device: where batches are returned; the windows are kept there.
    """

    def __init__(
        self, token_set: TokenSet, starts: np.ndarray, context: int, batch_size: int, device: torch.device | str
    ) -> None:
        # Sorted, so that a memory map on a disk is read in one direction.
        self.starts = np.sort(starts)
        self.windows, self._batch_size = len(starts), batch_size
        self._windows = _narrow(token_set.tokens[self.starts[:, None] + np.arange(context + 1)]).to(device)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for first in range(0, self.windows, self._batch_size):
            yield _widen(self._windows[first : first + self._batch_size])


def validation_starts(token_set: TokenSet, context: int, windows: int, seed: int) -> np.ndarray:
    """Where a fixed, seeded choice of so many disjoint windows begins, int64 (windows,).

    Raises:
        UserError: the text has fewer disjoint windows than asked for.
    """
    index = WindowIndex(token_set, context)
    if not 1 <= windows <= index.disjoint:
        raise UserError(
            f"{windows:,} validation windows of {context} tokens were asked for, but the "
            f"{token_set.split} split of {token_set.name} has {index.disjoint:,}: "
            f"choose a number from 1 to {index.disjoint:,}."
        )
    return index.start_disjoint(SeededPermutation(index.disjoint, seed, VALIDATION_STREAM)(np.arange(windows)))


def seen_starts(stream: TokenStream, steps: int, windows: int, seed: int) -> np.ndarray:
    """Where a fixed, seeded choice of the windows begins that `stream` trains on in its first `steps` steps (Fig 19).

    Spread evenly over the steps, so that the share seen so far is the share of the run that is over; all of them
    are seen after its last step. At most `windows`, fewer for a run that trains on fewer.
    """
    presented = stream.samples(steps)
    chosen = np.sort(SeededPermutation(presented, seed, SEEN_STREAM)(np.arange(min(windows, presented))))
    pairs = zip(*divmod(chosen, stream.samples(1)), strict=True)
    return np.array([stream.global_starts(int(step))[slot] for step, slot in pairs])
