"""Text preparation against the plain way of doing it, on the same documents and cores; prints the ratio.

The plain way is the one nanoGPT made common: `datasets.map` calls the tokeniser on each document and
stores the ids, then the shards of the mapped data set are joined into one uint16 memory map. It is written
afresh here. The documents are the standard library's sources, cut at line ends to OpenWebText's average
length (5 kB), as many times over as asked for.
The GPT-2 ranks need a download, so the benchmark trains a byte-level BPE with GPT-2's splitting pattern
on those documents; its tokens cost about as much to find, but the speeds below are not GPT-2's.

`python benchmarks/tokenisation.py --copies 6 --workers 2`
"""

from __future__ import annotations

import argparse
import collections
import heapq
import resource
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import regex
import tiktoken

from weight_decay.data.text.openwebtext import Preparation, prepare
from weight_decay.data.text.python_text import library_sources
from weight_decay.data.text.sources import find_text

PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
JOINING_SHARDS = 1024
DOCUMENT_CHARACTERS = 5000
GOAL = 1.5


def train_encoding(texts: list[str], merges: int) -> tiktoken.Encoding:
    """Byte-pair encoding by repeated joining of the most frequent pair (ties by the pair's bytes)."""
    counted = collections.Counter(word.encode() for text in texts for word in regex.findall(PATTERN, text))
    words = [[bytes([byte]) for byte in word] for word in counted]
    frequency = list(counted.values())
    pairs: collections.Counter[tuple[bytes, bytes]] = collections.Counter()
    places = collections.defaultdict(set)
    for number, word in enumerate(words):
        for pair in pairwise(word):
            pairs[pair] += frequency[number]
            places[pair].add(number)
    ranks = {bytes([byte]): byte for byte in range(256)}
    queue = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(queue)
    while queue and len(ranks) < 256 + merges:
        count, best = heapq.heappop(queue)
        if pairs[best] != -count:
            # Joining other pairs changed this one's count since it was queued.
            if pairs[best] > 0:
                heapq.heappush(queue, (-pairs[best], best))
            continue
        joined = best[0] + best[1]
        ranks.setdefault(joined, len(ranks))
        touched = set()
        for number in places.pop(best):
            word, merged, position = words[number], [], 0
            for pair in pairwise(word):
                pairs[pair] -= frequency[number]
            while position < len(word):
                together = tuple(word[position : position + 2]) == best
                merged.append(joined if together else word[position])
                position += 2 if together else 1
            words[number] = merged
            for pair in pairwise(merged):
                pairs[pair] += frequency[number]
                places[pair].add(number)
                touched.add(pair)
        for pair in touched:
            heapq.heappush(queue, (-pairs[pair], pair))
    return tiktoken.Encoding(
        "trained", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": len(ranks)}
    )


class Tokenise:
    """What the plain way maps over every document (a class, so that `datasets` can send it to workers)."""

    def __init__(self, encoding: tiktoken.Encoding) -> None:
        self.encoding = encoding

    def __call__(self, example: dict) -> dict:
        """The document's ids and their number."""
        ids = self.encoding.encode_ordinary(example["text"])
        ids.append(self.encoding.eot_token)
        return {"ids": ids, "len": len(ids)}


def processor_seconds() -> float:
    """Seconds of processor time used so far by this process and by its workers that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def cut(text: str) -> list[str]:
    """Parts of about 5,000 characters that end at line ends."""
    parts: list[list[str]] = [[]]
    for line in text.splitlines(keepends=True):
        if sum(map(len, parts[-1])) >= DOCUMENT_CHARACTERS:
            parts.append([])
        parts[-1].append(line)
    return ["".join(part) for part in parts]


def plain_preparation(source: Path, target: Path, encoding: tiktoken.Encoding, fraction: float, workers: int) -> int:
    """The usual preparation; returns the number of tokens."""
    import datasets  # not above: our own workers import this file, but have no use for `datasets`

    datasets.disable_progress_bars()
    target.mkdir()
    loaded = datasets.load_dataset(
        "parquet", data_files=str(source / "*.parquet"), split="train", cache_dir=str(target / "cache")
    )
    split = loaded.train_test_split(test_size=fraction, seed=0, shuffle=True)
    mapped = split.map(Tokenise(encoding), remove_columns=["text"], num_proc=workers)
    total = 0
    for name, part in mapped.items():
        length = int(np.sum(part["len"], dtype=np.uint64))
        out = np.memmap(target / f"{name}.bin", dtype=np.uint16, mode="w+", shape=(length,))
        shards, position = min(JOINING_SHARDS, len(part)), 0
        for index in range(shards):
            shard = part.shard(num_shards=shards, index=index, contiguous=True).with_format("numpy")
            joined = np.concatenate(shard["ids"][:])
            out[position : position + len(joined)] = joined
            position += len(joined)
        out.flush()
        total += length
    return total


def write_documents(folder: Path, texts: list[str], copies: int) -> int:
    """Several parquet files with row groups of 1,000 documents; returns the bytes of text."""
    folder.mkdir()
    for copy in range(copies):
        # A different first line in each copy, so that nothing can be found in a cache by its content.
        rows = [f"# copy {copy}\n{text}" for text in texts]
        pq.write_table(pa.table({"text": rows}), folder / f"part-{copy:03d}.parquet", row_group_size=1000)
    return copies * sum(len(text.encode()) for text in texts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copies", type=int, default=6)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--merges", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    texts = [part for _, content in library_sources() for part in cut(content.decode("utf-8", "replace"))]
    encoding = train_encoding(texts, options.merges)
    ratios = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_documents(folder / "source", texts, options.copies)
        print(
            f"{options.copies * len(texts):,} documents, {size / 1e6:.1f} MB, {options.workers} workers, BPE "
            f"trained here with {options.merges} merges (not GPT-2's)"
        )
        for turn in range(options.rounds):
            work = [processor_seconds()]
            begun = time.perf_counter()
            plain = plain_preparation(folder / "source", folder / f"plain{turn}", encoding, 0.01, options.workers)
            middle = time.perf_counter()
            work.append(processor_seconds())
            source = find_text(folder / "source", "text")
            wanted = Preparation("b", encoding, 0.01)
            ours = prepare(source, folder / f"ours{turn}", wanted, options.workers, progress=False)
            ended = time.perf_counter()
            work.append(processor_seconds())
            counted = sum(split["tokens"] for split in ours["fields"]["splits"].values())
            if counted != plain:
                print(f"the two disagree: {counted:,} tokens against {plain:,}", file=sys.stderr)
                return 1
            ratios.append((middle - begun) / (ended - middle))
            speeds = [plain / seconds / 1e6 for seconds in (middle - begun, ended - middle)]
            print(
                f"plain {speeds[0]:.2f}, ours {speeds[1]:.2f} million tokens/s: ratio {ratios[-1]:.2f} "
                f"(of processor time {(work[1] - work[0]) / (work[2] - work[1]):.2f})"
            )
    ratio = statistics.median(ratios)
    print(f"median ratio {ratio:.2f} (goal {GOAL}): {'met' if ratio >= GOAL else 'not met'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
