"""Data changed in place are found: always if the file system knows, else with the stated probability."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from test_run import folder_of, frozen_text, stop_after
from weight_decay.config.run import RunConfig
from weight_decay.data import content
from weight_decay.data.manifest import read_manifest, reading_whole, write_manifest
from weight_decay.errors import UserError
from weight_decay.runs.folder import Labels
from weight_decay.training.run import run

SCRIPT = Path(__file__).parents[1] / "scripts" / "verify_data.py"
MIB = content.BLOCK_BYTES


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of three files, 5 blocks and a bit, with its manifest."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = tmp_path / "data"
    made.mkdir()
    for name, size in (("a.bin", 3 * MIB), ("b.bin", 2 * MIB + 17), ("c.bin", 1)):
        (made / name).write_bytes(os.urandom(size))
    write_manifest(made, "demo", {}, [made / name for name in ("a.bin", "b.bin", "c.bin")])
    return made


def change(path: Path, at: int, quietly: bool) -> None:
    """Flip a bit; `quietly` as a bad disk would, so that the file's dates do not tell."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        old = file.read(1)
        file.seek(at)
        file.write(bytes([old[0] ^ 4]))
    if quietly:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def traceless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can set a file's ctime, so it is left out for those tests that need an unnoticed change."""
    trace = content._trace
    monkeypatch.setattr(content, "_trace", lambda path: [trace(path)[0], trace(path)[1], trace(path)[3]])


@pytest.fixture
def read_whole(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read whole."""
    names: list[str] = []
    hashed = content.hashed
    monkeypatch.setattr(content, "hashed", lambda path: (names.append(path.name), hashed(path))[1])
    return names


def test_a_file_that_was_written_to_is_read_whole_and_found(folder: Path, read_whole: list[str]) -> None:
    read_manifest(folder, "demo")
    assert read_whole == []
    change(folder / "b.bin", MIB + 3, quietly=False)
    with pytest.raises(UserError, match=r"b\.bin is damaged"):
        read_manifest(folder, "demo")
    assert read_whole == ["b.bin"]


def test_a_file_that_was_only_touched_is_read_whole_once(folder: Path, read_whole: list[str]) -> None:
    os.utime(folder / "a.bin")
    read_manifest(folder, "demo")
    read_manifest(folder, "demo")
    assert read_whole == ["a.bin"]


def test_a_change_that_leaves_no_trace_is_found_when_its_block_is_drawn(
    folder: Path, traceless: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_manifest(folder, "demo")  # remembers the traces without ctime
    change(folder / "a.bin", 2 * MIB + 5, quietly=True)
    with pytest.raises(UserError, match=rf"a\.bin is damaged \(bytes {2 * MIB} to {3 * MIB} have changed\)"):
        read_manifest(folder, "demo")
    # One of seven blocks, two drawn: 2/7 are found. Of 400 looks 114 are expected, with a deviation of 9.
    monkeypatch.setattr(content, "SAMPLED", 2)
    monkeypatch.setattr(content, "_hash", _remembering(content._hash))
    manifest = read_whole_manifest(folder)
    found = 0
    for _ in range(400):
        try:
            content.check(folder, manifest)
        except content.ChangedFileError:
            found += 1
    assert 70 < found < 160
    with reading_whole(), pytest.raises(UserError, match=r"a\.bin is damaged \(its SHA-256"):
        read_manifest(folder, "demo")


def _remembering(hash_of: Callable[[bytes], str]) -> Callable[[bytes], str]:
    known: dict[bytes, str] = {}
    return lambda block: known.setdefault(block, hash_of(block))


def read_whole_manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


@pytest.mark.parametrize("lost", ["blocks.json", ".verified.json", "both", "garbage"])
def test_without_hashes_of_blocks_everything_is_read_once_and_they_are_made(
    folder: Path, read_whole: list[str], lost: str
) -> None:
    for name in ("blocks.json", ".verified.json"):
        if lost == "garbage":
            (folder / name).write_text("[" * 100_000)
        elif lost in (name, "both"):
            (folder / name).unlink()
    read_manifest(folder, "demo")
    assert sorted(read_whole) == ["a.bin", "b.bin", "c.bin"]
    read_manifest(folder, "demo")
    assert len(read_whole) == 3


def test_other_hashes_of_blocks_do_not_make_other_data_right(folder: Path, traceless: None) -> None:
    change(folder / "a.bin", 5, quietly=True)
    # Someone makes new block hashes for the changed data; only the manifest's own checksum can be believed then.
    blocks = {name: content.hashed(folder / name)[1] for name in ("a.bin", "b.bin", "c.bin")}
    (folder / ".verified.json").unlink()
    body = {"fingerprint": read_whole_manifest(folder)["fingerprint"], "block_bytes": MIB, "files": blocks}
    content._write(folder / "blocks.json", {**body, "seal": content._seal(body)})
    with pytest.raises(UserError, match=r"a\.bin is damaged \(its SHA-256"):
        read_manifest(folder, "demo")


def test_a_start_reads_no_more_than_its_sample_of_large_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR-5m's size in a sparse file: what a start reads is counted, not timed."""
    size = 18_400 * MIB
    with (tmp_path / "images.u8").open("wb") as file:
        file.truncate(size)
    zero = content._hash(bytes(MIB))
    blocks = {"images.u8": [zero] * 18_400}
    manifest = {"fingerprint": "f" * 64, "files": [{"name": "images.u8", "bytes": size, "sha256": ""}]}
    content.remember(tmp_path, "f" * 64, blocks)
    looked: list[int] = []
    monkeypatch.setattr(content, "_hash", lambda block: (looked.append(len(block)), zero)[1])
    content.check(tmp_path, manifest)
    assert looked == [MIB] * content.SAMPLED
    assert (tmp_path / "blocks.json").stat().st_size < 1 << 20


def test_where_the_folder_cannot_be_written_it_is_remembered_elsewhere(
    folder: Path, read_whole: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = content._write

    def refusing(path: Path, values: dict[str, Any]) -> None:
        if folder in path.parents and path.name == ".verified.json":
            raise PermissionError(13, "Permission denied")
        write(path, values)

    (folder / ".verified.json").unlink()
    monkeypatch.setattr(content, "_write", refusing)
    read_manifest(folder, "demo")
    read_manifest(folder, "demo")
    assert len(read_whole) == 3


def test_a_run_on_changed_data_does_not_start(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = tiny("text", f"data.root={tmp_path / 'own'}")
    labels = Labels("test", "micro", "test")
    assert run(config, labels) == "completed"
    (tokens,) = (tmp_path / "own").rglob("train.bin")
    change(tokens, 1000, quietly=True)
    other = tiny("text", f"data.root={tmp_path / 'own'} seed=1")
    with pytest.raises(UserError, match=r"train\.bin is damaged"):
        run(other, labels)
    assert not (folder_of(other) / "checkpoints").exists()


def test_a_run_does_not_go_on_when_only_the_data_it_is_evaluated_on_have_changed(
    tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bare files have no manifest that would find it."""
    config, labels = tiny("text", frozen_text(tmp_path)), Labels("test", "micro", "test")
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert run(config, labels) == "interrupted"
    path = tmp_path / "nanogpt" / "val.bin"
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(UserError, match="was evaluated on other data so far"):
        run(config, labels)


def test_the_whole_check_on_request(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("verify_data", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.main([str(folder)]) == 0
    assert "3 files" in capsys.readouterr().out
    change(folder / "c.bin", 0, quietly=True)
    assert script.main([str(folder)]) == 2
    assert "c.bin is damaged" in capsys.readouterr().err
    assert script.main([str(folder.parent)]) == 2
    assert script.main([]) == 2
