from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from lafs_ray.errors import DataError
from lafs_ray.evaluation.neighbors import neighbor_accuracies


def clusters(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """52 rows around 12 centers; two identities have one row each; labels have gaps."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(12), 5)
    kept = ~np.isin(np.arange(60), [*range(16, 20), *range(36, 40)])
    rows = generator.standard_normal((12, 8))[labels] + 0.8 * generator.standard_normal((60, 8))
    shuffled = generator.permutation(np.flatnonzero(kept))
    return rows[shuffled], labels[shuffled] * 10 + 4


def naive(rows: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Leave-one-out, one image after the other."""
    count = Counter(labels.tolist())
    kept = [i for i, label in enumerate(labels) if count[label] > 1]
    right = 0
    for i in kept:
        cosines = [(-rows[i] @ rows[j] / np.linalg.norm(rows[i]) / np.linalg.norm(rows[j]), j) for j in kept if j != i]
        near = [labels[j] for _, j in sorted(cosines)[:k]]
        votes = Counter(near).most_common()
        best = [person for person, number in votes if number == votes[0][1]]
        right += next(person for person in near if person in best) == labels[i]
    return right / len(kept)


@pytest.mark.parametrize("seed", range(3))
def test_neighbor_accuracies__naive_loop(seed: int) -> None:
    """Blocks of any size give the accuracy of a loop over images, for every k."""
    rows, labels = clusters(seed)
    expected = [naive(rows, labels, k) for k in (1, 3, 10)]
    assert len(set(expected)) > 1, "data on which k matters"
    for at_once in (1, 500, 1 << 20):
        found, counts = neighbor_accuracies(rows, labels, [1, 3, 10], similarities_at_once=at_once)
        assert found == expected
        assert counts == {"num_images": 50, "num_identities": 10, "num_excluded": 2}


def test_neighbor_accuracies__equal_votes() -> None:
    """Two identities with one vote each: the nearer one wins."""
    angles = np.array([0.0, 0.1, 0.3, 0.35, 2.0, 2.1])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    labels = np.array([0, 1, 0, 1, 2, 2])
    # Row 0: nearest are row 1 (person 1) and row 2 (person 0), so k = 2 says person 1.
    (found,), _ = neighbor_accuracies(rows, labels, [2])
    assert found == pytest.approx(naive(rows, labels, 2))
    assert found < 1


@pytest.mark.parametrize("k", [0, 50, 51])
def test_neighbor_accuracies__impossible_k(k: int) -> None:
    """0 neighbors, or as many as there are images, are refused with the range."""
    rows, labels = clusters(0)
    with pytest.raises(DataError, match=f"k\n.*found: +{k}, for 50 images") as raised:
        neighbor_accuracies(rows, labels, [1, k])
    assert raised.value.expected.startswith("1 to 49")


def test_neighbor_accuracies__one_image_each() -> None:
    """Without a second image of anybody there is nothing to find."""
    with pytest.raises(DataError, match="5 images of 5 identities, none with two"):
        neighbor_accuracies(np.eye(5), np.arange(5), [1])
