"""Builds the wheel with the presets of `configs/` and README.md as its page; everything else is in pyproject.toml."""

import re
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


def package_page() -> str:
    """Return README.md for a package index, which has none of the repository's files.

    Relative links lead to the repository named in [project.urls]; without one, their text is left, and no picture.
    """
    found = re.search(r'^Repository = "(.*)"$', Path("pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)

    def link(match: re.Match[str]) -> str:
        is_picture, text, path = match.groups()
        if not found:
            return "" if is_picture else text
        folder = "raw" if is_picture else "blob"
        return f"{is_picture}[{text}]({found[1]}/{folder}/HEAD/{path})"

    return re.sub(r"(!?)\[([^]]*)\]\((?!\w+:|#)([^)]*)\)", link, Path("README.md").read_text(encoding="utf-8"))


setup(
    cmdclass={"build_py": BuildWithPresets},
    long_description=package_page(),
    long_description_content_type="text/markdown",
)
