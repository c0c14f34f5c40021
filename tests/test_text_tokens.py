"""Token sets, training streams and validation windows, against plain slicing of the tokens."""

from __future__ import annotations

import multiprocessing
import platform
import random
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch

from hunt.folders import damage
from text_helpers import beside, load_tokens
from weight_decay.data.text import stream as streams
from weight_decay.data.text.files import SPLITS, SplitWriter, TokenSet, finish_folder
from weight_decay.data.text.python_text import ensure_python_text
from weight_decay.data.text.stream import FixedWindows, TokenStream, validation_starts
from weight_decay.data.text.windows import SeededPermutation, hold_out_windows
from weight_decay.device.distributed import Ranks
from weight_decay.errors import UserError


def counting_set(length: int, dtype: str = "uint16") -> TokenSet:
    """Token i is i (modulo the type), so that a window tells where it came from."""
    tokens = np.arange(length).astype(dtype)
    return TokenSet(tokens, None, 65536 if dtype == "uint16" else 256, "counting", "train", "f0")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 65, 1000, 4097])
def test_permutation_is_a_bijection_that_depends_on_the_seed(size: int) -> None:
    orders = [SeededPermutation(size, seed, 1)(np.arange(size)) for seed in (0, 1)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(size))
    if size >= 64:
        assert (orders[0] != orders[1]).any()
        assert (orders[0] != np.arange(size)).any()


def test_permutation_mixes_and_needs_no_memory_for_nine_billion() -> None:
    size = 9_035_582_198
    values = SeededPermutation(size, 3, 1)(np.arange(50_000))
    assert len(np.unique(values)) == 50_000
    assert values.min() >= 0 and values.max() < size
    # The mean of 50,000 uniform draws has standard deviation size / sqrt(12 * 50,000).
    assert abs(values.mean() / size - 0.5) < 5 / np.sqrt(12 * 50_000)
    # Successive elements must not be related: their correlation has standard deviation 1 / sqrt(n).
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 5 / np.sqrt(50_000)


@pytest.mark.parametrize("resident_bytes", [1 << 30, 0], ids=["resident", "memory_map"])
@pytest.mark.parametrize("sampling", ["with_replacement", "one_pass"])
def test_batches_are_slices_of_the_text_and_pure_in_seed_and_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampling: str, resident_bytes: int
) -> None:
    monkeypatch.setattr(streams, "RESIDENT_BYTES", resident_bytes)
    # All 65,536 values of uint16, so that the sign bit of the int16 it is kept in is exercised.
    path = tmp_path / "tokens.bin"
    np.arange(65_536).astype("<u2").tofile(path)
    tokens = np.memmap(path, dtype="<u2", mode="r")
    token_set = TokenSet(tokens, None, 65536, "counting", "train", "f0")

    def stream(seed: int) -> TokenStream:
        return TokenStream(token_set, 16, 8, seed, "cpu", sampling)

    first = stream(5)
    for step in range(6):
        inputs, targets = first.batch(step)
        assert inputs.dtype == targets.dtype == torch.int64
        assert inputs.shape == targets.shape == (8, 16)
        assert inputs.is_contiguous() and targets.is_contiguous()
        starts = inputs[:, 0]
        assert torch.equal(inputs, starts[:, None] + torch.arange(16))
        assert torch.equal(targets, inputs + 1)
    # Another order of asking, a fresh stream, and repeated asking give the same batches.
    second = stream(5)
    for step in (4, 0, 5, 4, 1):
        assert torch.equal(first.batch(step)[0], second.batch(step)[0])
    assert not torch.equal(first.batch(0)[0], first.batch(1)[0])
    assert not torch.equal(first.batch(0)[0], stream(6).batch(0)[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("sampling", ["with_replacement", "one_pass"])
def test_the_gpu_gets_the_same_windows(monkeypatch: pytest.MonkeyPatch, sampling: str) -> None:
    token_set, made = counting_set(65_000), []
    for device, resident_bytes in (("cpu", 1 << 30), ("cuda", 1 << 30), ("cuda", 0)):
        monkeypatch.setattr(streams, "RESIDENT_BYTES", resident_bytes)
        made.append(TokenStream(token_set, 16, 8, 5, device, sampling))
    for step in (0, 1, 2, 3, 10, 4):
        batches = [stream.batch(step) for stream in made]
        for inputs, targets in batches[1:]:
            assert inputs.device.type == targets.device.type == "cuda"
            assert torch.equal(inputs.cpu(), batches[0][0]) and torch.equal(targets.cpu(), batches[0][1])


def test_ranks_split_one_global_batch() -> None:
    token_set = counting_set(5000)
    for sampling in ("with_replacement", "one_pass"):
        whole = TokenStream(token_set, 10, 12, 1, "cpu", sampling)
        parts = [TokenStream(token_set, 10, 12, 1, "cpu", sampling, Ranks(rank, 3)) for rank in range(3)]
        for step in (0, 7):
            joined = torch.cat([part.batch(step)[0] for part in parts])
            assert torch.equal(whole.batch(step)[0], joined)


@pytest.mark.parametrize("batch_size", [7, 9000])
def test_one_pass_takes_every_window_once_and_then_refuses(batch_size: int) -> None:
    token_set = counting_set(63_007)
    stream = TokenStream(token_set, 3, batch_size, 2, "cpu", "one_pass")
    assert stream.windows == 63_006 // 3
    steps = stream.windows // batch_size
    stream.check(steps)
    starts = np.concatenate([stream.starts(step) for step in range(steps)])
    assert len(np.unique(starts)) == steps * batch_size
    assert (starts % 3 == 0).all() and starts.max() + 3 < 63_007
    if stream.windows % batch_size == 0:
        assert sorted(starts.tolist()) == list(range(0, 63_006, 3))
    with pytest.raises(UserError, match=rf"21,002 windows of 3 tokens.*{steps + 1:,} steps of {batch_size}"):
        stream.check(steps + 1)
    with pytest.raises(UserError, match="21,002 windows"):
        stream.batch(steps)
    assert stream.samples(5) == 5 * batch_size
    assert stream.epoch(5) == pytest.approx(5 * batch_size / 21_002)


def test_with_replacement_is_uniform_over_all_starts() -> None:
    token_set = counting_set(40)
    stream = TokenStream(token_set, 8, 100, 0, "cpu", "with_replacement")
    starts = np.concatenate([stream.starts(step) for step in range(200)])
    counts = np.bincount(starts, minlength=40)
    assert (counts[32:] == 0).all()
    # Pearson's statistic for 32 equally likely starts: mean 31, standard deviation sqrt(62).
    expected = 20_000 / 32
    assert ((counts[:32] - expected) ** 2 / expected).sum() < 31 + 5 * np.sqrt(62)


def test_fixed_windows_are_disjoint_seeded_and_repeat() -> None:
    token_set = counting_set(5000)
    windows = FixedWindows(token_set, validation_starts(token_set, 10, 100, 4), 10, 16, "cpu")
    passes = [[inputs for inputs, _ in windows] for _ in range(2)]
    assert [len(inputs) for inputs in passes[0]] == [16] * 6 + [4]
    assert all(torch.equal(a, b) for a, b in zip(*passes, strict=True))
    starts = torch.cat(passes[0])[:, 0]
    assert len(starts.unique()) == 100 and (starts % 10 == 0).all()
    other = np.sort(validation_starts(token_set, 10, 100, 5))
    assert not np.array_equal(starts, other)
    for inputs, targets in windows:
        assert torch.equal(targets, inputs + 1)
    with pytest.raises(UserError, match=r"500 validation windows.*499"):
        validation_starts(token_set, 10, 500, 4)


def test_held_out_blocks_are_never_touched_by_training() -> None:
    token_set = counting_set(60_050)
    seen, unseen = hold_out_windows(token_set, 0.1, 100, 0)
    assert seen.segments is not None and unseen.segments is not None
    inside = np.zeros(60_050, dtype=int)
    for part, mark in ((seen, 1), (unseen, 2)):
        for start, stop in part.segments:
            inside[start:stop] += mark
    assert set(inside.tolist()) == {1, 2} and (inside == 2).sum() == 60 * 100
    for sampling in ("with_replacement", "one_pass"):
        stream = TokenStream(seen, 20, 50, 0, "cpu", sampling)
        used = torch.cat([torch.cat(stream.batch(step), dim=1).flatten() for step in range(stream.windows // 50)])
        assert (inside[used.numpy()] == 1).all()
    windows = FixedWindows(unseen, validation_starts(unseen, 20, 240, 0), 20, 32, "cpu")
    held = torch.cat([torch.cat(pair, dim=1).flatten() for pair in windows])
    assert (inside[held.numpy()] == 2).all()
    assert len({token_set.fingerprint, seen.fingerprint, unseen.fingerprint}) == 3
    assert unseen.split == "train-unseen"
    assert hold_out_windows(token_set, 0.1, 100, 1)[1].fingerprint != unseen.fingerprint
    for fraction, block in ((0.0, 100), (1.0, 100), (0.1, 60_000)):
        with pytest.raises(UserError, match="cannot hold out"):
            hold_out_windows(token_set, fraction, block, 0)


def test_a_text_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(UserError, match="no 65 successive tokens"):
        TokenStream(counting_set(64), 64, 1, 0, "cpu", "one_pass")
    assert TokenStream(counting_set(65), 64, 1, 0, "cpu", "one_pass").windows == 1


def test_python_text_is_the_librarys_bytes_split_by_document(tmp_path: Path) -> None:
    sets = {split: load_tokens("python_text", split, tmp_path) for split in SPLITS}
    documents = []
    for token_set in sets.values():
        assert token_set.tokens.dtype == np.uint8 and token_set.vocabulary == 256
        content = token_set.tokens.tobytes()
        assert content[-1] == 0
        documents.append(set(content[:-1].split(b"\0")))
        assert token_set.document_starts is not None
        ends = [0, *(np.flatnonzero(token_set.tokens == 0)[:-1] + 1)]
        assert token_set.document_starts.tolist() == ends
    library = Path(sysconfig.get_path("stdlib"))
    for name in ("argparse.py", "json/decoder.py", "asyncio/tasks.py"):
        assert (library / name).read_bytes() in documents[0] | documents[1]
    assert (library / "encodings" / "cp1252.py").read_bytes() not in documents[0] | documents[1]
    sizes = [len(token_set.tokens) for token_set in sets.values()]
    assert 6e6 < sizes[0] < 14e6 and 0.5e6 < sizes[1] < 2e6
    assert ensure_python_text(tmp_path).name == f"python_text-{platform.python_version()}"
    assert [path.name for path in tmp_path.iterdir()] == [f"python_text-{platform.python_version()}"]


def test_two_processes_may_make_the_python_text_at_once(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        folders = pool.map(ensure_python_text, [tmp_path, tmp_path], chunksize=1)
    assert folders[0] == folders[1]
    assert list(tmp_path.iterdir()) == [folders[0]]
    assert load_tokens("text", "train", **beside(folders[0]), verify="sha256").fingerprint


def test_nanogpt_files_are_read_as_they_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    train = rng.integers(0, 50257, 300_000).astype("<u2")
    train.tofile(tmp_path / "train.bin")
    train[:1000].tofile(tmp_path / "val.bin")
    read = load_tokens("nanogpt", "train", **beside(tmp_path))
    assert np.array_equal(read.tokens, train) and read.vocabulary == 50257 and read.document_starts is None
    assert read.fingerprint.startswith("sampled-")
    assert load_tokens("nanogpt", "val", **beside(tmp_path)).fingerprint != read.fingerprint
    train[150_000] ^= 1
    train.tofile(tmp_path / "train.bin")
    assert load_tokens("nanogpt", "train", **beside(tmp_path)).fingerprint != read.fingerprint
    with pytest.raises(UserError, match="read it as nanogpt"):
        load_tokens("text", "train", **beside(tmp_path))
    train[0] = 60_000
    train.tofile(tmp_path / "train.bin")
    with pytest.raises(UserError, match="holds token 60000"):
        load_tokens("nanogpt", "train", **beside(tmp_path))
    (tmp_path / "val.bin").write_bytes(b"abc")
    with pytest.raises(UserError, match="3 bytes"):
        load_tokens("nanogpt", "val", **beside(tmp_path))
    with pytest.raises(UserError, match=r"train\.bin and val\.bin"):
        load_tokens("nanogpt", "train", **beside(tmp_path / "elsewhere" / "nowhere"))


def test_damaged_or_missing_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make data-openwebtext"):
        load_tokens("openwebtext", "train", tmp_path)
    with pytest.raises(UserError, match="splits train and val"):
        load_tokens("text", "test", **beside(tmp_path))
    folder = tmp_path / "openwebtext"
    folder.mkdir()
    writers = {split: SplitWriter(folder, split, np.dtype("<u2")) for split in SPLITS}
    writers["train"].append(np.arange(50), np.array([20, 30]))
    with pytest.raises(UserError, match=r"val split.*would be empty"):
        finish_folder(folder, writers, 100, np.dtype("uint16"), {"name": "tiny"})
    writers = {split: SplitWriter(folder, split, np.dtype("<u2")) for split in SPLITS}
    for writer in writers.values():
        writer.append(np.arange(50), np.array([20, 30]))
        writer.append(np.arange(5), np.array([5]))
    finish_folder(folder, writers, 100, np.dtype("uint16"), {"name": "tiny"})
    loaded = load_tokens("openwebtext", "val", tmp_path)
    assert loaded.document_starts is not None and loaded.document_starts.tolist() == [0, 20, 50]
    assert loaded.tokens.tolist() == [*range(50), *range(5)] and loaded.name == "tiny"
    content = (folder / "val.bin").read_bytes()
    damage(folder / "val.bin", random.Random(0), [folder], ("flip",))
    with pytest.raises(UserError, match="damaged"):
        load_tokens("openwebtext", "val", tmp_path, verify="sha256")
    (folder / "val.bin").write_bytes(content[:-2])
    with pytest.raises(UserError, match="108 bytes"):
        load_tokens("openwebtext", "val", tmp_path)
