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


def test_pack__ratios_memory_and_order() -> None:
    """Packing is timed beside a copy; a packed set mixes identities as a perfect shuffle does."""
    printed = output("pack.py", "--images", "1000", "--each", "20", "--repeats", "1")
    assert re.search(r"^packing takes \d+\.\d × a sequential copy$", printed, re.MULTILINE), printed
    means = {
        name: float(mean)
        for name, mean in re.findall(
            r"^(\w+, chunk_records \d+) +mean +([\d.]+)", printed, re.MULTILINE
        )
    }
    perfect = means["unpacked, chunk_records 1"]
    # An epoch has three batches of 256, so portions are 96 neighbours of chunks: eight of them hold
    # about 40 of the 50 identities. Perfectly shuffled, a batch of 256 has nearly all.
    assert abs(means["packed, chunk_records 256"] - perfect) < 2
    assert means["unpacked, chunk_records 256"] < perfect - 10
