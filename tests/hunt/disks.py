"""Disks that are full at each page, or read-only, under every command that writes."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from hunt.laboratory import LABELS, Laboratory, clear, outcome, tables
from hunt.ledger import Ledger
from weight_decay.cli import main
from weight_decay.errors import UserError
from weight_decay.report.tables.collect import collect
from weight_decay.training.run import run


@contextlib.contextmanager
def disk(place: Path, kilobytes: int) -> Iterator[None]:
    """A disk of its own at `place`; OSError where nobody may mount one."""
    clear(place)
    place.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={kilobytes}k", "hunt", place)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)
        place.rmdir()


def _mount(*words: object) -> None:
    done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(done.stderr.strip())


def full(laboratory: Laboratory, ledger: Ledger, cases: int, seed: int) -> None:
    """A run on a disk that fills up after ever more pages: refused or failed, and complete once there is room."""
    area = "disks, full at each page"
    saving = ("checkpoint.every_seconds=0",)
    kept, wanted = laboratory.finished(*saving)
    configs = [laboratory.config(number, *saving) for number in (0, 1)]
    used = sum(path.stat().st_size + 4096 for path in kept.rglob("*")) // 1024

    def on_a_disk(kilobytes: int) -> str:
        with disk(laboratory.results, kilobytes):
            with contextlib.suppress(OSError):
                laboratory.copy_experiments(kept)
            statuses = []
            for config in configs:
                try:
                    statuses.append(run(config, LABELS))
                except UserError:
                    statuses.append("refused")
            if outcome_without_tables(laboratory, wanted) == "silent":
                return "silent"
            _mount("-o", f"remount,size={8 * used}k", laboratory.results)
            laboratory.copy_experiments(kept)
            for config in configs:
                run(config, LABELS)
            found = outcome(laboratory.results, wanted)
            if found != "survived":
                return "silent"  # with room on the disk nothing may be left of it
            return "survived" if statuses == ["completed", "completed"] else "refused"

    try:
        for number in range(cases):
            kilobytes = 8 + 4 * number if cases > used // 4 else 8 + (used * number // cases)
            ledger.attempt(area, f"{kilobytes} KiB", lambda size=kilobytes: on_a_disk(size), 60)  # type: ignore[misc]
    except OSError as error:
        ledger.skip(area, str(error))


def outcome_without_tables(laboratory: Laboratory, wanted: dict[str, list[object]]) -> str:
    """What `collect` makes of the folders, with the tables somewhere else than on the full disk."""
    place = laboratory.root / "tables-elsewhere"
    clear(place)
    try:
        collected = collect(laboratory.results, tables=place)
    except UserError:
        return "refused"
    return "refused" if collected.damaged or collected.unfinished else "survived"


def reading(laboratory: Laboratory, ledger: Ledger, cases: int, seed: int) -> None:
    """`status`, `collect`, `claims` on disks that are full or read-only: one sentence, and the old tables."""
    area = "disks, of the reading commands"
    kept, wanted = laboratory.finished()

    def command(name: str, kilobytes: int, read_only: bool) -> str:
        with disk(laboratory.results, 4096):
            laboratory.copy_all(kept)
            filler = laboratory.results / "filler"
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while file.write(bytes(4096)):
                    pass
            with filler.open("r+b") as file:
                file.truncate(max(0, filler.stat().st_size - 1024 * kilobytes))
            if read_only:
                _mount("-o", "remount,ro", laboratory.results)
            try:
                main([name, f"results={laboratory.results}"])
            except SystemExit as left:
                if left.code not in (0, None):
                    return "refused"
            if name != "collect" or read_only:
                return "survived"
            return outcome_of_tables(laboratory, wanted)

    try:
        for number in range(cases):
            name = ("collect", "claims", "status")[number % 3]
            ledger.attempt(
                area,
                f"{name}, {4 * number} KiB left",
                lambda name=name, number=number: command(name, 4 * (number // 6), number % 6 > 4),  # type: ignore[misc]
            )
    except OSError as error:
        ledger.skip(area, str(error))


def outcome_of_tables(laboratory: Laboratory, wanted: dict[str, list[object]]) -> str:
    """Whether the tables that were just written are the right ones."""
    return "survived" if tables(laboratory.results) == wanted else "silent"


AREAS: tuple[Callable[[Laboratory, Ledger, int, int], None], ...] = (full, reading)
