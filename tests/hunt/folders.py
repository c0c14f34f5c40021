"""Faults in a run folder: before a run starts or goes on, while it trains, and after it has finished."""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import folder_of
from hunt.laboratory import LABELS, Laboratory, at_step, clear, outcome
from hunt.ledger import Ledger, ended
from weight_decay.config.run import RunConfig
from weight_decay.errors import UserError
from weight_decay.training.run import run

Tables = dict[str, list[Any]]
PLAIN = ("flip", "digit", "truncate", "zero", "delete", "line", "twice", "swap", "rename")
"""What disks, editors and people do by accident."""
KINDS = (*PLAIN, "copy", "empty", "append", "garbage", "link", "folder")


def damage(path: Path, draw: random.Random, others: list[Path], kinds: tuple[str, ...] = KINDS) -> str:
    """Do one thing to a file that disks, programs and people do; returns what, in words."""
    content = path.read_bytes() if path.is_file() else b""
    kind = draw.choice(kinds)
    at = draw.randrange(len(content)) if content else 0
    other = draw.choice(others)
    if kind == "flip" and content:
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :])
    elif kind == "digit":
        digits = [index for index, byte in enumerate(content) if 48 <= byte <= 57]
        if digits:
            at = draw.choice(digits)
            digit = draw.choice([digit for digit in range(48, 58) if digit != content[at]])
            path.write_bytes(content[:at] + bytes([digit]) + content[at + 1 :])
    elif kind == "truncate":
        path.write_bytes(content[:at])
    elif kind == "zero":
        length = draw.choice([16, 512, 4096])
        path.write_bytes(content[:at] + bytes(min(length, len(content) - at)) + content[at + length :])
    elif kind == "delete":
        path.unlink(missing_ok=True)
    elif kind in ("line", "twice"):
        lines = content.splitlines(keepends=True)
        number = draw.randrange(len(lines)) if lines else 0
        again = lines[number : number + 1] * (2 if kind == "twice" else 0)
        path.write_bytes(b"".join([*lines[:number], *again, *lines[number + 1 :]]))
    elif kind == "swap" and other.is_file():
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
    elif kind == "copy" and other.is_file():
        path.write_bytes(other.read_bytes())
    elif kind == "rename":
        path.rename(path.with_name(path.name + ".old"))
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "append":
        path.write_bytes(content + draw.choice([b"\n", b"{}\n", b'{"step":6,"lr":1}\n', b"\0", content[-40:]]))
    elif kind == "garbage":
        path.write_bytes(
            draw.choice([b"[" * 100_000, draw.randbytes(300), b"null", b'{"status":"completed"}', b"\xff"])
        )
    elif kind == "link":
        path.unlink()
        path.symlink_to(draw.choice([other, Path("/dev/zero"), Path("nowhere"), path]))
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    return f"{kind} of {path.name} at {at} ({other.name})"


def misplace(runs: list[Path], draw: random.Random) -> str:
    """Do one thing to whole folders: swap, copy over, rename, delete, mix."""
    one, two = draw.sample(runs, 2)
    aside = one.parent.parent / "aside"
    kind = draw.choice(["swap", "copy", "rename", "delete", "checkpoints", "branches", "branch", "record", "merge"])
    if kind == "swap":
        one.rename(aside)
        two.rename(one)
        aside.rename(two)
    elif kind == "copy":
        shutil.rmtree(two)
        shutil.copytree(one, two)
    elif kind == "rename":
        shutil.rmtree(two)
        one.rename(two)
    elif kind == "delete":
        shutil.rmtree(one)
    elif kind in ("checkpoints", "branches"):
        shutil.rmtree(two / kind, ignore_errors=True)
        if (one / kind).is_dir():
            shutil.copytree(one / kind, two / kind)
    elif kind == "branch":
        found = sorted((one / "branches").glob("*"))
        if len(found) == 2:
            found[0].rename(aside)
            found[1].rename(found[0])
            aside.rename(found[1])
    elif kind == "record":
        for name in ("metrics.jsonl", "summary.json"):
            if (one / name).exists():
                shutil.copy(one / name, two / name)
    elif kind == "merge":
        shutil.copytree(one, two, dirs_exist_ok=True)
    return f"folders: {kind} of {one.name[-12:]} and {two.name[-12:]}"


def files(results: Path) -> list[Path]:
    """Every file of runs and experiments."""
    return sorted(
        path for folder in ("runs", "experiments") for path in (results / folder).rglob("*") if path.is_file()
    )


def _anything(results: Path, draw: random.Random) -> str:
    runs = sorted((results / "runs").iterdir())
    if len(runs) > 1 and draw.random() < 0.15:
        return misplace(runs, draw)
    there = files(results)
    told = [damage(draw.choice(there), draw, there)]
    if draw.random() < 0.1 and (there := files(results)):
        told.append(damage(draw.choice(there), draw, there))
    return ", ".join(told)


def after(laboratory: Laboratory, ledger: Ledger, cases: int, seed: int) -> None:
    """Faults in finished runs: `status` and `collect` name them, or the tables are the same."""
    kept, wanted = laboratory.finished("checkpoint.final=true")
    for number in range(cases):
        draw = random.Random(f"after {seed} {number}")
        laboratory.restore(kept)
        told = _anything(laboratory.results, draw)
        ledger.attempt("folders, after the run", f"case {number}: {told}", lambda: outcome(laboratory.results, wanted))


def before(laboratory: Laboratory, ledger: Ledger, cases: int, seed: int) -> None:
    """Faults in a run that was stopped: the same command refuses, or ends with the numbers of an untouched run."""
    saving = ("checkpoint.every_seconds=0", "checkpoint.final=true")
    _, wanted = laboratory.finished(*saving)
    configs = [laboratory.config(number, *saving) for number in (0, 1)]
    each = 6  # cases of one stopped run
    for number in range(cases):
        draw = random.Random(f"before {seed} {number}")
        if number % each == 0:
            # Steps are counted with those of the branches: 11 in all.
            kept = laboratory.half(1 + number // each % 10, *saving)
        laboratory.restore(kept)
        told = _anything(laboratory.results, draw)
        ledger.attempt(
            "folders, before going on", f"case {number}: {told}", lambda: gone_on(configs, laboratory.results, wanted)
        )
        if number % each == each - 1:
            clear(kept)


def gone_on(configs: list[RunConfig], results: Path, wanted: Tables) -> str:
    """Give the command again for each run, then look at the tables."""
    refused = False
    for config in configs:
        try:
            run(config, LABELS)
        except UserError:
            refused = True
    found = outcome(results, wanted)
    return "refused" if refused and found == "survived" else found


def during(laboratory: Laboratory, ledger: Ledger, cases: int, seed: int) -> None:
    """Faults while a run trains: it fails, is damaged, or has the numbers of an untouched run; and so afterwards."""
    saving = ("checkpoint.every_seconds=0", "checkpoint.final=true")
    kept, wanted = laboratory.finished(*saving)
    configs = [laboratory.config(number, *saving) for number in (0, 1)]
    for number in range(cases):
        laboratory.restore(kept)
        clear(folder_of(configs[1]))
        case = _Case(configs, laboratory.results, wanted, random.Random(f"during {seed} {number}"))
        # What is done is not known before it has happened.
        found, why = ended(case)
        ledger.add("folders, while it trains", found, f"case {number}: {case.told}", why)


class _Case:
    """A run with a fault at a random step, and the same command afterwards."""

    def __init__(self, configs: list[RunConfig], results: Path, wanted: Tables, draw: random.Random) -> None:
        self.told = "nothing"
        self._configs, self._results, self._wanted, self._draw = configs, results, wanted, draw

    def __call__(self) -> str:
        with at_step(1 + self._draw.randrange(10), self._fault), contextlib.suppress(UserError):
            run(self._configs[1], LABELS)
        found = outcome(self._results, self._wanted)
        # What was refused is tried again by somebody who has read why: with the same command.
        again = found if found == "survived" else gone_on(self._configs, self._results, self._wanted)
        return "silent" if "silent" in (found, again) else found

    def _fault(self) -> None:
        there = sorted(path for path in folder_of(self._configs[1]).rglob("*") if path.is_file())
        self.told = damage(self._draw.choice(there), self._draw, there)


AREAS: tuple[Callable[[Laboratory, Ledger, int, int], None], ...] = (after, before, during)
