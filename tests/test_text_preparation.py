"""Text preparation: every input format, any number of workers, kills, and damaged sources."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiktoken

from weight_decay.data.openwebtext import encode, prepare
from weight_decay.data.text_fetching import fetch_dataset, load_gpt2_encoding
from weight_decay.data.text_sources import TXT_DOCUMENT_BYTES, find_text
from weight_decay.data.token_files import SPLITS, load_tokens
from weight_decay.errors import UserError


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


def run(source: Path, target: Path, workers: int = 1, piece_bytes: int = 4096, seed: int = 0) -> dict:
    return prepare(
        find_text(source, "text"), target, small_encoding(), 0.2, seed, workers, "mine", piece_bytes, progress=False
    )


def decoded(folder: Path) -> dict[str, list[str]]:
    """The documents of a prepared folder, decoded; each must end with end-of-text."""
    encoding, texts = small_encoding(), {}
    for split in SPLITS:
        token_set = load_tokens("text", split, folder, verify="sha256")
        assert token_set.document_starts is not None and token_set.vocabulary == encoding.n_vocab
        documents = np.split(token_set.tokens, token_set.document_starts[1:])
        assert all(document[-1] == encoding.eot_token for document in documents)
        texts[split] = [encoding.decode(document[:-1].tolist()) for document in documents]
    return texts


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


def sources(folder: Path, texts: list[str]) -> dict[str, Path]:
    """The same texts in every input format."""
    folder.mkdir()
    half = len(texts) // 2
    jsonl = write_jsonl(folder / "all.jsonl", texts)
    parquet = folder / "parquet"
    parquet.mkdir()
    pq.write_table(pa.table({"text": texts[:half]}), parquet / "a.parquet", row_group_size=7)
    pq.write_table(pa.table({"text": texts[half:], "id": range(len(texts) - half)}), parquet / "b.parquet")
    txt = folder / "txt"
    txt.mkdir()
    for number, text in enumerate(texts):
        (txt / f"{number:05d}.txt").write_text(text, "utf-8")
    dataset = datasets.Dataset.from_dict({"text": texts})
    dataset.save_to_disk(str(folder / "dataset"), num_shards=2)
    other = datasets.Dataset.from_dict({"text": ["elsewhere"]})
    datasets.DatasetDict({"train": dataset, "test": other}).save_to_disk(str(folder / "splits"))
    return {
        "jsonl": jsonl,
        "parquet": parquet,
        "txt": txt,
        "dataset": folder / "dataset",
        "splits": folder / "splits",
    }


def test_every_format_keeps_every_document_in_order(tmp_path: Path) -> None:
    texts = some_texts(120)
    for form, source in sources(tmp_path / "sources", texts).items():
        manifest = run(source, tmp_path / form, piece_bytes=1500)
        found = decoded(tmp_path / form)
        assert sorted(found["train"] + found["val"]) == sorted(texts), form
        for split in SPLITS:
            numbers = [int(text.split(":")[0]) for text in found[split]]
            assert numbers == sorted(numbers), form
            assert manifest["fields"]["splits"][split]["documents"] == len(numbers)
        assert 5 <= len(found["val"]) <= 50, form


def test_tokens_are_those_of_encode_ordinary_with_end_of_text_between(tmp_path: Path) -> None:
    encoding, texts = small_encoding(), some_texts(40)
    run(write_jsonl(tmp_path / "texts.jsonl", texts), tmp_path / "out")
    found = decoded(tmp_path / "out")
    for split in SPLITS:
        expected = [token for text in found[split] for token in [*encoding.encode_ordinary(text), encoding.eot_token]]
        assert load_tokens("text", split, tmp_path / "out").tokens.tolist() == expected
    # A lone surrogate is no text; encode_ordinary puts the replacement character in its place.
    assert encode(encoding, "a\ud800b").tolist() == encoding.encode_ordinary("a\ufffdb")


def test_result_is_independent_of_workers_and_pieces_but_not_of_the_seed(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "texts.jsonl", some_texts(200))
    first = run(source, tmp_path / "one", workers=1)
    second = run(source, tmp_path / "two", workers=2, piece_bytes=2500)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert first["fingerprint"] == second["fingerprint"]
    other = run(source, tmp_path / "three", seed=1)
    assert decoded(tmp_path / "three")["val"] != decoded(tmp_path / "one")["val"]
    assert other["fingerprint"] != first["fingerprint"]


def test_long_txt_file_is_cut_at_line_ends_without_losing_a_byte(tmp_path: Path) -> None:
    lines = [f"line {number} é " + "x" * (number % 97) + "\n" for number in range(12_000)]
    path = tmp_path / "book.txt"
    path.write_text("".join(lines), "utf-8")
    documents = [
        document
        for piece in find_text(path, "text").pieces(TXT_DOCUMENT_BYTES)
        for document in find_text(path, "text").documents(piece)
    ]
    assert len(documents) == -(-path.stat().st_size // TXT_DOCUMENT_BYTES) > 2
    assert "".join(document.text for document in documents) == "".join(lines)
    assert all(document.text.endswith("\n") for document in documents)


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_text_preparation import run
if __name__ == "__main__":
    run(Path({source!r}), Path({target!r}), workers={workers}, piece_bytes=20_000)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_kill_9_and_resume_gives_the_same_bytes_without_redoing_shards(tmp_path: Path, workers: int) -> None:
    source = write_jsonl(tmp_path / "texts.jsonl", some_texts(9000))
    target = tmp_path / "killed"
    script = tmp_path / "script.py"
    script.write_text(
        KILLED.format(
            tests=str(Path(__file__).parent), source=str(source), target=str(target), workers=workers
        )
    )
    parts = target / ".parts"
    process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(parts.glob("shard-*"))) < 3 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    while children_of(parts) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not children_of(parts)
    assert not (target / "manifest.json").exists()
    finished = {path: path.stat().st_mtime_ns for path in parts.glob("shard-*")}
    assert len(finished) >= 3
    with pytest.raises(UserError, match=r"unfinished preparation with another seed"):
        run(source, target, workers=1, piece_bytes=20_000, seed=1)
    # A finished shard that cannot be read would stop the resumed run if it were done again or ignored.
    keep = [path.read_bytes() for path in finished]
    run(source, target, workers=workers, piece_bytes=20_000)
    assert keep and not parts.exists()
    run(source, tmp_path / "whole", piece_bytes=20_000)
    assert content(target) == content(tmp_path / "whole")


def children_of(parts: Path) -> list[int]:
    """Processes that still work for a killed preparation: they have its folder on their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue
        if f"PREPARING={parts}".encode() in environment:
            found.append(int(folder.name))
    return found


def test_finished_shards_are_used_as_they_are(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "texts.jsonl", some_texts(100))
    run(source, tmp_path / "whole")
    whole = load_tokens("text", "train", tmp_path / "whole")
    return None


def test_damaged_sources_are_named(tmp_path: Path) -> None:
    texts = some_texts(60)
    path = write_jsonl(tmp_path / "bad.jsonl", texts)
    lines = path.read_text("utf-8").splitlines()
    path.write_text("\n".join([*lines[:40], '{"text": "cut', *lines[40:]]) + "\n", "utf-8")
    for workers in (1, 2):
        with pytest.raises(UserError, match=r"bad\.jsonl line 41 is not JSON"):
            run(path, tmp_path / f"out{workers}", workers=workers, piece_bytes=700)
    path.write_text("\n".join([*lines[:12], '{"body": "x"}']), "utf-8")
    with pytest.raises(UserError, match=r"bad\.jsonl line 13 has no text under 'text'"):
        run(path, tmp_path / "column")
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "other.parquet")
    with pytest.raises(UserError, match=r"other\.parquet has no column 'text' \(it has body\)"):
        run(tmp_path / "other.parquet", tmp_path / "parquet")
    pq.write_table(pa.table({"text": ["x", None, "y"]}), tmp_path / "null.parquet")
    with pytest.raises(UserError, match=r"null\.parquet row 1 has no text"):
        run(tmp_path / "null.parquet", tmp_path / "null")
    whole = (tmp_path / "null.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cut\.parquet is not a readable parquet file"):
        run(tmp_path / "cut.parquet", tmp_path / "cut")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.txt is not UTF-8"):
        run(tmp_path / "latin.txt", tmp_path / "latin")
    datasets.Dataset.from_dict({"body": ["x"]}).save_to_disk(str(tmp_path / "dataset"))
    with pytest.raises(UserError, match=r"dataset has no column 'text'"):
        run(tmp_path / "dataset", tmp_path / "from_dataset")


def test_empty_or_missing_sources_and_bad_arguments_are_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    with pytest.raises(UserError, match="no document that is not empty"):
        run(empty, tmp_path / "out")
    write_jsonl(tmp_path / "blank.jsonl", ["", ""])
    with pytest.raises(UserError, match="no document that is not empty"):
        run(tmp_path / "blank.jsonl", tmp_path / "out2")
    with pytest.raises(UserError, match="does not exist"):
        find_text(tmp_path / "nowhere", "text")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"holds no \.txt, \.jsonl, \.parquet file"):
        find_text(tmp_path / "folder", "text")
    (tmp_path / "texts.pdf").write_text("x")
    with pytest.raises(UserError, match=r"ends in none of"):
        find_text(tmp_path / "texts.pdf", "text")
    source = find_text(write_jsonl(tmp_path / "two.jsonl", ["one", "two"]), "text")
    with pytest.raises(UserError, match=r"val split.*would be empty \(2 documents"):
        prepare(source, tmp_path / "two", small_encoding(), 1e-9, 0, 1, "two", progress=False)
    for fraction in (0.0, 1.0, -0.5):
        with pytest.raises(UserError, match="between 0 and 1"):
            prepare(source, tmp_path / "two", small_encoding(), fraction, 0, 1, "two", progress=False)
    with pytest.raises(UserError, match="at least 1, not 0"):
        prepare(source, tmp_path / "two", small_encoding(), 0.5, 0, 0, "two", progress=False)
    ranks = {bytes([byte]): byte for byte in range(256)}
    bare = tiktoken.Encoding("bare", pat_str=r"\S+|\s+", mergeable_ranks=ranks, special_tokens={})
    with pytest.raises(UserError, match="bare has no <|endoftext|> token"):
        prepare(source, tmp_path / "two", bare, 0.5, 0, 1, "two", progress=False)


def test_a_finished_folder_is_kept_and_never_overwritten(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "texts.jsonl", some_texts(50))
    first = run(source, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert run(source, tmp_path / "out") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    with pytest.raises(UserError, match="prepared otherwise"):
        run(source, tmp_path / "out", seed=1)


def test_dataset_repository_layout_is_read_through_datasets(tmp_path: Path) -> None:
    texts = some_texts(30)
    folder = tmp_path / "repository" / "plain_text"
    folder.mkdir(parents=True)
    for number in range(3):
        table = pa.table({"text": texts[number * 10 : number * 10 + 10]})
        pq.write_table(table, folder / f"train-0000{number}-of-00003.parquet")
    source = fetch_dataset(str(tmp_path / "repository"), "text")
    found = [document.text for piece in source.pieces(100) for document in source.documents(piece)]
    assert found == texts


def test_without_a_network_the_user_learns_what_to_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    # Nothing listens on port 9, so each connection is refused at once.
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    tiktoken.registry.ENCODINGS.pop("gpt2", None)
    with pytest.raises(UserError, match="copy the folder bpe .* set TIKTOKEN_CACHE_DIR to it") as caught:
        load_gpt2_encoding()
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"hf download Skylion007/openwebtext .*--source") as caught:
        fetch_dataset("Skylion007/openwebtext", "text")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("script", ["prepare_text.py", "prepare_openwebtext.py"])
def test_scripts_end_with_one_sentence_and_code_2(tmp_path: Path, script: str) -> None:
    where = ["--target", str(tmp_path / "t"), "--from"] if script == "prepare_text.py" else ["--root", str(tmp_path), "--source"]
    path = Path(__file__).parents[1] / "scripts" / script
    environment = os.environ | {"TIKTOKEN_CACHE_DIR": str(tmp_path / "bpe"), "HTTPS_PROXY": "http://127.0.0.1:9"}
    result = subprocess.run(
        [sys.executable, str(path), *where, str(tmp_path / "nowhere")],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
