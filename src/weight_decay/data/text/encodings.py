"""The two encodings a text is prepared with: the GPT-2 BPE, and plain bytes.

The BPE is two files, whatever they are called: the merges (`vocab.bpe`, `merges.txt`) and the ids (`encoder.json`,
`vocab.json`). They are known by length and SHA-256, so any copy of them will do.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import tiktoken

from weight_decay.config.text import BYTES_VOCABULARY
from weight_decay.errors import UserError

END_OF_TEXT = "<|endoftext|>"
# GPT-2's way of cutting a text into words, as released.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class _BpeFile:
    """One of GPT-2's two files: the names it goes by, its length in bytes and its SHA-256."""

    names: tuple[str, ...]
    size: int
    sha256: str

    def __str__(self) -> str:
        return f"{self.names[0]} (also called {' or '.join(self.names[1:])}; {self.size:,} bytes)"


# The last name is the one that tiktoken's cache gives it.
_MERGES = _BpeFile(
    ("vocab.bpe", "merges.txt", "6d1cbeee0f20b3d9449abfede4726ed8212e3aee"),
    456_318,
    "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
)
_IDS = _BpeFile(
    ("encoder.json", "vocab.json", "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6"),
    1_042_301,
    "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
)


def bytes_encoding() -> tiktoken.Encoding:
    """Every byte is its own id, and 256 is end-of-text: no merges, nothing to fetch."""
    return tiktoken.Encoding(
        "bytes",
        pat_str=r"\S+|\s+",
        mergeable_ranks={bytes([byte]): byte for byte in range(256)},
        special_tokens={END_OF_TEXT: BYTES_VOCABULARY - 1},
    )


def gpt2_encoding(folder: Path | None = None) -> tiktoken.Encoding:
    """The GPT-2 BPE (50,257 ids), from its two files in `folder`, else from tiktoken's cache or the network.

    Raises:
        UserError: it is in none of these; the message says which two files are needed.
    """
    if folder is not None:
        return _from_files(_find(folder, _MERGES), _find(folder, _IDS))
    try:
        return tiktoken.get_encoding("gpt2")
    except (OSError, ValueError) as error:
        raise UserError(
            "the GPT-2 BPE is not on this machine and could not be fetched (no network?): put any copy of its two "
            f"files, {_MERGES} and {_IDS}, in a folder and name it with BPE=FOLDER (--bpe FOLDER for the script), or "
            "do without it with ENCODING=bytes (--encoding bytes) where the text is your own."
        ) from error


def _find(folder: Path, wanted: _BpeFile) -> bytes:
    """The content of the file in `folder` that is the wanted one; names do not matter."""
    try:
        files = sorted(path for path in folder.expanduser().iterdir() if path.is_file())
    except OSError as error:
        raise UserError(f"BPE: {folder} cannot be read ({error.strerror}); name the folder of the two files.") from None
    for path in files:
        if path.stat().st_size == wanted.size:
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() == wanted.sha256:
                return content
    wrong = [path.name for path in files if path.name in wanted.names]
    found = f"{wrong[0]} there is another file" if wrong else "it is not there"
    raise UserError(
        f"BPE: {folder} must hold GPT-2's {wanted} with SHA-256 {wanted.sha256[:12]}..., but {found}; any copy will do."
    )


def _from_files(merges: bytes, ids: bytes) -> tiktoken.Encoding:
    byte_of = _byte_of_letter()
    ranks = {bytes([byte]): rank for rank, byte in enumerate(byte_of.values())}
    for line in merges.decode("utf-8").splitlines()[1:]:
        pair = line.replace(" ", "")
        ranks[bytes(byte_of[letter] for letter in pair)] = len(ranks)
    listed = {
        bytes(byte_of[c] for c in word): number for word, number in json.loads(ids).items() if word != END_OF_TEXT
    }
    # With both checksums right this cannot fail, unless the reading above is wrong.
    assert ranks == listed
    return tiktoken.Encoding("gpt2", pat_str=_WORDS, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: len(ranks)})


def _byte_of_letter() -> dict[str, int]:
    """GPT-2's files write a byte as a letter: printable ones as themselves, the others from U+0100 on, in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
