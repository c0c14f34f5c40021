"""Tokenise any local text, with the GPT-2 BPE or as bytes, into a folder that `data=text` reads.

`python scripts/prepare_text.py --from my_texts --target data/my_texts`

`--from` is a .txt, .jsonl or .parquet file, a folder of them, or a Hugging Face dataset saved to disk.
Interrupted or killed, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from weight_decay.data.text.encodings import bytes_encoding, gpt2_encoding
from weight_decay.data.text.openwebtext import Preparation, prepare
from weight_decay.data.text.sources import find_text
from weight_decay.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Prepare the text; 0 on success, 2 on a problem the user can fix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", type=Path, required=True, help="where the documents are")
    parser.add_argument("--target", type=Path, required=True, help="folder to create")
    parser.add_argument(
        "--encoding", choices=("gpt2", "bytes"), default="gpt2", help="GPT-2's 50,257 ids, or 257: bytes, end-of-text"
    )
    parser.add_argument("--bpe", type=Path, help="folder with GPT-2's vocab.bpe and encoder.json (default: fetched)")
    parser.add_argument("--text-column", default="text", help="of .jsonl, .parquet, dataset (default: %(default)s)")
    parser.add_argument(
        "--validation-fraction",
        type=float,
        default=0.05,
        help="share of the documents (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="chooses them (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    options = parser.parse_args(arguments)
    try:
        wanted = Preparation(
            options.target.resolve().name,
            bytes_encoding() if options.encoding == "bytes" else gpt2_encoding(options.bpe),
            options.validation_fraction,
            options.seed,
        )
        source = find_text(options.source, options.text_column)
        manifest = prepare(source, options.target, wanted, options.workers)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here.", file=sys.stderr)
        return 130
    for split, counts in manifest["fields"]["splits"].items():
        print(f"{split}: {counts['documents']:,} documents, {counts['tokens']:,} tokens")
    print(f"{options.target}: fingerprint {manifest['fingerprint'][:12]}")
    target = options.target
    data = f"data={'text_bytes' if options.encoding == 'bytes' else 'text'} data.root={target.parent}"
    print("what decay does to a small model on it: weight-decay experiment=demo_under_training scale=micro", end=" ")
    print(data if target.name == "text" else f"{data} data.name={target.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
