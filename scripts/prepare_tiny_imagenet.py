"""Decode Tiny-ImageNet's JPEGs once into the memory-mapped folder that `data=tiny_imagenet` reads.

Fetch and extract the archive yourself, then run
`python scripts/prepare_tiny_imagenet.py tiny-imagenet-200 data/tiny_imagenet`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from weight_decay.data.images.tiny_imagenet import convert_tiny_imagenet
from weight_decay.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Convert, then say what was made; 0 on success, 2 on a problem the user can fix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the extracted folder, the one with wnids.txt")
    parser.add_argument("target", type=Path, help="folder to create, usually data/tiny_imagenet")
    options = parser.parse_args(arguments)
    try:
        manifest = convert_tiny_imagenet(options.source, options.target)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    fields = manifest["fields"]
    print(
        f"{options.target}: {fields['train_images']:,} train and {fields['test_images']:,} test images of"
        f" {len(fields['wnids'])} classes, fingerprint {manifest['fingerprint'][:16]}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
