"""What a run leaves behind: metrics.jsonl and summary.json first; W&B is a mirror of them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weight_decay.config.execution import TrackingConfig
from weight_decay.device.distributed import current
from weight_decay.device.memory import to_host
from weight_decay.errors import UserError, first_line
from weight_decay.runs.files import read_bounded
from weight_decay.runs.progress import Progress, tell
from weight_decay.runs.read import UNREADABLE, readable_summary
from weight_decay.runs.seal import without_seal


def finite(values: Mapping[str, float | int]) -> dict[str, float | int | None]:
    """JSON has no NaN: non-finite values become null."""
    return {k: v if isinstance(v, int) or math.isfinite(v) else None for k, v in values.items()}


class Recorder:
    """Appends one line per recorded step to metrics.jsonl and passes it on to the mirrors."""

    def __init__(self, folder: Path, mirror: Mirror | None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.latest: dict[str, float | int | None] = {}
        self._mirror = mirror
        path = folder / "metrics.jsonl"
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no file; delete the run's folder to start it again.")
        # Unbuffered: what a full disk has refused must not be written later, when somebody else may hold the folder.
        self._file = path.open("ab", buffering=0)
        with path.open("rb") as written:
            self._hash = hashlib.file_digest(written, "sha256")
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds spent in this run, including those before a resume."""
        return time.monotonic() - self._started

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Record `metrics` (device tensors or numbers) at `step`."""
        line = finite({"step": step, **to_host(metrics)})
        left = (json.dumps(line, separators=(",", ":")) + "\n").encode()
        while left:
            written = self._file.write(left)
            self._hash.update(left[:written])
            left = left[written:]
        self.latest.update(line)
        if self._mirror is not None:
            self._mirror.log(line)

    def position(self) -> dict[str, Any]:
        """Where the record stands, for the checkpoint; call `rewind` with it on resume."""
        os.fsync(self._file.fileno())
        return {"offset": self._file.tell(), **self.seal(), "seconds": self.seconds, "latest": self.latest}

    def seal(self) -> dict[str, Any]:
        """Length and SHA-256 of all that was written, for the summary: as written, whatever the file holds by now."""
        return {"bytes": self._file.tell(), "sha256": self._hash.hexdigest()}

    def rewind(self, position: Mapping[str, Any]) -> None:
        """Drop the lines written after the checkpoint: the resumed run writes them again.

        UserError if the lines before it are not those that were there when it was made.
        """
        if os.fstat(self._file.fileno()).st_size < position["offset"]:
            raise UserError(
                f"{self.folder / 'metrics.jsonl'} is shorter than the checkpoint says, so lines were lost; "
                "delete the run's folder to start it again."
            )
        with (self.folder / "metrics.jsonl").open("rb") as file:
            self._hash = hashlib.sha256(file.read(position["offset"]))
        if position["offset"] and position["sha256"] != self._hash.hexdigest():
            raise UserError(
                f"{self.folder / 'metrics.jsonl'} was changed after it was written, so its numbers are not this run's; "
                "delete the run's folder to start it again."
            )
        self._file.truncate(position["offset"])
        self._file.seek(position["offset"])
        self.latest = dict(position["latest"])
        self._started = time.monotonic() - position["seconds"]

    def close(self) -> None:
        """Force the record to disk."""
        os.fsync(self._file.fileno())
        self._file.close()


class NoRecord(Recorder):
    """The recorder of the processes that do not write: it remembers what was measured last, and nothing else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.latest: dict[str, float | int | None] = {}
        self._started = time.monotonic()

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Remember the step without waiting for the device."""
        self.latest["step"] = step

    def position(self) -> dict[str, Any]:
        """Nothing to come back to."""
        return {}

    def seal(self) -> dict[str, Any]:
        """Nothing was written."""
        return {}

    def rewind(self, position: Mapping[str, Any]) -> None:
        """Nothing to drop."""

    def close(self) -> None:
        """Nothing to close."""


def recorder(folder: Path, mirror: Mirror | None = None) -> Recorder:
    """The recorder of this process: the one that writes, or one that remembers nothing."""
    return Recorder(folder, mirror) if current().writes else NoRecord(folder)


class Mirror:
    """W&B as a mirror of the record. Whatever goes wrong with it is said once, and the run goes on without it.

    It holds what `weight-decay pull` needs to make the tables again: the lines of metrics.jsonl in the history; at the
    end summary.json and those of the branches in the summary, and in the config, under `experiments`, the files of all
    experiments known by then that the run is a cell of.
    """

    def __init__(self, tracking: TrackingConfig, run_id: str, name: str, group: str, config: Any, folder: Path) -> None:
        self._run: Any = None
        self._id, self._folder = run_id, folder
        if tracking.mode == "disabled":
            return
        try:
            import wandb

            self._run = wandb.init(
                mode=tracking.mode,
                project=tracking.project,
                entity=tracking.entity,
                id=run_id,
                name=name,
                group=group,
                config=config,
                dir=folder,
                resume="allow" if tracking.mode == "online" else None,
                settings=wandb.Settings(
                    silent=True, console="off", x_disable_stats=True, x_disable_meta=True, init_timeout=30
                ),
            )
        except Exception as error:
            self._fail(error)

    def log(self, line: Mapping[str, Any]) -> None:
        """Pass one line of metrics.jsonl on."""
        if self._run is not None:
            try:
                # Null means measured but not finite: left out, it would mean not measured.
                self._run.log({k: math.nan if v is None else v for k, v in line.items()}, step=line["step"])
            except Exception as error:
                self._fail(error)

    def finish(self, summary: Mapping[str, Any], ok: bool) -> None:
        """Pass on how the run ended and what its folder says of it, and close the W&B run."""
        if self._run is not None:
            try:
                self._run.config.update({"experiments": self._experiments()}, allow_val_change=True)
                self._run.summary.update({**self._facts(), **summary})
                self._run.finish(exit_code=0 if ok else 1)
            except Exception as error:
                self._fail(error)
            self._run = None

    def _facts(self) -> dict[str, Any]:
        """summary.json without the final metrics, which the history has; those of the branches whole."""
        branches = {path.name: readable_summary(path) for path in sorted((self._folder / "branches").glob("*"))}
        facts = {name: value for name, value in readable_summary(self._folder).items() if name != "final"}
        return {**facts, "branches": branches} if branches else facts

    def _experiments(self) -> list[Any]:
        """What results/experiments says of the experiments with this run among their cells."""
        found = []
        for path in sorted((self._folder.parent.parent / "experiments").glob("*.json")):
            with contextlib.suppress(*UNREADABLE):  # a damaged file is not a run's matter
                record = json.loads(read_bounded(path))
                if any(cell["run_id"] == self._id for cell in record["cells"]):
                    found.append(without_seal(record))
        return found

    def _fail(self, error: Exception) -> None:
        self._run = None
        reason = first_line(error)
        tell(f"W&B: {reason}; the run goes on without it, its own files are complete.")


@dataclass(frozen=True)
class Telling:
    """Who hears how a stretch goes: the record, the progress bar, and whoever reads the lines that are said."""

    recorder: Recorder
    progress: Progress
    say: Callable[[str], None]


def speaker(title: str) -> Callable[[str], None]:
    """Print one line about a run without breaking the progress bars."""
    writes = current().writes
    return lambda text: tell(f"{title}: {text}") if writes else None
