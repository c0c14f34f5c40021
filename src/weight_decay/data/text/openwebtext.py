"""Preparing OpenWebText or any other text: documents in, tokens out, in parallel and resumable.

The source is cut into pieces. Worker processes tokenise one piece at a time and write it as one shard,
atomically; when all shards are there, they are joined in order. So the result does not depend on the
number of workers or on interruptions, a finished shard is never done again, and no process ever holds
more than a few pieces.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
from tqdm import tqdm

from weight_decay.data.manifest import MANIFEST_NAME, read_manifest
from weight_decay.data.text.files import KIND, SPLITS, SplitWriter, finish_folder
from weight_decay.data.text.sources import PIECE_BYTES, Span, TextSource
from weight_decay.errors import UserError
from weight_decay.runs.files import replacing, write_text
from weight_decay.runs.lock import take

_TOKEN_TYPE = np.dtype("<u2")
_JOBS: list[_Job] = []


@dataclass(frozen=True)
class _Job:
    """All that a worker needs to turn a piece into a shard."""

    source: TextSource
    wanted: Preparation
    parts: Path

    def shard(self, number: int) -> Path:
        return self.parts / f"shard-{number:06d}.npz"

    def write_shard(self, number: int, spans: tuple[Span, ...]) -> tuple[int, int]:
        """Tokenise one piece into its shard; returns the numbers of documents and of tokens."""
        end = np.array([self.wanted.encoding.eot_token], dtype=np.uint32)
        tokens: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
        lengths: dict[str, list[int]] = {split: [] for split in SPLITS}
        empty = 0
        for document in self.source.documents(spans):
            if not document.text:
                empty += 1
                continue
            split = "val" if self._is_validation(document.key) else "train"
            encoded = encode(self.wanted.encoding, document.text)
            # Narrowed at once: the encoder's four bytes a token would be twice what a shard needs.
            tokens[split].append(np.concatenate([encoded, end]).astype(_TOKEN_TYPE))
            lengths[split].append(len(encoded) + 1)
        arrays = {"empty": np.array(empty)}
        for split in SPLITS:
            arrays[split] = np.concatenate([*tokens[split], np.array([], _TOKEN_TYPE)])
            arrays[f"{split}_lengths"] = np.array(lengths[split], dtype=np.int64)
        with replacing(self.shard(number)) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # the stub mistakes names for options
        return sum(map(len, lengths.values())), sum(map(sum, lengths.values()))

    def _is_validation(self, key: tuple[int, int]) -> bool:
        digest = hashlib.blake2b(f"{self.wanted.seed}:{key[0]}:{key[1]}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self.wanted.validation_fraction * 2**64


def encode(encoding: tiktoken.Encoding, text: str) -> np.ndarray:
    """Tokens of a text as uint32, with special tokens read as ordinary text (`encode_ordinary`)."""
    try:
        return encoding.encode_to_numpy(text, disallowed_special=())
    except UnicodeEncodeError:
        # JSON can carry lone surrogates, which are no text: they become the replacement character.
        repaired = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return encoding.encode_to_numpy(repaired, disallowed_special=())


@dataclass(frozen=True)
class Preparation:
    """What is made of a source.

    name: what the corpus is called in configs and tables.
    encoding: the tokeniser; it needs an end-of-text token and ids below 65,536.
    validation_fraction: share of the documents kept for validation, between 0 and 1; seed: chooses them.

    Raises UserError if the share is none.
    """

    name: str
    encoding: tiktoken.Encoding
    validation_fraction: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.validation_fraction < 1.0:
            raise UserError(f"the validation fraction must lie between 0 and 1, not {self.validation_fraction}.")


def prepare(
    source: TextSource,
    target: Path,
    wanted: Preparation,
    workers: int = 1,
    piece_bytes: int = PIECE_BYTES,
    progress: bool = True,
) -> dict[str, Any]:
    """Tokenise a source into a folder that `load_tokens` reads, and return its manifest.

    Each document is tokenised by itself, followed by the end-of-text token, and belongs to `val` with
    probability `wanted.validation_fraction`, by a hash of its position and `wanted.seed`. Running the same command
    again goes on where it was interrupted, or returns the finished manifest at once.

    Args:
        source: the documents (`find_text`, `fetch_dataset`).
        target: the folder to make.
        wanted: what to make of them.
        workers: processes; the result does not depend on it.
        piece_bytes: size of a piece of work; the tokens do not depend on it.
        progress: whether to draw a progress bar.

    Raises:
        UserError: bad arguments, a damaged or empty source, a target that holds something else or
            is being written by another process, or a worker that was killed.
    """
    if workers < 1:
        raise UserError(f"the number of worker processes must be at least 1, not {workers}.")
    plan = {
        "name": wanted.name,
        "source": source.describe(),
        "text_column": source.text_column,
        "encoding": describe_encoding(wanted.encoding),
        "validation_fraction": wanted.validation_fraction,
        "seed": wanted.seed,
    }
    digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
    parts = target / ".parts"
    if (target / MANIFEST_NAME).is_file():
        manifest = read_manifest(target, KIND)
        if manifest["fields"]["plan"] != digest:
            raise UserError(f"{target} already holds a text prepared otherwise: choose another folder.")
        shutil.rmtree(parts, ignore_errors=True)
        return manifest
    parts.mkdir(parents=True, exist_ok=True)
    with (parts / "lock").open("w") as file:
        if not take(file):
            raise UserError(f"another process is preparing {target}: wait for it or choose another folder.")
        _compare_plan(parts / "plan.json", plan | {"piece_bytes": piece_bytes})
        pieces = source.pieces(piece_bytes)
        job = _Job(source, wanted, parts)
        _write_shards(job, pieces, workers, progress)
        fields = {key: value for key, value in plan.items() if key != "source"}
        fields |= {"plan": digest, "end_of_text": wanted.encoding.eot_token}
        manifest = _join(job, len(pieces), target, fields)
        shutil.rmtree(parts)
    return manifest


def describe_encoding(encoding: tiktoken.Encoding) -> dict[str, Any]:
    """Name, number of ids and a checksum of every token's bytes.

    Raises:
        UserError: there is no end-of-text token, or an id does not fit 16 bits.
    """
    if "<|endoftext|>" not in encoding.special_tokens_set:
        raise UserError(f"the encoding {encoding.name} has no <|endoftext|> token: choose one that has, as gpt2.")
    if encoding.max_token_value >= 1 << 16:
        raise UserError(f"the encoding {encoding.name} has ids above 65,535, which uint16 cannot hold: choose gpt2.")
    digest = hashlib.sha256()
    for token in range(encoding.n_vocab):
        try:
            digest.update(f"{token}:".encode() + encoding.decode_single_token_bytes(token))
        except KeyError:
            continue
    return {"name": encoding.name, "vocabulary": encoding.n_vocab, "sha256": digest.hexdigest()}


def _compare_plan(path: Path, plan: dict[str, Any]) -> None:
    if not path.is_file():
        write_text(path, json.dumps(plan, indent=1))
        return
    begun = json.loads(path.read_text(encoding="utf-8"))
    differing = [key for key in plan if begun.get(key) != plan[key]]
    if differing:
        raise UserError(
            f"{path.parent.parent} holds an unfinished preparation with another {' and '.join(differing)}: "
            f"finish it with the old settings, delete {path.parent}, or choose another folder."
        )


def _write_shards(job: _Job, pieces: list[tuple[Span, ...]], workers: int, progress: bool) -> None:
    sizes = [sum(span.size for span in piece) for piece in pieces]
    waiting = [number for number in range(len(pieces)) if not job.shard(number).is_file()]
    done = sum(sizes) - sum(sizes[number] for number in waiting)
    documents = tokens = 0
    with tqdm(
        total=sum(sizes), initial=done, unit="B", unit_scale=True, desc="tokenising", disable=not progress
    ) as bar:
        for number, counts in _results(job, pieces, waiting, workers):
            documents, tokens = documents + counts[0], tokens + counts[1]
            rate = tokens / max(bar.format_dict["elapsed"], 1e-9)
            bar.set_postfix_str(f"{documents:,} documents, {rate:,.0f} tokens/s", refresh=False)
            bar.update(sizes[number])


def _results(
    job: _Job, pieces: list[tuple[Span, ...]], waiting: list[int], workers: int
) -> Iterator[tuple[int, tuple[int, int]]]:
    if workers == 1 or len(waiting) < 2:
        for number in waiting:
            yield number, job.write_shard(number, pieces[number])
        return
    # Spawned, not forked: a fork of a process with threads (pyarrow's, the progress bar's) can deadlock.
    pool = ProcessPoolExecutor(
        min(workers, len(waiting)), multiprocessing.get_context("spawn"), initializer=_begin, initargs=(job,)
    )
    try:
        futures = {pool.submit(_work, number, pieces[number]): number for number in waiting}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed (out of memory?): run the same command again, with fewer workers "
            "if need be; finished shards are kept."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(job: _Job) -> None:
    _JOBS.append(job)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def leave_with_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)

    # Without this, kill -9 of the preparation would leave its workers waiting for ever.
    threading.Thread(target=leave_with_parent, daemon=True).start()


def _work(number: int, spans: tuple[Span, ...]) -> tuple[int, int]:
    return _JOBS[0].write_shard(number, spans)


def _join(job: _Job, shards: int, target: Path, fields: dict[str, Any]) -> dict[str, Any]:
    writers = {split: SplitWriter(target, split, _TOKEN_TYPE) for split in SPLITS}
    empty = 0
    for number in range(shards):
        path = job.shard(number)
        try:
            with np.load(path, allow_pickle=False) as shard:
                empty += int(shard["empty"])
                for split in SPLITS:
                    writers[split].append(shard[split], shard[f"{split}_lengths"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            path.unlink(missing_ok=True)
            raise UserError(
                f"{path} was damaged ({error}) and has been removed: run the same command again."
            ) from error
    if not any(writer.documents for writer in writers.values()):
        raise UserError(f"{job.source.root} holds no document that is not empty.")
    fields = fields | {"empty_documents": empty}
    return finish_folder(target, writers, job.wanted.encoding.n_vocab, np.dtype("uint16"), fields)
