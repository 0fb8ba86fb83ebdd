from __future__ import annotations

import itertools

import numpy as np
import pytest

from lafs_ray.errors import DataError
from lafs_ray.evaluation.verification import roc_curve

Point = tuple[float, float]


def lies_between(point: Point, start: Point, end: Point) -> bool:
    """Whether a point lies on the straight line from start to end."""
    (x, y), (left, low), (right, high) = point, start, end
    in_box = left <= x <= right and low <= y <= high
    return in_box and abs((x - left) * (high - low) - (y - low) * (right - left)) < 1e-12


@pytest.mark.parametrize("seed", range(5))
def test_roc_curve__naive_loop(seed: int) -> None:
    """Points are thresholds' rates, those left out lie between; the area counts ordered pairs."""
    generator = np.random.default_rng(seed)
    same = generator.random(60) < 0.4
    # One decimal: many scores are equal.
    scores = np.round(generator.random(60) + 0.3 * same, 1)
    points = {(0.0, 0.0)}
    for threshold in scores:
        accepted = scores >= threshold
        points.add((accepted[~same].mean(), accepted[same].mean()))
    curve = roc_curve(scores, same)
    found = list(zip(curve.fpr.tolist(), curve.tpr.tolist(), strict=True))
    assert set(found) <= points
    for point in points:
        assert any(lies_between(point, *ends) for ends in itertools.pairwise(found))
    wins = (scores[same][:, None] > scores[~same]).mean()
    ties = (scores[same][:, None] == scores[~same]).mean()
    # 60 additions of float64.
    assert curve.area == pytest.approx(wins + ties / 2, abs=1e-12)


def test_tar_at__nearest_point() -> None:
    """The nearest FAR counts, even above the one asked; at equal distance the higher TAR."""
    # Different pairs at 0.8 and 0.4; same pairs at 0.9, 0.6, 0.5, 0.3.
    scores = np.array([0.9, 0.8, 0.6, 0.5, 0.4, 0.3])
    same = np.array([True, False, True, True, False, True])
    curve = roc_curve(scores, same)
    assert curve.tar_at(0.1) == (0.25, 0.0)
    assert curve.tar_at(0.3) == (0.75, 0.5)
    assert curve.tar_at(0.25) == (0.75, 0.5)


def test_roc_curve__pairs_of_one_kind() -> None:
    """Without different pairs there is no rate of them."""
    with pytest.raises(DataError, match="3 same and 0 different pairs"):
        roc_curve(np.arange(3.0), np.ones(3, dtype=bool))
