"""A short run of the fuzzers that take files apart, and the limits of their runner. A long one: docs/reliability.md."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.fuzz.readers import TARGETS
from tests.fuzz.structured_run import FINE, made, outcome_of

_INPUTS = 20
# Inputs that ended in another exception, or in a message of pages, before their readers were fixed.
_FOUND = {"template_npy": [81], "override": [160], "weights": [69]}


@pytest.mark.parametrize("target", TARGETS)
def test_readers__take_apart_or_refuse(target: str) -> None:
    """Sound files are read; those put together in another way are read or refused, nothing else, and some of each."""
    outcomes = Counter(outcome_of(target, data) for data in TARGETS[target][2]())
    assert outcomes["read"]
    for number in [*range(_INPUTS), *_FOUND.get(target, [])]:
        outcome = outcome_of(target, made(target, 0, number))
        assert outcome in FINE, f"input {number} of {target}: {outcome}"
        outcomes[outcome] += 1
    # Logs leave out single lines, so none of them is refused.
    assert len(outcomes) > 1 or target in ("metrics", "warnings", "eval")


@pytest.mark.long
def test_runner__is_continued_and_counts_every_input(tmp_path: Path) -> None:
    """A second start goes on where the first one ended, with the same inputs."""
    command = [
        sys.executable,
        "-m",
        "tests.fuzz.structured_run",
        "--targets",
        "frames",
        "trial",
        "--state",
        str(tmp_path),
    ]
    for inputs in (30, 60):
        result = subprocess.run([*command, "--inputs", str(inputs)], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr[-2000:]
        state = json.loads((tmp_path / "structured-0.json").read_text())
        assert [state[target]["done"] for target in ("frames", "trial")] == [inputs // 2] * 2
        assert f"{inputs} inputs: " in result.stdout
    counts = Counter(outcome_of("trial", made("trial", 0, number)) for number in range(30))
    assert counts == Counter(state["trial"]["counts"])
