"""One step of debug mode enters few files of the package."""

from __future__ import annotations

import subprocess
import sys

from tests.regression import runs

MOST_FILES = 24


def test_trace_step__enters_few_files() -> None:
    """Reading the code of a step means reading 24 files, two of them for GPUs; the totals stand on the last line."""
    command = [sys.executable, "-m", "tests.regression.trace_step", "batch_size=4"]
    done = subprocess.run(command, cwd=runs.ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    files = [line for line in done.stdout.splitlines() if line.startswith("lafs_ray/")]
    assert "lafs_ray/training/train_step.py: " in done.stdout
    assert 10 <= len(files) <= MOST_FILES, done.stdout
