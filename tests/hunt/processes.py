"""Several processes at once, killed, stopped and going on; two owners where locks do not reach; other users; clocks."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import folder_of
from hunt.laboratory import LABELS, Laboratory, clear, outcome
from hunt.ledger import Ledger, quiet
from weight_decay.cli import main
from weight_decay.report.live.status import status_table
from weight_decay.report.tables.collect import collect
from weight_decay.training.run import run

SAVING = ("checkpoint.every_seconds=0",)


def forked(do: Callable[[], object]) -> int:
    """Do something in a forked process; returns its id. Exit code 3 is an exception nobody expected."""
    child = os.fork()
    if child:
        return child
    code = 3
    try:
        quiet()
        for timer in (signal.ITIMER_REAL, signal.ITIMER_PROF):
            signal.setitimer(timer, 0)
        do()
        code = 0
    except SystemExit as left:
        code = int(left.code or 0)
    finally:
        os._exit(code)


def waited(child: int) -> int:
    """The exit code of a forked process, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class _Scene:
    """Two runs to be made by whoever is there, and the way to check what became of them."""

    def __init__(self, laboratory: Laboratory) -> None:
        self.laboratory = laboratory
        self.kept, self.wanted = laboratory.finished(*SAVING)
        self.configs = [laboratory.config(number, *SAVING) for number in (0, 1)]

    def clean(self) -> None:
        """No run, but the experiment is recorded."""
        clear(self.laboratory.results)
        self.laboratory.results.mkdir()
        self.laboratory.copy_experiments(self.kept)

    def sweep(self) -> None:
        """Run what is to be run, as one process of a sweep does, and again until nobody else has a cell."""
        for _ in range(400):
            if "busy" not in [run(config, LABELS) for config in self.configs]:
                return
            time.sleep(0.05)
        raise RuntimeError("a cell stays busy")

    def look(self) -> None:
        """Look as a person does, again and again, and write tables."""
        for _ in range(6):
            status_table(self.laboratory.results, None)
            collect(self.laboratory.results)
            time.sleep(0.05)

    def ended(self) -> str:
        """Whoever died: the same command completes it, and the numbers are those of an untouched run."""
        codes = waited(forked(self.sweep))
        if codes == 3:
            raise RuntimeError("the last sweep ended with a traceback")
        return outcome(self.laboratory.results, self.wanted)


def together(laboratory: Laboratory, ledger: Ledger, cases: int, seed: int) -> None:
    """Two or three sweeps and somebody who looks, with one of them killed, terminated or stopped for a while."""
    scene = _Scene(laboratory)
    for number in range(cases):
        draw = random.Random(f"processes {seed} {number}")
        many, what = 1 + draw.randrange(3), draw.choice(["kill", "kill", "term", "stop", "nothing"])
        after, looking = draw.uniform(0.0, 0.8), draw.random() < 0.5

        def scenario(many: int = many, what: str = what, after: float = after, looking: bool = looking) -> str:
            scene.clean()
            sweeps = [forked(scene.sweep) for _ in range(many)]
            lookers = [forked(scene.look) for _ in range(2 if looking else 0)]
            time.sleep(after)
            sent = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "stop": signal.SIGSTOP}.get(what)
            if sent is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(sweeps[0], sent)
            if what == "stop":
                # While one is stopped, the others must not touch its cell; then it goes on.
                time.sleep(0.3)
                os.kill(sweeps[0], signal.SIGCONT)
            codes = [waited(child) for child in (*sweeps, *lookers)]
            if 3 in codes:
                raise RuntimeError(f"an exit code 3 in {codes}")
            return scene.ended()

        ledger.attempt("processes", f"case {number}: {many} sweeps, {what} after {after:.2f} s", scenario, 90)


def without_locks(laboratory: Laboratory, ledger: Ledger, cases: int, seed: int) -> None:
    """Two machines on a file system that keeps locks to each of them: the first finds the second out, or both agree."""
    scene = _Scene(laboratory)

    def alone() -> None:
        fcntl.flock = lambda *_: None  # type: ignore[assignment]
        with contextlib.suppress(Exception):
            for config in scene.configs:
                with contextlib.suppress(Exception):
                    run(config, LABELS)

    for number in range(cases):
        draw = random.Random(f"locks {seed} {number}")
        apart = draw.uniform(0.0, 0.5)

        def scenario(apart: float = apart, deleted: bool = number % 2 == 1) -> str:
            scene.clean()
            first = forked(scene.sweep if deleted else alone)
            time.sleep(apart)
            if deleted:
                for config in scene.configs:
                    (folder_of(config) / "run.lock").unlink(missing_ok=True)
            second = forked(scene.sweep if deleted else alone)
            codes = [waited(first), waited(second)]
            found = outcome(laboratory.results, scene.wanted)
            if found == "silent":
                return found
            again = "survived" if found == "survived" else outcome_again(scene)
            return "silent" if again == "silent" else ("survived" if codes == [0, 0] and not deleted else "refused")

        ledger.attempt("two owners", f"case {number}: {apart:.2f} s apart", scenario, 90)


def outcome_again(scene: _Scene) -> str:
    """The same command once more, which may be refused with a sentence."""
    waited(forked(scene.sweep))
    return outcome(scene.laboratory.results, scene.wanted)


def users(laboratory: Laboratory, ledger: Ledger, cases: int, seed: int) -> None:
    """Another user on the same folder: may look, and is told in a sentence what it may not write."""
    area = "another user"
    if os.geteuid() != 0:
        ledger.skip(area, "only root can be two users")
        return
    kept, _ = laboratory.finished(*SAVING)
    config = laboratory.config(0, *SAVING)
    commands: list[tuple[str, Callable[[], object]]] = [
        ("status", lambda: main(["status", f"results={laboratory.results}"])),
        ("collect", lambda: main(["collect", f"results={laboratory.results}"])),
        ("claims", lambda: main(["claims", f"results={laboratory.results}"])),
        ("run", lambda: main(laboratory.words(0, *SAVING))),
    ]
    for _, do in commands:
        # As root first: the other user may not be allowed to read the modules that are still to be loaded.
        laboratory.restore(kept)
        with contextlib.suppress(SystemExit):
            do()
    for number in range(cases):
        name, do = commands[number % len(commands)]

        def scenario(do: Callable[[], object] = do, finished: bool = number // len(commands) % 2 == 0) -> str:
            laboratory.restore(kept)
            if not finished:
                (folder_of(config) / "summary.json").unlink()
            laboratory.root.chmod(0o755)

            def as_another() -> None:
                os.setgid(65534)
                os.setuid(65534)
                do()

            code = waited(forked(as_another))
            if code not in (0, 2):
                raise RuntimeError(f"exit code {code}")
            return "refused" if code else "survived"

        ledger.attempt(area, f"case {number}: {name}", scenario, 60)


def clocks(laboratory: Laboratory, ledger: Ledger, cases: int, seed: int) -> None:
    """Clocks that are wrong, run fast, or stand still: the numbers know nothing of the time."""
    area = "clocks"
    if shutil.which("faketime") is None:
        ledger.skip(area, "there is no faketime here (Debian: apt-get install faketime)")
        return
    scene = _Scene(laboratory)
    times = ["1990-01-01 00:00:00", "2038-01-19 03:14:05", "-20y", "+30y", "+0 x100", "-3d x0.1", "2099-12-31 23:59:59"]
    here = Path(__file__).parents[1]
    for number in range(cases):
        draw = random.Random(f"clocks {seed} {number}")
        clock = times[number % len(times)]

        kill = draw.choice([None, 2.5, 4.0])
        words = laboratory.words(number % 2, *SAVING)

        def scenario(clock: str = clock, kill: float | None = kill, words: list[str] = words) -> str:
            scene.clean()
            code = (
                f"import sys; sys.path.insert(0, {str(here)!r}); import torch; torch.set_num_threads(1); "
                f"from weight_decay.cli import main; main({words!r})"
            )
            command = ["faketime", "-f", clock if clock[0] in "+-" else f"@{clock}", sys.executable, "-c", code]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=_without_cache())
            try:
                _, said = process.communicate(timeout=kill)
            except subprocess.TimeoutExpired:
                process.kill()
                _, said = process.communicate()
            if b"Traceback" in said:
                raise RuntimeError(said.decode()[-300:])
            # One run of its own has recorded an experiment of its own.
            clear(laboratory.results / "experiments")
            laboratory.copy_experiments(scene.kept)
            return scene.ended()

        ledger.attempt(area, f"case {number}: {clock}", scenario, 120)


def _without_cache() -> dict[str, str]:
    return {**os.environ, "DONT_FAKE_MONOTONIC": "0"}


class Broken:
    """A stand-in for the package wandb of which one call fails, or takes its time."""

    def __init__(self, where: str, how: Callable[[], Any]) -> None:
        self._where, self._how = where, how
        self.summary, self.config = self, self

    def __getattr__(self, name: str) -> Any:
        def call(*_: Any, **__: Any) -> Any:
            if name == self._where:
                self._how()
            return self

        return call


def mirrors(laboratory: Laboratory, ledger: Ledger, cases: int, seed: int) -> None:
    """W&B down, slow, or out of disk at each of its calls: the run ends as it would without it."""
    _, wanted = laboratory.finished(*SAVING)

    def down() -> None:
        raise ConnectionError("wandb: network is unreachable\nsecond line")

    def out_of_disk() -> None:
        raise OSError(28, "No space left on device")

    ways: list[tuple[str, Callable[[], Any]]] = [
        ("down", down),
        ("full", out_of_disk),
        ("slow", lambda: time.sleep(0.2)),
    ]
    for number in range(cases):
        where = ("init", "log", "update", "finish", "Settings")[number % 5]
        name, how = ways[number // 5 % 3]

        def scenario(where: str = where, how: Callable[[], Any] = how) -> str:
            before = sys.modules.get("wandb")
            sys.modules["wandb"] = Broken(where, how)  # type: ignore[assignment]
            try:
                for config in laboratory.started((0, 1), *SAVING, "tracking=offline"):
                    if run(config, LABELS) != "completed":
                        return "silent"
            finally:
                sys.modules.pop("wandb")
                if before is not None:
                    sys.modules["wandb"] = before
            found = outcome(laboratory.results, wanted_under_other_name(laboratory, wanted))
            return found

        ledger.attempt("W&B down, slow, out of disk", f"case {number}: {name} at {where}", scenario, 60)


def wanted_under_other_name(laboratory: Laboratory, wanted: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The tables of runs whose command says something else (`tracking=offline`)."""
    stem = next((laboratory.results / "experiments").glob("*.json")).stem
    other = {}
    for name, rows in wanted.items():
        kind = name.partition(".")[2]
        other[f"{stem}.{kind}"] = [
            {**row, **({"experiment": stem.removesuffix("-micro")} if "experiment" in row else {})} for row in rows
        ]
    return other


AREAS: tuple[Callable[[Laboratory, Ledger, int, int], None], ...] = (
    together, without_locks, users, clocks, mirrors,
)  # fmt: skip
