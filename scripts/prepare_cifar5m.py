"""Convert CIFAR-5m's six npz parts to the memory-mapped folder that `data=cifar5m` reads.

Fetch part0.npz to part5.npz yourself (about 3 GB each; the address is in the CIFAR-5m repository), then run
`python scripts/prepare_cifar5m.py FOLDER_WITH_PARTS data/cifar5m`. Killed half-way, the same command goes on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from weight_decay.data.images.cifar5m import convert_cifar5m, load_cifar5m
from weight_decay.data.images.cifar5m_parts import OFFICIAL_PART_ROWS
from weight_decay.data.manifest import verify_folder
from weight_decay.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Convert, then say what was made; 0 on success, 2 on a problem the user can fix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder with the six npz parts")
    parser.add_argument("target", type=Path, help="folder to create, usually data/cifar5m")
    parser.add_argument(
        "--part-rows",
        type=int,
        default=OFFICIAL_PART_ROWS,
        help="rows every part must have (default: %(default)s, as published)",
    )
    parser.add_argument("--verify", action="store_true", help="read every byte of the result and check it again")
    parser.add_argument("--statistics", action="store_true", help="print mean and std of the training channels")
    options = parser.parse_args(arguments)
    try:
        manifest = convert_cifar5m(options.source, options.target, part_rows=options.part_rows)
        if options.verify:
            verify_folder(options.target)
        fields = manifest["fields"]
        print(
            f"{options.target}: {fields['parts']} parts of {fields['part_rows']:,} images,"
            f" {fields['size']} pixels wide, made by {fields['origin']['name']},"
            f" fingerprint {manifest['fingerprint'][:16]}"
        )
        if options.statistics:
            mean, deviation = load_cifar5m(options.target, "train", test_images=1).channel_statistics()
            print(f"training channels: mean {mean.round(2).tolist()}, std {deviation.round(2).tolist()}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
