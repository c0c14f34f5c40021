"""The embedded synthetic text: a pure function of (seed, document), the same bytes everywhere, of known entropy."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from text_helpers import load_tokens
from weight_decay.data.text.synthetic_text import END_OF_TEXT, entropy_bounds, synthetic_documents


def test_a_document_does_not_depend_on_what_it_is_made_with() -> None:
    text, lengths = synthetic_documents(3, np.arange(40))
    starts = np.concatenate([[0], np.cumsum(lengths)])
    for number in (0, 17, 39):
        alone, (length,) = synthetic_documents(3, np.array([number]))
        assert length == lengths[number]
        assert np.array_equal(alone, text[starts[number] : starts[number + 1]])
        assert alone[-1] == END_OF_TEXT and END_OF_TEXT not in alone[:-1]


def test_the_bytes_are_the_same_on_every_machine() -> None:
    """A change of them needs a new GENERATOR_VERSION, or runs of one id would have other data."""
    text, _ = synthetic_documents(0, np.arange(200))
    assert hashlib.sha256(text.tobytes()).hexdigest().startswith("bfe756acc7d09328")


def test_another_seed_is_another_text_of_the_same_language() -> None:
    one, other = (synthetic_documents(seed, np.arange(60))[0] for seed in (0, 1))
    assert not np.array_equal(one[:1000], other[:1000])
    words = [set(text.tobytes().replace(b"\0", b" ").split()) for text in (one, other)]
    assert len(words[0] & words[1]) > 0.3 * min(map(len, words))


def test_entropy_lies_between_its_bounds_and_below_that_of_single_letters() -> None:
    low, high = entropy_bounds(0, np.arange(300))
    text, _ = synthetic_documents(0, np.arange(300))
    shares = np.bincount(text) / len(text)
    letters = -float((shares[shares > 0] * np.log(shares[shares > 0])).sum())
    assert 0 < low < high < letters


def test_the_loader_makes_it_and_a_longer_text_begins_with_a_shorter_one(tmp_path: Path) -> None:
    short, long = (
        load_tokens("synthetic_text", "train", tmp_path, seed=5, train_tokens=size) for size in (20_000, 50_000)
    )
    assert 20_000 <= len(short.tokens) < len(long.tokens)
    assert np.array_equal(short.tokens, long.tokens[: len(short.tokens)])
    held_out = load_tokens("synthetic_text", "val", tmp_path, seed=5, train_tokens=20_000)
    assert not np.array_equal(held_out.tokens[:500], short.tokens[:500])
    with pytest.raises(ValueError, match="train_tokens: the synthetic text is endless"):
        load_tokens("synthetic_text", "train", tmp_path, seed=5)
