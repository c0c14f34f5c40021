"""The command line with a compiler that needs no toolchain, for torchrun: `compiled_main.py key=value ...`."""

from __future__ import annotations

from weight_decay.cli import main
from weight_decay.device import compiling

if __name__ == "__main__":
    compiling.BACKEND = "aot_eager"
    main()
