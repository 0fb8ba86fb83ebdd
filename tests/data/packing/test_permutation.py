from __future__ import annotations

import numpy as np
import pytest

from lafs_ray.data.packing.sorted_runs import FeistelPermutation


@pytest.mark.parametrize("num_records", [1, 2, 3, 5, 16, 17, 1000, 4097, 65_536, 100_003])
def test_positions__are_a_permutation(num_records: int) -> None:
    """Every record has a distinct position, for any number of records."""
    positions = FeistelPermutation(num_records, 0).positions(0, num_records)
    np.testing.assert_array_equal(np.sort(positions), np.arange(num_records))


def test_positions__of_a_range_equal_those_of_the_whole() -> None:
    """The positions of records 300…700 do not depend on the range that a worker reads."""
    permutation = FeistelPermutation(1000, 7)
    np.testing.assert_array_equal(permutation.positions(300, 700), permutation.positions(0, 1000)[300:700])


def test_positions__depend_on_the_seed_and_never_change() -> None:
    """An interrupted packing continues with the same order in any version: recorded here."""
    assert FeistelPermutation(10, 0).positions(0, 10).tolist() == RECORDED
    assert FeistelPermutation(1000, 0).positions(0, 9).tolist() != FeistelPermutation(1000, 1).positions(0, 9).tolist()


RECORDED = [0, 6, 7, 5, 2, 8, 4, 3, 9, 1]


def test_positions__are_spread_like_a_random_permutation() -> None:
    """Blocks of a sorted source are spread evenly over shards: chi-square of 64 x 64 cells.

    3969 degrees of freedom: 5 standard deviations are 445. Neighbors part as in a random order,
    by a third of the length on average.
    """
    count = 262_144
    positions = FeistelPermutation(count, 5).positions(0, count)
    cells = np.bincount(np.arange(count) // 4096 * 64 + positions // 4096, minlength=4096)
    chi_square = ((cells - 64.0) ** 2 / 64.0).sum()
    assert abs(chi_square - 63 * 63) < 445
    assert np.abs(np.diff(positions)).mean() / count == pytest.approx(1 / 3, abs=0.005)
