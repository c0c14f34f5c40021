"""Fetch OpenWebText and tokenise it with the GPT-2 BPE into `<root>/openwebtext` (for `data=openwebtext`).

`python scripts/prepare_openwebtext.py --root data`

Needs about 25 GB for the fetched files, 20 GB for the tokens and as much again while it works. Interrupted
or killed, the same command goes on where it was. Without a network: `--source FOLDER` names the dataset's
parquet files (or any local copy of the documents), `--bpe FOLDER` the folder with GPT-2's two BPE files.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from weight_decay.data.text.encodings import gpt2_encoding
from weight_decay.data.text.openwebtext import Preparation, prepare
from weight_decay.data.text.sources import fetch_dataset, find_text
from weight_decay.errors import UserError

DATASET = "Skylion007/openwebtext"
DOCUMENTS = 8_013_769


def main(arguments: list[str] | None = None) -> int:
    """Prepare OpenWebText; 0 on success, 2 on a problem the user can fix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="data folder; openwebtext is made in it")
    parser.add_argument("--source", type=Path, help="local documents, instead of fetching them")
    parser.add_argument("--bpe", type=Path, help="folder with GPT-2's vocab.bpe and encoder.json (default: fetched)")
    parser.add_argument("--revision", help=f"branch, tag or commit of {DATASET} to fetch")
    parser.add_argument("--text-column", default="text", help="of the documents (default: %(default)s)")
    parser.add_argument(
        "--validation-fraction",
        type=float,
        default=0.0005,
        help="share of the documents (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="chooses them (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    options = parser.parse_args(arguments)
    target = options.root / "openwebtext"
    try:
        # First, because it fails at once without a network, and fetching the documents takes long.
        wanted = Preparation("openwebtext", gpt2_encoding(options.bpe), options.validation_fraction, options.seed)
        if options.source is None:
            source = fetch_dataset(DATASET, options.text_column, options.revision)
        else:
            source = find_text(options.source, options.text_column)
        manifest = prepare(source, target, wanted, options.workers)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here.", file=sys.stderr)
        return 130
    splits = manifest["fields"]["splits"]
    for split, counts in splits.items():
        print(f"{split}: {counts['documents']:,} documents, {counts['tokens']:,} tokens")
    print(f"{target}: fingerprint {manifest['fingerprint'][:12]}")
    found = sum(counts["documents"] for counts in splits.values())
    if found != DOCUMENTS:
        print(f"note: OpenWebText has {DOCUMENTS:,} documents, this text has {found:,}: say so with your results.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
