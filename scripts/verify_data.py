"""Read every byte of prepared data folders and compare it with their manifests; exit code 2 if one differs."""

from __future__ import annotations

import sys
from pathlib import Path

from weight_decay.data.manifest import verify_folder
from weight_decay.errors import UserError


def main(folders: list[str]) -> int:
    """Verify each folder; the first that is not what was prepared is named."""
    if not folders:
        print("verify_data.py: name the folders to read, such as data/cifar5m", file=sys.stderr)
        return 2
    for folder in folders:
        try:
            manifest = verify_folder(Path(folder))
        except UserError as error:
            print(f"verify_data.py: {error}", file=sys.stderr)
            return 2
        size = sum(entry["bytes"] for entry in manifest["files"])
        print(f"{folder}: {len(manifest['files'])} files, {size:,} bytes, every one as prepared")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
