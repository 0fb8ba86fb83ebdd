"""Benchmarks as a user types them, as small as they go: that they run, not how fast."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def output(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, f"benchmarks/{script}", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_views__runs_to_the_end() -> None:
    """The benchmark of the views times all three sources of landmarks and prints its ratios."""
    printed = output("views.py", "--images", "16", "--repeats", "1")
    for source in ("per_view", "per_image", "grid"):
        assert re.search(rf"^ +\d+\.\d × the time of {source}$", printed, re.MULTILINE), printed


def test_step__equal_to_the_plain_step_and_ratio_printed() -> None:
    """The training step computes what the plain step does, and both are timed side by side."""
    printed = output(
        *("step.py", "--batch", "2", "--repeats", "1", "--prototypes", "256", "--device", "cpu")
    )
    assert "\nequal\n" in printed
    assert re.search(
        r"^step, from tokens: .* images/s, .*: ratio \d+\.\d\d$", printed, re.MULTILINE
    )


def test_partial_fc__same_loss_and_ratios_printed() -> None:
    """Partial FC on one and two processes has the dense head's loss, and a line for each side."""
    printed = output("partial_fc.py", "--classes", "3000", "--width", "16", "--repeats", "1")
    assert "First losses at r = 1 equal the dense one" in printed
    for side in ("dense", "Partial FC, r = 0.1", "Partial FC, r = 1, each of 2"):
        assert re.search(rf"^{side} +\d+ +\d+\.\d\d +\d+ +\d+ +\d+\.\d\d$", printed, re.M), printed
