"""The documentation as a web site."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.training.faces import ROOT


def test_site__builds(tmp_path: Path) -> None:
    """`make site` has no warnings, needs no network, and makes a page of every document."""
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {path.parent.name for path in tmp_path.glob("*/index.html")}
    documents = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    assert documents <= pages
    assert "https://fonts" not in (tmp_path / "index.html").read_text()


def test_citation__names_the_paper() -> None:
    """CITATION.cff is YAML of the citation file format, with the paper to cite."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["preferred-citation"]["title"].startswith("LAFS: ")
    assert len(citation["preferred-citation"]["authors"]) == 4
