"""Which code computed a number: a fingerprint of the sources that can change one."""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import tokenize
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
NUMERICS = ("data", "device", "models", "optim", "probes", "tasks", "training", "config/span.py", "seeds.py")
"""Sources that can change a run's numbers; the rest only decides what runs, and shows it."""


@functools.cache
def code_fingerprint() -> str:
    """Twelve hexadecimal digits of the sources that can change a run's numbers; comments do not count."""
    digest = hashlib.sha256()
    for name in NUMERICS:
        root = PACKAGE / name
        for file in [root] if root.is_file() else sorted(root.rglob("*.py")):
            digest.update(f"{file.relative_to(PACKAGE)}\0{essence(file.read_text('utf-8'))}\0".encode())
    return digest.hexdigest()[:12]


def essence(source: str) -> str:
    """Python source without comments, docstrings, blank lines and trailing spaces; the same in every Python."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and body:
            for statement in body:
                # Also the strings that stand below an attribute: they document and do nothing.
                value = statement.value if isinstance(statement, ast.Expr) else None
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    last = statement.end_lineno or statement.lineno
                    lines[statement.lineno - 1 : last] = [""] * (last - statement.lineno + 1)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and lines[token.start[0] - 1]:
            lines[token.start[0] - 1] = lines[token.start[0] - 1][: token.start[1]]
    return "\n".join(line.rstrip() for line in lines if line.strip())
