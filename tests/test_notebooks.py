"""The notebooks run from top to bottom, in an empty folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from notebooks.execute import FOLDER, NAMES, run_notebook


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_notebook__runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell runs, and shows as many outputs as are stored in the file."""
    monkeypatch.chdir(tmp_path)
    path = FOLDER / f"{name}.ipynb"
    stored = json.loads(path.read_text(encoding="utf-8"))
    for cell, before in zip(run_notebook(path)["cells"], stored["cells"], strict=True):
        found = [output["output_type"] for output in cell.get("outputs", [])]
        assert found == [output["output_type"] for output in before.get("outputs", [])]


def test_notebooks__are_all_listed() -> None:
    """Each notebook of the folder is run by the test."""
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NAMES)
