"""The embedded text: the Python standard library's own sources as bytes (real text, no download).

Every machine with Python has it. Tests and codec tables are left out. The corpus differs between
Python versions, so each version has its own folder, and manifest and fingerprint name it.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from weight_decay.config.registry import DATA
from weight_decay.config.text import TokenData
from weight_decay.data.manifest import MANIFEST_NAME, read_manifest
from weight_decay.data.text.files import KIND, SPLITS, SplitWriter, TokenSet, finish_folder, open_folder
from weight_decay.errors import UserError

VOCABULARY = 256
END_OF_TEXT = 0
VALIDATION_FRACTION = 0.05
_LEFT_OUT = {"test", "tests", "idle_test", "encodings", "__pycache__"}


def ensure_python_text(root: Path) -> Path:
    """Return the folder with the standard library's text, making it below `root` on first use.

    The folder holds `train.bin` and `val.bin` (uint8, vocabulary 256, about 10 MB and 1 MB) with byte
    0 after each document. A document is in `val` when the SHA-256 of its path below the library
    says so, hence the split does not change when other files come or go. Two processes may start at
    once: each writes a folder of its own, and the first to finish gives it the name.

    Raises:
        UserError: the standard library has no readable sources, or the folder is damaged.
    """
    folder = Path(root) / f"python_text-{platform.python_version()}"
    if folder.is_dir():
        read_manifest(folder, KIND)
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise UserError(f"{root} cannot hold the Python text ({error}): choose another data folder.") from error
    try:
        _write(scratch)
        scratch.chmod(0o755)  # mkdtemp makes it private, but colleagues may share the data folder
        try:
            scratch.rename(folder)
        except OSError:
            if not (folder / MANIFEST_NAME).is_file():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _write(folder: Path) -> None:
    dtype = np.dtype("uint8")
    writers = {split: SplitWriter(folder, split, dtype) for split in SPLITS}
    for name, content in library_sources():
        document = np.frombuffer(content + bytes([END_OF_TEXT]), dtype=dtype)
        number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        split = "val" if number < VALIDATION_FRACTION * 2**64 else "train"
        writers[split].append(document, np.array([len(document)]))
    fields = {
        "name": "python_text",
        "python": platform.python_version(),
        "end_of_text": END_OF_TEXT,
        "encoding": "bytes",
        "validation_fraction": VALIDATION_FRACTION,
    }
    finish_folder(folder, writers, VOCABULARY, dtype, fields)


def library_sources() -> Iterator[tuple[str, bytes]]:
    """Each source's path below the library and its bytes, in the order of the paths."""
    library = Path(sysconfig.get_path("stdlib"))
    found: list[Path] = []
    # Only the library's own names: what was installed beside them would differ from machine to machine.
    for module in sys.stdlib_module_names - _LEFT_OUT:
        found.extend(path for path in [library / f"{module}.py"] if path.is_file())
        found.extend((library / module).rglob("*.py"))
    named = {path.relative_to(library).as_posix(): path for path in found}
    for name in sorted(named):
        if not _LEFT_OUT & set(name.split("/")):
            content = named[name].read_bytes()
            if content and END_OF_TEXT not in content:
                yield name, content


@DATA.add("python_text")
@dataclass(frozen=True)
class PythonText(TokenData):
    """The standard library's sources as bytes, made on first use."""

    tokens: ClassVar[float] = 9.8e6

    def load(self, split: str) -> TokenSet:
        """One split, as memory maps."""
        return open_folder(ensure_python_text(Path(self.root)), split)
