"""Text preparation: every input format, any number of workers, and kills."""

from __future__ import annotations

import fcntl
import os
import shutil
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

from text_helpers import beside, content, decoded, load_tokens, run, small_encoding, some_texts, write_jsonl
from weight_decay.data.text.files import SPLITS
from weight_decay.data.text.openwebtext import encode
from weight_decay.data.text.sources import TXT_DOCUMENT_BYTES, find_text
from weight_decay.errors import UserError


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
        assert load_tokens("text", split, **beside(tmp_path / "out")).tokens.tolist() == expected
    # A lone surrogate is no text; encode_ordinary puts the replacement character in its place.
    assert encode(encoding, "a\ud800b").tolist() == encoding.encode_ordinary("a\ufffdb")


def test_result_is_independent_of_workers_and_pieces_but_not_of_the_seed(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "texts.jsonl", some_texts(200))
    first = run(source, tmp_path / "one", workers=1)
    assert len(find_text(source, "text").pieces(2500)) > 10
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
from text_helpers import run
if __name__ == "__main__":
    run(Path({source!r}), Path({target!r}), workers={workers}, piece_bytes=20_000)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_kill_9_and_resume_gives_the_same_bytes_without_redoing_shards(tmp_path: Path, workers: int) -> None:
    source = write_jsonl(tmp_path / "texts.jsonl", some_texts(4000))
    target = tmp_path / "killed"
    script = tmp_path / "script.py"
    script.write_text(
        KILLED.format(tests=str(Path(__file__).parent), source=str(source), target=str(target), workers=workers)
    )
    parts = target / ".parts"
    environment = os.environ | {"PREPARING": str(target)}
    process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL, env=environment)
    deadline = time.monotonic() + 60
    while len(list(parts.glob("shard-*"))) < 3 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    while left_working(target) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left_working(target)
    assert not (target / "manifest.json").exists()
    assert len(list(parts.glob("shard-*"))) >= 3
    with pytest.raises(UserError, match=r"unfinished preparation with another seed"):
        run(source, target, piece_bytes=20_000, seed=1)
    run(source, target, workers=workers, piece_bytes=20_000)
    assert not parts.exists()
    run(source, tmp_path / "whole", piece_bytes=20_000)
    assert content(target) == content(tmp_path / "whole")


def left_working(target: Path) -> list[str]:
    """Processes that still belong to a preparation: they carry its target in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"PREPARING={target}".encode() in (folder / "environ").read_bytes():
                found.append(folder.name)
        except OSError:
            continue
    return found


def test_finished_shards_are_used_as_they_are_and_damaged_ones_done_again(tmp_path: Path) -> None:
    texts = some_texts(100)
    source = write_jsonl(tmp_path / "texts.jsonl", texts)
    run(source, tmp_path / "whole")
    whole = source.read_bytes()
    # Damage in the last line stops the preparation with its other shards finished.
    source.write_bytes(whole[:-3] + b"??\n")
    target = tmp_path / "out"
    with pytest.raises(UserError, match="line 100"):
        run(source, target, piece_bytes=1000)
    source.write_bytes(whole)
    shard = sorted((target / ".parts").glob("shard-*"))[0]
    with np.load(shard, allow_pickle=False) as arrays:
        marked = dict(arrays)
    # Tokens no text would give show whether this shard was taken as it is.
    marked["train"][:5] = [1, 2, 3, 4, 5]
    good = shard.read_bytes()
    np.savez(shard, **marked)
    other = sorted((target / ".parts").glob("shard-*"))[1]
    other.write_bytes(other.read_bytes()[:-100])
    with pytest.raises(UserError, match=rf"{other.name} was damaged .* run the same command again"):
        run(source, target, piece_bytes=1000)
    run(source, target, piece_bytes=1000)
    assert load_tokens("text", "train", **beside(target)).tokens[:5].tolist() == [1, 2, 3, 4, 5]
    shutil.rmtree(target)
    with pytest.raises(UserError, match="line 100"):
        source.write_bytes(whole[:-3] + b"??\n")
        run(source, target, piece_bytes=1000)
    source.write_bytes(whole)
    assert sorted((target / ".parts").glob("shard-*"))[0].read_bytes() == good
    run(source, target, piece_bytes=1000)
    assert content(target) == content(tmp_path / "whole")


def test_two_preparations_of_one_folder_exclude_each_other(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "texts.jsonl", some_texts(20))
    parts = tmp_path / "out" / ".parts"
    parts.mkdir(parents=True)
    with (parts / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is preparing"):
            run(source, tmp_path / "out")
    run(source, tmp_path / "out")
