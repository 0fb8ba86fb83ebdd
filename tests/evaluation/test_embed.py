from __future__ import annotations

from typing import cast

import numpy as np
import pytest

from lafs_ray.data.eval_sets import EvalFaces, PairSet
from lafs_ray.errors import DataError
from lafs_ray.evaluation.embed import center, flip_sum, normalize
from lafs_ray.evaluation.protocols import evaluate_pairs


def cone_pairs(num_pairs: int, common: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs whose embeddings are an identity's direction plus noise plus a large common vector."""
    generator = np.random.default_rng(0)
    same = np.arange(num_pairs) % 2 == 0
    identities = generator.standard_normal((num_pairs, 2, 16))
    identities[same, 1] = identities[same, 0]
    rows = identities + 0.5 * generator.standard_normal((num_pairs, 2, 16))
    return rows.reshape(2 * num_pairs, 16) + common, same


def test_center__information_in_a_narrow_cone() -> None:
    """Where a common part hides identities from the grid of thresholds, centering finds them."""
    rows, same = cone_pairs(400, common=60.0)
    both = np.stack([rows, np.zeros_like(rows)], axis=1)
    pairs = PairSet("pairs.bin", cast("EvalFaces", None), same)
    plain, centered = evaluate_pairs(pairs, {"network": lambda _: both}).rows
    assert (plain.centered, centered.centered) == (False, True)
    assert plain.metrics["accuracy"] is not None
    assert centered.metrics["accuracy"] is not None
    # All distances are below the first threshold, 0.01: every pair is called different, or same.
    assert plain.metrics["accuracy"] == pytest.approx(0.5, abs=0.02)
    assert centered.metrics["accuracy"] > 0.9


def test_center__of_flip_sums_is_the_mean_over_images_and_mirrors() -> None:
    """Subtracting twice the mean over all 2N embeddings from the sums is the same to rounding."""
    both = np.random.default_rng(1).standard_normal((7, 2, 5)).astype(np.float32) + 3
    expected = both.astype(np.float64).sum(axis=1) - 2 * both.astype(np.float64).mean(axis=(0, 1))
    # Sums of 14 float64 numbers near 3.
    np.testing.assert_allclose(center(flip_sum(both)), expected, atol=1e-14)


def test_flip_sum__symmetry() -> None:
    """An image and its mirror have the same embedding, in float64."""
    both = np.random.default_rng(2).standard_normal((4, 2, 6)).astype(np.float32)
    total = flip_sum(both)
    assert total.dtype == np.float64
    assert np.array_equal(total, flip_sum(both[:, ::-1]))


def test_normalize__special_rows() -> None:
    """Rows get length 1, zeros stay zeros, nan is refused with the image's number."""
    rows = np.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_array_equal(normalize(rows), [[0.6, 0.8], [0.0, 0.0]])
    rows[1, 0] = np.inf
    with pytest.raises(DataError, match="image 1\n.*in 1 of 2 rows"):
        normalize(rows)
