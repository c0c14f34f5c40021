"""What pyproject.toml cannot say: the config groups and the paper's curves go into the wheel.

They stay where people look for them, at the top of the checkout, and an editable installation reads them there.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
INSIDE = {"configs": "weight_decay/configs", "results/reference": "weight_decay/reference"}


class BuildWithConfigs(build_py):
    """build_py, and a copy of the folders in INSIDE."""

    def run(self) -> None:
        """Build, then copy; not for an editable installation, where the copies would only grow stale."""
        super().run()
        if self.editable_mode:
            return
        for source, target in INSIDE.items():
            inside = Path(self.build_lib) / target
            shutil.rmtree(inside, ignore_errors=True)
            shutil.copytree(HERE / source, inside, ignore=shutil.ignore_patterns("__pycache__"))


setup(cmdclass={"build_py": BuildWithConfigs})
