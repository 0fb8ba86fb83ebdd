"""Builds the wheel with the presets of `configs/`; everything else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

TASKS = ("pretrain", "finetune", "landmarks", "sweep")


class BuildWithPresets(build_py):
    """Copies the presets into the package, where `lafs_ray/config/presets.py` finds them."""

    def run(self) -> None:
        """Build the package, then add the presets; an editable install reads those of the checkout."""
        super().run()
        if self.editable_mode:
            return
        for task in TASKS:
            folder = Path(self.build_lib) / "lafs_ray" / "configs" / task
            folder.mkdir(parents=True, exist_ok=True)
            for file in sorted(Path("configs", task).glob("*.yaml")):
                shutil.copyfile(file, folder / file.name)


setup(cmdclass={"build_py": BuildWithPresets})
