"""Write procedural images as CIFAR-5m's own six npz parts, or draw a sheet of them to look at.

`python scripts/make_procedural.py parts FOLDER --rows-per-part 10000 --size 32` writes the parts (runs make
their own; this is for trying the converter, or other code that reads CIFAR-5m).
`python scripts/make_procedural.py sheet shapes.png` draws twenty images of each class.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from weight_decay.data.images.procedural import CLASS_NAMES, procedural_images, write_procedural_cifar5m
from weight_decay.errors import UserError

_COLUMNS, _CELL = 20, 48


def draw_sheet(path: Path, seed: int, size: int) -> None:
    """Save a PNG with one row for each class, in the order of `CLASS_NAMES`."""
    images, labels = procedural_images(seed, np.arange(1000), size)
    rows = []
    for label in range(len(CLASS_NAMES)):
        cells = images[labels == label][:_COLUMNS]
        enlarged = [np.asarray(Image.fromarray(cell).resize((_CELL, _CELL), 0)) for cell in cells]
        rows.append(np.concatenate(enlarged, axis=1))
    Image.fromarray(np.concatenate(rows)).save(path)


def main(arguments: list[str] | None = None) -> int:
    """Write what was asked for; 0 on success, 2 on a problem the user can fix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    parts = commands.add_parser("parts", help="write part0.npz to part5.npz")
    parts.add_argument("target", type=Path, help="folder to create")
    parts.add_argument("--rows-per-part", type=int, required=True)
    sheet = commands.add_parser("sheet", help="draw a PNG to look at")
    sheet.add_argument("target", type=Path, help="the PNG to write")
    for command in (parts, sheet):
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--size", type=int, default=32, help="image side in pixels (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        if options.command == "parts":
            write_procedural_cifar5m(options.target, options.seed, options.rows_per_part, options.size, progress=True)
        else:
            draw_sheet(options.target, options.seed, options.size)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {options.target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
