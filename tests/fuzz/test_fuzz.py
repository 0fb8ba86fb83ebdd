"""A short run of the fuzzers, and what long runs have found. The long ones: docs/data.md."""

from __future__ import annotations

import random
import subprocess
import sys
import time

import pytest

from tests.fuzz.inputs import found, mutate, seeds
from tests.fuzz.targets import TARGETS

_SECONDS_EACH = 1.0


@pytest.mark.parametrize("target", TARGETS)
def test_readers__refuse_or_read_rightly(target: str) -> None:
    """Seeds, former findings and a second of mutations: no exception but DataError, no other answer than the oracle's;
    some are read and some refused, or the target tests nothing."""
    outcomes = {TARGETS[target](data) for data in [*seeds(target), *found(target)]}
    begin, number = time.monotonic(), 0
    while time.monotonic() - begin < _SECONDS_EACH:
        rng = random.Random(f"{target} {number}")
        data = mutate(target, rng.choice(seeds(target) + found(target)), rng)
        try:
            outcomes.add(TARGETS[target](data))
        except Exception as error:
            raise AssertionError(f"{target}, input {number}: {data[:400]!r}") from error
        number += 1
    assert number >= 3
    assert "read" in outcomes
    assert any(outcome.startswith("refused") for outcome in outcomes)


_BOMBS = """
import resource, time
from tests.fuzz.inputs import found
from tests.fuzz.targets import TARGETS
from tests.fuzz.inputs import seeds
TARGETS["image"](seeds("image")[0])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for target in ("image", "pairs"):
    for data in found(target):
        begin = time.process_time()
        assert TARGETS[target](data) == "refused"
        assert time.process_time() - begin < 1, (target, data[:40])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_bombs__cost_no_memory() -> None:
    """A few bytes that state gigabytes (pixels, a chunk, a place in the memo) take under 64 MB."""
    result = subprocess.run([sys.executable, "-c", _BOMBS], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert int(result.stdout) < 64 << 10, f"{result.stdout} KiB"
