"""Seeds of an experiment: those its file names, or those asked for with `seeds=`, which keep the experiment's name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from weight_decay.errors import UserError

MOST = 10_000


def read_seeds(given: Any) -> list[int] | None:
    """`3`, `[0, 4]` or `0..9` (both ends included) as a list; None for the experiment's own. UserError otherwise."""
    if given is None:
        return None
    span = re.fullmatch(r"(\d+)\.\.(\d+)", given) if isinstance(given, str) else None
    if span is not None:
        first, last = int(span[1]), int(span[2])
        if first <= last < first + MOST:
            return list(range(first, last + 1))
    seeds = given if isinstance(given, list) else [given]
    whole = all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"seeds: must be like 0..9, [0,1,2] or 3, each seed once, got {given!r}.")
    return list(seeds)


def with_seeds(grid: Sequence[Mapping[str, Sequence[Any]]], seeds: list[int] | None) -> list[dict[str, Sequence[Any]]]:
    """The grid at these seeds: the seed axis of every block replaced, or added where a block has none.

    Blocks that differ only in their seeds become one, also where `data.seed` is written out beside the seed.
    """
    if seeds is None:
        return [dict(block) for block in grid]
    blocks: list[dict[str, Sequence[Any]]] = []
    for block in grid:
        new = {key: values for key, values in block.items() if key not in ("seed", "data.seed")}
        expanded = (
            [{"seed": [seed], "data.seed": [seed], **new} for seed in seeds]
            if "data.seed" in block
            else [{**new, "seed": seeds}]
        )
        blocks += [one for one in expanded if one not in blocks]
    return blocks
