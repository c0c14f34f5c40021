"""Text preparation: damaged, empty or missing sources, finished folders, and no network."""

from __future__ import annotations

import os
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiktoken

import forked
from text_helpers import run, small_encoding, some_texts, write_jsonl
from weight_decay.data.text.encodings import gpt2_encoding
from weight_decay.data.text.openwebtext import Preparation, prepare
from weight_decay.data.text.sources import fetch_dataset, find_text
from weight_decay.errors import UserError


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
        prepare(source, tmp_path / "two", Preparation("two", small_encoding(), 1e-9), progress=False)
    for fraction in (0.0, 1.0, -0.5):
        with pytest.raises(UserError, match="between 0 and 1"):
            Preparation("two", small_encoding(), fraction)
    with pytest.raises(UserError, match="at least 1, not 0"):
        prepare(source, tmp_path / "two", Preparation("two", small_encoding(), 0.5), 0, progress=False)
    ranks = {bytes([byte]): byte for byte in range(256)}
    bare = tiktoken.Encoding("bare", pat_str=r"\S+|\s+", mergeable_ranks=ranks, special_tokens={})
    with pytest.raises(UserError, match=r"bare has no <\|endoftext\|> token"):
        prepare(source, tmp_path / "two", Preparation("two", bare, 0.5), progress=False)


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


def test_without_a_network_the_user_learns_what_to_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    # Nothing listens on port 9, so each connection is refused at once.
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    tiktoken.registry.ENCODINGS.pop("gpt2", None)
    with pytest.raises(
        UserError, match=r"any copy of its two files, vocab\.bpe .* encoder\.json .* BPE=FOLDER"
    ) as caught:
        gpt2_encoding()
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"hf download Skylion007/openwebtext .*--source") as caught:
        fetch_dataset("Skylion007/openwebtext", "text")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("script", ["prepare_text.py", "prepare_openwebtext.py"])
def test_scripts_end_with_one_sentence_and_code_2(tmp_path: Path, script: str) -> None:
    where = (
        ["--target", str(tmp_path / "t"), "--from"]
        if script == "prepare_text.py"
        else ["--root", str(tmp_path), "--source"]
    )
    path = Path(__file__).parents[1] / "scripts" / script
    environment = os.environ | {
        "TIKTOKEN_CACHE_DIR": str(tmp_path / "bpe"),
        "HTTPS_PROXY": "http://127.0.0.1:9",
    }
    result = forked.run([str(path), *where, str(tmp_path / "nowhere")], env=environment)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
