"""A few kills of the many that `python -m tests.kills` makes; docs/reliability.md has its result."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.kills import read_lines, summary
from tests.training.faces import ROOT


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_killed_jobs__end_with_the_result_of_undisturbed_ones(tmp_path: Path) -> None:
    """Packing and embedding, killed at random times: the same command ends with the same bytes; trials are not repeated
    when the program is started again."""
    command = [sys.executable, "-m", "tests.kills", str(tmp_path), "--plan", "pack=2", "embed=1"]
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
    lines = read_lines(tmp_path / "kills.jsonl")
    assert sum(len(line["killed_after_s"]) for line in lines) == 3
    assert all(line["equal"] for line in lines)
    assert len({(line["job"], line["trial"]) for line in lines}) == len(lines)


def test_summary__counts_by_job() -> None:
    """Kills, results and differences; a line cut by a kill is left out."""
    lines = [
        {"job": "pack", "killed_after_s": [0.1, 0.2], "equal": True},
        {"job": "pack", "killed_after_s": [0.3], "equal": False},
    ]
    assert summary(lines) == [
        "pack: 3 kills, 2 results, 1 of them different",
        "all: 3 kills, 2 results, 1 of them different",
    ]
