"""What the tests of text preparation share: a small tokeniser, texts, and reading a folder back."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken

from weight_decay.config.registry import DATA
from weight_decay.data.manifest import reading_whole
from weight_decay.data.text.files import SPLITS, TokenSet
from weight_decay.data.text.openwebtext import Preparation, prepare
from weight_decay.data.text.sources import find_text


def small_encoding() -> tiktoken.Encoding:
    """All 256 bytes and a few merges; end-of-text is the last id."""
    merges = [b"th", b"the", b" t", b" the", b"in", b"er", b"an", "é".encode()]
    ranks = {bytes([byte]): byte for byte in range(256)}
    ranks |= {merge: 256 + number for number, merge in enumerate(merges)}
    return tiktoken.Encoding(
        "small",
        pat_str=r" ?\p{L}+| ?\p{N}+|\s+|[^\s\p{L}\p{N}]+",
        mergeable_ranks=ranks,
        special_tokens={"<|endoftext|>": len(ranks)},
    )


def some_texts(count: int) -> list[str]:
    """Texts of different lengths with non-ASCII letters, line ends and the end-of-text marker itself."""
    rng = np.random.default_rng(0)
    words = ["the", "theatre", "café", "naïve", "in", "answer\n", "42", "<|endoftext|>", "日本", "and"]
    return [f"{number}: " + " ".join(rng.choice(words, rng.integers(1, 60))) for number in range(count)]


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(texts)), "utf-8")
    return path


def run(source: Path, target: Path, workers: int = 1, piece_bytes: int = 4096, seed: int = 0) -> dict[str, Any]:
    return prepare(
        find_text(source, "text"),
        target,
        Preparation("mine", small_encoding(), 0.2, seed),
        workers,
        piece_bytes,
        progress=False,
    )


def beside(folder: Path) -> dict[str, Any]:
    """Where a folder lies, as `load_tokens` takes it."""
    return {"root": folder.parent, "name": folder.name}


def decoded(folder: Path) -> dict[str, list[str]]:
    """The documents of a prepared folder, decoded; each must end with end-of-text."""
    encoding, texts = small_encoding(), {}
    for split in SPLITS:
        token_set = load_tokens("text", split, **beside(folder), verify="sha256")
        assert token_set.document_starts is not None and token_set.vocabulary == encoding.n_vocab
        documents = np.split(token_set.tokens, token_set.document_starts[1:])
        assert all(document[-1] == encoding.eot_token for document in documents)
        texts[split] = [encoding.decode(document[:-1].tolist()) for document in documents]
    return texts


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".bin"}


def load_tokens(
    kind: str, split: str, root: Path, name: str | None = None, verify: str = "sampled", **made: int
) -> TokenSet:
    """A split of a kind of text below `root`; verify="sha256" reads every byte of it."""
    asked = {"context": 16, "vocabulary": 50257, "sampling": "one_pass", "evaluation_windows": 1, "held_out": 0.0}
    size = {"seed": 0, "train_tokens": None, **made}
    data = DATA[kind](kind=kind, name=name, **asked, held_out_block=64, **size, root=str(root))
    with nullcontext() if verify == "sampled" else reading_whole():
        return data.load(split)
