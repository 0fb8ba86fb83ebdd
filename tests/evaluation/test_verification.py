from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from lafs_ray.errors import DataError
from lafs_ray.evaluation.verification import (
    carries_far,
    kfold_accuracy,
    pair_distances,
    raw_pixel_embeddings,
    tar_at_far,
)
from tests.golden_cases import GoldenCase, load_case

# The golden case's own tolerance: sums of 32 float64 products in another order.
TOLERANCE = 1e-9


@pytest.fixture(scope="module")
def case() -> GoldenCase:
    return load_case("g1_verification")


@pytest.fixture(scope="module")
def distances(case: GoldenCase) -> NDArray[np.float64]:
    embeddings = case.inputs["emb"].astype(np.float64) + case.inputs["emb_flip"]
    return pair_distances(embeddings)


def random_pairs(seed: int, count: int = 60) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    generator = np.random.default_rng(seed)
    same = generator.random(count) < 0.5
    # Two decimals: many distances are equal, and many lie on a threshold.
    return np.round(generator.random(count) * 2 + ~same, 2), same


def test_pair_distances__reference(case: GoldenCase, distances: NDArray[np.float64]) -> None:
    """Distances equal the reference's."""
    assert np.abs(distances - case.outputs["dist"]).max() <= TOLERANCE


def test_kfold_accuracy__reference(case: GoldenCase, distances: NDArray[np.float64]) -> None:
    """Accuracy and threshold of every fold, mean and deviation equal the reference's."""
    result = kfold_accuracy(distances, case.inputs["issame"])
    assert np.abs(result.accuracies - case.outputs["accuracy"]).max() <= TOLERANCE
    assert np.abs(result.thresholds - case.outputs["best_thresholds"]).max() <= TOLERANCE
    assert abs(result.mean - case.outputs["accuracy_mean"]) <= TOLERANCE
    assert abs(result.std - case.outputs["accuracy_std"]) <= TOLERANCE


@pytest.mark.parametrize("far", ["0.001", "0.01", "0.1"])
def test_tar_at_far__reference(case: GoldenCase, distances: NDArray[np.float64], far: str) -> None:
    """TAR, its deviation and the FAR reached equal those made with the old scipy."""
    result = tar_at_far(distances, case.inputs["issame"], float(far))
    expected = case.meta["calculate_val"][far]
    assert np.abs(np.subtract([result.tar, result.std, result.far], expected)).max() <= TOLERANCE


@pytest.mark.parametrize("seed", range(5))
def test_kfold_accuracy__naive_loop(seed: int) -> None:
    """Counting by sorted search equals trying every threshold on every fold."""
    distances, same = random_pairs(seed, count=63)
    thresholds = np.arange(0, 4, 0.01)
    expected = []
    for test in np.array_split(np.arange(63), 7):
        train = np.setdiff1d(np.arange(63), test)
        best = np.argmax([np.mean((distances[train] < t) == same[train]) for t in thresholds])
        expected.append(np.mean((distances[test] < thresholds[best]) == same[test]))
    result = kfold_accuracy(distances, same, folds=7)
    # The same counts divided by the same number: no rounding differs.
    assert result.accuracies.tolist() == expected


def test_tar_at_far__plateau_and_interpolation() -> None:
    """On a plateau its last threshold counts; between two rates the threshold is interpolated."""
    # Different pairs at 1.0005 and 3.0005 (half each) in both folds: the rate is 0 up to 1.000,
    # 0.5 from 1.001 to 3.000, 1 from 3.001.
    same = np.array([True, True, False, False] * 2)
    for same_distance, far, tar in [
        (2.9999, 0.5, 1.0),  # threshold 3.000, the plateau's end
        (3.0001, 0.5, 0.0),
        (1.00045, 0.25, 1.0),  # threshold 1.0005, half-way between 1.000 and 1.001
        (1.00055, 0.25, 0.0),
        (3.0007, 0.9, 1.0),  # threshold 3.0008
        (3.0009, 0.9, 0.0),
        (3.99, 1.0, 1.0),  # all rates are low enough: the last threshold, 3.999
    ]:
        distances = np.array([same_distance, same_distance, 1.0005, 3.0005] * 2)
        assert tar_at_far(distances, same, far, folds=2).tar == tar


def test_tar_at_far__no_threshold_reaches_the_rate() -> None:
    """Where too few different pairs lie below 4, the threshold is 0 and nothing passes."""
    same = np.array([True, False] * 2)
    result = tar_at_far(np.array([0.1, 4.0] * 2), same, 0.1, folds=2)
    assert (result.tar, result.far) == (0.0, 0.0)


def test_tar_at_far__fold_of_one_kind() -> None:
    """Pairs sorted by kind leave folds without different pairs: refused, naming the fold."""
    distances, same = random_pairs(0)
    with pytest.raises(DataError, match="fold 0\n.*6 same and 0 different pairs"):
        tar_at_far(distances, np.sort(same)[::-1], 0.1)


def test_kfold_accuracy__fewer_pairs_than_folds() -> None:
    """Ten folds of four pairs are refused with the numbers."""
    distances, same = random_pairs(0, count=4)
    with pytest.raises(DataError, match="4 pairs for 10 folds"):
        kfold_accuracy(distances, same)


def test_pair_distances__bounds_and_special_rows() -> None:
    """Length does not matter, opposite rows are 4 apart, a row of zeros stays; nan is refused."""
    rows = np.array([[1, 0], [5, 0], [0, 2], [0, -1], [0, 0], [3, 4]], dtype=np.float32)
    # 0.6² + 0.8² is one rounding away from 1.
    assert pair_distances(rows) == pytest.approx([0, 4, 1], abs=1e-15)
    rows[3, 1] = np.nan
    with pytest.raises(DataError, match="image 3\n.*in 1 of 6 rows"):
        pair_distances(rows)


def test_raw_pixel_embeddings__have_no_mean() -> None:
    """Each image loses its own mean, in float64."""
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    embedding = raw_pixel_embeddings(images)
    assert embedding.dtype == np.float64
    assert embedding.shape == (4, 8 * 8 * 3)
    # A mean over 192 numbers below 256 leaves a residue of a few units in the last place.
    assert np.abs(embedding.mean(axis=1)).max() < 1e-12


def test_carries_far__rule_of_three() -> None:
    """LFW's 3,000 different pairs carry FAR 0.001; 100 carry neither 0.01 nor 0.001, but 0.1."""
    assert carries_far(3000, 1e-3)
    assert not carries_far(2999, 1e-3)
    assert [carries_far(100, far) for far in (1e-3, 1e-2, 1e-1)] == [False, False, True]
