"""The built wheel, in an environment of its own outside the checkout."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import setuptools

from tests.training.faces import ROOT, TINY_PRETRAIN


def command(folder: Path, *line: str) -> str:
    """Run a command without this checkout on its path; return what it printed."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel, and with this environment's packages after it."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    # From a copy: setuptools writes build folders beside the sources, which other tests run in.
    source = folder / "source"
    for name in ("lafs_ray", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command(folder, *pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", "dist", str(source))
    command(folder, sys.executable, "-m", "venv", "--without-pip", "environment")
    python = folder / "environment" / "bin" / "python"
    (wheel,) = (folder / "dist").glob("*.whl")
    command(folder, *pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel))
    packages = command(folder, str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # A .pth file adds the folder, not what its own .pth files add, such as this checkout.
    (Path(packages) / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    return python.parent


@pytest.mark.parametrize("repository", [None, "https://forge.example/owner/lafs_ray"])
def test_page__of_an_index_has_no_relative_link(
    repository: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Links of README lead to the repository that pyproject.toml names, or are text; those to the web stay."""
    project = (ROOT / "pyproject.toml").read_text()
    project = re.sub(r"^Repository = .*\n", "", project, flags=re.MULTILINE)
    if repository:
        project = project.replace("[project.urls]\n", f'[project.urls]\nRepository = "{repository}"\n')
    (tmp_path / "pyproject.toml").write_text(project)
    shutil.copy(ROOT / "README.md", tmp_path)
    monkeypatch.chdir(tmp_path)
    given: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    runpy.run_path(str(ROOT / "setup.py"))
    page = given["long_description"]
    links = re.findall(r"\]\(([^)]*)\)", page)
    assert "https://arxiv.org/abs/2403.08161" in links
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    assert (f"{repository}/blob/HEAD/docs/cluster.md" in links) == bool(repository)
    assert (f"{repository}/raw/HEAD/docs/method.webp" in links) == bool(repository)
    assert "docs/cluster.md" in page


@pytest.mark.slow
def test_wheel__trains_outside_the_checkout(binaries: Path, tmp_path: Path) -> None:
    """`lafs` renders faces, pretrains with a preset and prints the status, from the wheel alone."""
    lafs = str(binaries / "lafs")
    where = command(tmp_path, str(binaries / "python"), "-c", "import lafs_ray; print(lafs_ray.__file__)")
    assert Path(where.strip()).is_relative_to(binaries.parent)
    (metadata,) = Path(where.strip()).parents[1].glob("lafs_ray-*.dist-info/METADATA")
    assert "Description-Content-Type: text/markdown" in metadata.read_text()
    assert "Pretrain face recognition on unlabeled faces" in metadata.read_text().partition("\n\n")[2]
    assert "few_shot" in command(tmp_path, lafs, "config", "--presets")
    command(tmp_path, lafs, "make-faces", "faces", "--identities", "4", "--images", "4")
    command(tmp_path, lafs, "pretrain", "debug", "data.path=faces/train.rec", *TINY_PRETRAIN, "duration=2 steps")
    assert "finished (all 2 steps)" in command(tmp_path, lafs, "status", "runs/debug")
    example = (
        "import numpy as np, lafs_ray; model = lafs_ray.load('runs/debug'); "
        "print(model.embed(np.zeros((2, 112, 112, 3), np.uint8)).shape)"
    )
    assert command(tmp_path, str(binaries / "python"), "-c", example).endswith("(2, 128)\n")
