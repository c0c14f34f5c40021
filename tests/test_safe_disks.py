"""Full and read-only disks: one sentence and exit code 2 from every command that writes, nothing half written."""

from __future__ import annotations

import contextlib
import errno
import gzip
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from synthetic_runs import OVER_TRAINING, over_training_run, write_demo, write_experiment, write_run
from test_run import folder_of, stop_after
from weight_decay.cli import main
from weight_decay.config.run import RunConfig
from weight_decay.errors import UserError
from weight_decay.report.tables.collect import collect
from weight_decay.report.tables.read import tables_of
from weight_decay.runs.files import read_bounded
from weight_decay.runs.folder import Labels
from weight_decay.runs.read import DamagedRunError, read_summary
from weight_decay.training.run import run

WRITERS = ["collect", "claims", "figures", "report"]


def write_results(results: Path) -> None:
    """The demo, and an experiment with a figure of the paper."""
    write_demo(results)
    cells = [write_run(results, over_training_run(lr, decay)) for lr, decay in OVER_TRAINING]
    write_experiment(results, "fig02_cifar10", cells, "over_training")


@contextlib.contextmanager
def small_disk(place: Path, kilobytes: int) -> Iterator[Path]:
    """A disk of its own; skips where nobody may mount one."""
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "weight-decay-test", str(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"cannot mount a small disk here: {made.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as left:
        main(list(words))
    return int(left.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize("command", WRITERS)
def test_a_full_disk_is_one_sentence(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "disk", 600) as disk:
        results = disk / "results"
        write_results(results)
        if command != "collect":
            collect(results)
        tables = {path.name: path.read_bytes() for path in (results / "tables").glob("*.csv")}
        # The last page is taken, so that nothing at all can be written.
        with (disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        code, told = said(capsys, command, f"results={results}")
        assert code == 2, told
        assert "No space left on device; make room on the disk" in told
        assert len(told.strip().splitlines()) == 1
        assert tables == {path.name: path.read_bytes() for path in (results / "tables").glob("*.csv")}
        assert not list(results.rglob("*.tmp"))


@pytest.mark.parametrize("command", WRITERS)
def test_a_read_only_disk_is_one_sentence(tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with small_disk(tmp_path / "disk", 4096) as disk:
        results = disk / "results"
        write_results(results)
        if command != "collect":
            collect(results)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        code, told = said(capsys, command, f"results={results}")
        assert code == 2, told
        assert "Read-only file system; the disk is read-only" in told
        assert len(told.strip().splitlines()) == 1


def test_a_disk_that_fails_in_the_middle_leaves_the_old_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no disk can be mounted: each write after the first few is refused once."""
    write_demo(tmp_path)
    collect(tmp_path)
    wanted = {path.name: path.read_bytes() for path in (tmp_path / "tables").glob("*.csv")}
    for path in (tmp_path / "tables").glob("*.csv"):
        path.write_bytes(path.read_bytes().replace(b"demo", b"Demo"))
    old = {path.name: path.read_bytes() for path in (tmp_path / "tables").glob("*.csv")}
    fsync, calls, refused = os.fsync, [0], [0]

    def refusing(file: int) -> None:
        calls[0] += 1
        if calls[0] == refused[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(file)

    monkeypatch.setattr(os, "fsync", refusing)
    for number in (1, 2, 3):
        calls[0], refused[0] = 0, number
        assert said(capsys, "collect", f"results={tmp_path}", "drop=yes")[0] == 2
        for path in (tmp_path / "tables").glob("*.csv"):
            assert path.read_bytes() in (old[path.name], wanted[path.name])
        assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    "damage", [b"", b"\xff\xfe\0", b'a,"b\n1,2\n', b"run_id\n1\n", b"run_id,data,seed,branch,status\n"]
)
def test_a_damaged_table_is_one_sentence(tmp_path: Path, damage: bytes) -> None:
    write_demo(tmp_path)
    collect(tmp_path)
    (tmp_path / "tables" / "demo_over_training-micro.summary.csv").write_bytes(damage)
    with pytest.raises(UserError, match=r"^(The table|No run)"):
        tables_of(tmp_path, "demo_over_training", "micro")


@pytest.mark.parametrize(
    "damage", [lambda whole: whole[:-9], lambda whole: b"no gzip", lambda whole: whole[:-8] + bytes(8)]
)
def test_damaged_curves_are_one_sentence(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    write_demo(tmp_path)
    collect(tmp_path)
    path = tmp_path / "tables" / "demo_over_training-micro.curves.csv.gz"
    path.write_bytes(damage(path.read_bytes()))
    for read in (lambda: tables_of(tmp_path, "demo_over_training", "micro"), lambda: collect(tmp_path)):
        with pytest.raises(UserError, match=r"^The table .*curves\.csv\.gz"):
            read()


def test_words_among_the_numbers_of_a_table_are_found(tmp_path: Path) -> None:
    write_demo(tmp_path)
    collect(tmp_path)
    path = tmp_path / "tables" / "demo_over_training-micro.curves.csv.gz"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    at = lines[0].split(",").index("test/error")
    cells = lines[3].split(",")
    lines[3] = ",".join([*cells[:at], "0.3O4", *cells[at + 1 :]])
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    with pytest.raises(UserError, match="words in its column test/error"):
        tables_of(tmp_path, "demo_over_training", "micro")


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


@pytest.mark.parametrize("hostile", [sparse, os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir])
def test_what_is_no_file_or_far_too_large_is_refused_before_it_is_read(
    tmp_path: Path, hostile: Callable[[Path], None]
) -> None:
    hostile(tmp_path / "summary.json")
    with pytest.raises(OSError, match=r"no file|bytes|directory"):
        read_bounded(tmp_path / "summary.json")
    with pytest.raises(DamagedRunError, match="cannot be read"):
        read_summary(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["[" * 200_000, '{"status":' * 100_000, '{"status": ["completed"]}', '{"status": "' + "9" * 5000, "1e999"],
)
def test_hostile_json_is_damaged(tmp_path: Path, content: str) -> None:
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(DamagedRunError, match="summary"):
        read_summary(tmp_path)


@pytest.mark.parametrize(
    "name", ["run.lock", "metrics.jsonl", "checkpoints/step-000000003.pt", "checkpoints/step-000000003.json"]
)
def test_a_link_to_a_device_in_a_run_folder_does_not_eat_the_memory(
    tiny: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    config, labels = tiny("text"), Labels("test", "micro", "test")
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert run(config, labels) == "interrupted"
    path = folder_of(config) / name
    path.unlink()
    path.symlink_to("/dev/zero")
    try:
        assert run(config, labels) == "completed"  # from the start, where it was the only checkpoint
    except UserError as error:
        assert "is no file" in str(error)
