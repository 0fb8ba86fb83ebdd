"""Generators of many records at once are numpy's own, number by number."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest

from lafs_ray.transforms.record_seeds import record_generators

LAST = 2**32 - 1


def records(largest: int, count: int) -> list[np.ndarray]:
    """Epochs, shards and keys that need all bits of a word, and the ends of the range."""
    found = [np.random.default_rng(part).integers(0, largest, count, endpoint=True) for part in range(3)]
    for part, numbers in enumerate(found):
        numbers[:2] = 0, largest
        numbers[2 + part] = 0
    return found


@pytest.mark.parametrize("seed", [0, 1, 123456789, LAST, LAST + 1, 2**70])
@pytest.mark.parametrize("largest", [99, LAST, LAST + 1, 2**62])
@pytest.mark.parametrize("count", [5, 40])
def test_generators__those_of_seed_sequences(seed: int, largest: int, count: int) -> None:
    """For few records and many, also where a number does not fit into 32 bits."""
    parts = records(largest, count)
    generators = list(record_generators(seed, *parts))
    assert len(generators) == count
    for generator, *record in zip(generators, *(part.tolist() for part in parts), strict=True):
        expected = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *record])))
        assert generator.bit_generator.state == expected.bit_generator.state


def test_generators__of_many_records_without_seed_sequences() -> None:
    """The fast way is taken, and every generator keeps its own state."""
    parts = records(LAST, 64)
    with mock.patch.object(np.random, "SeedSequence", side_effect=AssertionError):
        generators = list(record_generators(7, *parts))
    drawn = {float(generator.random()) for generator in generators}
    assert len(drawn) == 64


def test_generators__of_no_record() -> None:
    """An empty batch has none."""
    empty = np.empty(0, dtype=np.int64)
    assert list(record_generators(0, empty, empty, empty)) == []
