"""Python files of one's own: `weight_decay.config.own.NAME` is NAME.py in the folder that `--config-dir` names.

A module of this package, so that a worker process, which inherits the environment, finds it under the same name.
"""

from __future__ import annotations

import os
from pathlib import Path

OWN_CONFIGS = "WEIGHT_DECAY_OWN_CONFIGS"
"""What `--config-dir` sets, so that processes and jobs started from here know it too."""

__path__ = [os.environ.get(OWN_CONFIGS, "")] if os.environ.get(OWN_CONFIGS) else []


def own_files() -> list[Path]:
    """The Python files in the folder of `--config-dir`; none without one."""
    folder = os.environ.get(OWN_CONFIGS)
    __path__[:] = [folder] if folder else []
    return sorted(Path(folder).glob("*.py")) if folder else []
