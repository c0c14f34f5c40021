"""`python ...` in a process of its own that need not begin from nothing: a fork of one that has imported torch.

An interpreter spends over three seconds of CPU on the imports of a run before the run begins, and the tests start some
hundred processes for their signals, locks, streams and exit codes, which are a fork's own as well. A test of what is
imported, or of what a user's installation does, starts an interpreter with `subprocess` instead.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
# What the package imports, and none of the package: where its files lie is up to the environment of each process.
# pytest, since multiprocessing imports in each child what this process was started with.
SERVER.set_forkserver_preload(["pytest", "torch", "torch._dynamo", "hydra", "omegaconf", "yaml", "tqdm"])


class Forked:
    """A running `python WORDS`, with what a `subprocess.Popen` has; its output is always read, as text."""

    def __init__(self, words: Sequence[str], cwd: Path | None = None, env: Mapping[str, str] | None = None) -> None:
        pipes = [SERVER.Pipe(duplex=False) for _ in range(2)]
        arguments = (list(words), str(cwd or Path.cwd()), dict(os.environ if env is None else env))
        self._process = SERVER.Process(target=_become, args=(*arguments, *(ours for _, ours in pipes)))
        self._process.start()
        _STARTED.append(self)
        self._heard = [_Listener(theirs) for theirs, _ in pipes]
        for _, ours in pipes:
            ours.close()

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("python", timeout or 0.0)
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it said to stdout and stderr until it ended."""
        self.wait(timeout)
        out, err = (heard.all() for heard in self._heard)
        return out, err

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Listener(threading.Thread):
    """Reads a pipe to its end, so that nobody has to wait for a reader."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__(daemon=True)
        self._pipe, self._said = pipe, b""
        self.start()

    def run(self) -> None:
        with self._pipe, os.fdopen(os.dup(self._pipe.fileno()), "rb") as stream:
            self._said = stream.read()

    def all(self) -> str:
        self.join()
        return self._said.decode()


def run(
    words: Sequence[str], cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`python WORDS`, from its start to its end."""
    process = Forked(words, cwd, env)
    out, err = process.communicate()
    return subprocess.CompletedProcess(["python", *words], process.wait(), out, err)


_STARTED: list[Forked] = []


@atexit.register
def _end_all() -> None:
    """Of a test that failed; multiprocessing would wait for them."""
    for process in _STARTED:
        process.kill()


def _become(words: list[str], cwd: str, env: dict[str, str], out: Connection, err: Connection) -> None:
    """What `python WORDS` does after its start: `-m MODULE ...`, or a script or folder and its words."""
    for pipe, number in ((out, 1), (err, 2)):
        os.dup2(pipe.fileno(), number)
        pipe.close()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:0] = [folder for folder in env.get("PYTHONPATH", "").split(os.pathsep) if folder]
    first, *rest = words
    if first == "-m":
        sys.path.insert(0, cwd)
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(first).parent))
        sys.argv = words
        runpy.run_path(first, run_name="__main__")
