"""Seals: what a file says of its own content, so that a changed byte is found and never becomes a number.

A sealed JSON object carries `format` and `seal`, the SHA-256 of the rest in canonical form (sorted keys, no spaces).
An object with neither was written by an older version: it can be read, but nobody vouches for it ("not sealed").
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

FORMAT = 2
"""The format that has a seal; the one before had none."""
_OWN = ("format", "seal")


class BrokenSealError(Exception):
    """The content is not what was sealed; the message says what was found."""


def canonical(values: Any) -> bytes:
    """The one way to write `values` as JSON; ValueError for NaN and infinities."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with their seal."""
    # A round trip first: what is sealed must equal what will be read back (tuples become lists, keys text).
    plain = {**json.loads(canonical(without_seal(values))), "format": FORMAT}
    return {**without_seal(values), "format": FORMAT, "seal": hashlib.sha256(canonical(plain)).hexdigest()}


def without_seal(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` as they were before they were sealed."""
    return {name: value for name, value in values.items() if name not in _OWN}


def is_sealed(values: Mapping[str, Any]) -> bool:
    """Whether the seal is there and right; False if there never was one. BrokenSealError otherwise."""
    if not any(name in values for name in _OWN):
        return False
    if values.get("format") != FORMAT or "seal" not in values:
        raise BrokenSealError(f"format {values.get('format')!r} without a seal that fits it")
    try:
        found = hashlib.sha256(canonical({k: v for k, v in values.items() if k != "seal"})).hexdigest()
    except (ValueError, RecursionError) as error:
        raise BrokenSealError(f"its content cannot be sealed ({error})") from error
    if found != values["seal"]:
        raise BrokenSealError("its content does not match its seal")
    return True


def digest(content: bytes) -> dict[str, Any]:
    """Length and SHA-256 of a record, as summary.json and checkpoints keep them."""
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
