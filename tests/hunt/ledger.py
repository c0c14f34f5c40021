"""What the hunt tried and what came of it: the table, and the one way to try something."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weight_decay.errors import UserError
from weight_decay.runs.read import DamagedRunError

GOOD, BAD = ("refused", "survived"), ("silent", "traceback", "hang")
LIMIT = 30.0
"""Seconds after which a case counts as a hang."""
_PATIENCE = 6
MEMORY = 8 << 30
"""Bytes of addresses that a case may take."""


class TooLongError(BaseException):
    """A case that took longer than its limit; no `except Exception` takes it for its own."""


@dataclass
class Ledger:
    """How often each area ended how, and every case that ended badly."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)

    def add(self, area: str, outcome: str, case: str, why: str = "") -> None:
        """Count one case."""
        if outcome not in (*GOOD, *BAD, "skipped"):
            raise ValueError(outcome)
        self.counts.setdefault(area, Counter())[outcome] += 1
        if outcome in BAD:
            self.bad.append(f"{area}: {outcome}: {case}{': ' if why else ''}{why}")

    def skip(self, area: str, why: str) -> None:
        """An area that cannot be tried here, with the reason."""
        self.counts.setdefault(area, Counter())
        self.bad.append(f"{area}: skipped: {why}")

    def attempt(self, area: str, case: str, do: Callable[[], str], seconds: float = LIMIT) -> str:
        """Do one thing; what it returns, or how it ended, is the outcome."""
        outcome, why = ended(do, seconds)
        self.add(area, outcome, case, why)
        return outcome

    @property
    def tried(self) -> int:
        """Cases in all areas."""
        return sum(sum(counted.values()) for counted in self.counts.values())

    @property
    def failures(self) -> int:
        """Cases that were silent, a traceback or a hang."""
        return sum(counted[name] for counted in self.counts.values() for name in BAD)

    def table(self) -> str:
        """The table, and below it every case that ended badly."""
        columns = ("tried", *GOOD, *BAD)
        lines = [f"{'area':<34}" + "".join(f"{name:>11}" for name in columns)]
        total: Counter[str] = Counter()
        for area, counted in self.counts.items():
            total += counted
            lines.append(_line(area, counted))
        return "\n".join([*lines, _line("all", total), *self.bad])


def _line(area: str, counted: Counter[str]) -> str:
    numbers = (sum(counted.values()), *(counted[name] for name in (*GOOD, *BAD)))
    return f"{area:<34}" + "".join(f"{number:>11}" for number in numbers)


def ended(do: Callable[[], str], seconds: float = LIMIT) -> tuple[str, str]:
    """How a case ended, and for a bad end why."""
    try:
        with limited(seconds):
            return do(), ""
    except (UserError, DamagedRunError) as error:
        # One sentence, or it is not what was promised.
        text = str(error)
        return (
            ("refused", "") if text.strip() and len(text.splitlines()) == 1 else ("traceback", f"no sentence: {text!r}")
        )
    except SystemExit as left:
        return ("survived" if left.code in (0, None) else "refused"), ""
    except TooLongError:
        return "hang", f"more than {seconds:g} s"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        return (
            "traceback",
            f"{type(error).__name__}: {str(error)[:120]} ({Path(last.filename).name}:{last.lineno})",
        )


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """TooLongError inside, once `seconds` of the processor's time are over, or six times as many of the clock's.

    A machine that has other things to do must not make a hang of what is only slow.
    """

    def late(*_: object) -> None:
        raise TooLongError

    timers = ((signal.ITIMER_PROF, signal.SIGPROF, seconds), (signal.ITIMER_REAL, signal.SIGALRM, _PATIENCE * seconds))
    before = [signal.signal(number, late) for _, number, _ in timers]
    try:
        for timer, _, limit in timers:
            signal.setitimer(timer, limit)
        yield
    finally:
        for (timer, number, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def in_a_child(
    cases: Sequence[tuple[str, Callable[[], str]]], ledger: Ledger, area: str, seconds: float = LIMIT, each: int = 50
) -> None:
    """Try cases in forked children with bounded memory, so that neither a hang nor a crash takes the hunt with it."""
    waiting = list(cases)
    while waiting:
        batch = waiting[:each]
        done = _batch(batch, ledger, area, seconds)
        if done < len(batch):
            ledger.add(area, "hang", batch[done][0], "the process died or did not come back")
            done += 1
        waiting = waiting[done:]


def _batch(batch: Sequence[tuple[str, Callable[[], str]]], ledger: Ledger, area: str, seconds: float) -> int:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(read)
            quiet()
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            for _, do in batch:
                os.write(write, json.dumps(ended(do, seconds)).encode() + b"\n")
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    done, rest = 0, b""
    with os.fdopen(read, "rb", buffering=0) as pipe:
        # A loop in C that never looks at signals is found here.
        while select.select([pipe], [], [], _PATIENCE * seconds + 30)[0] and (new := pipe.read(65536)):
            *lines, rest = (rest + new).split(b"\n")
            for line in lines:
                outcome, why = json.loads(line)
                ledger.add(area, outcome, batch[done][0], why)
                done += 1
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return done


def quiet() -> None:
    """Send what this process and its children say to nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)


class Stopwatch:
    """Says how long each part of the hunt took."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def __call__(self, words: Any) -> None:
        """Print the time since the start with `words`."""
        print(f"[{time.monotonic() - self._started:6.0f} s] {words}", flush=True)
