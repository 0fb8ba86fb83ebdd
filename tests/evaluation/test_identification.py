"""Ranks and TPIR at FPIR of identification, against cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from lafs_ray.evaluation.identification import SearchResult, search


def on_circle(*degrees: float) -> np.ndarray:
    """Unit vectors at these angles; nearer angles are more similar."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


GALLERY, IDENTITIES = on_circle(0, 10, 20, 90, 91), np.array([1, 2, 3, 2, -1])


def test_search__by_hand() -> None:
    """A query's rank is that of its identity's best entry; distractors count in front of it and are no mates.

    At 2°: 0° is nearest. At 94°: 91° (distractor), then 90° of identity 2. At 14°: 10° is of identity 2, then 20° of 3;
    identity 1 is third. Identity 7 is not in the gallery, and -1 is not the distractor's mate.
    """
    queries, truth = on_circle(2, 94, 14, 30, 92), np.array([1, 2, 1, 7, -1])
    found = search(queries, truth, GALLERY, IDENTITIES)
    assert found.ranks.tolist() == [1, 2, 3, 0, 0]
    np.testing.assert_allclose(found.scores, np.cos(np.radians([2, 3, 4, 10, 1])))
    assert found.num_mated == 3
    assert [found.rank_rate(k) for k in (1, 2, 5)] == [1 / 3, 2 / 3, 1.0]


@pytest.mark.parametrize("scores_at_once", [1, 7, 10_000])
def test_search__in_blocks(scores_at_once: int) -> None:
    """Results do not depend on how many scores are in memory."""
    generator = np.random.default_rng(0)
    queries, gallery = generator.standard_normal((40, 4)), generator.standard_normal((30, 4))
    truth, names = generator.integers(-1, 9, 40), generator.integers(-1, 6, 30)
    found = search(queries, truth, gallery, names, scores_at_once=scores_at_once)
    for query, identity, rank, score in zip(queries, truth, found.ranks, found.scores, strict=True):
        scores = gallery @ query
        order = np.argsort(-scores)
        mates = np.flatnonzero((names[order] == identity) & (identity >= 0))
        assert rank == (mates[0] + 1 if len(mates) else 0)
        assert score == pytest.approx(scores.max())


def test_search__equal_scores_count_against_the_mate() -> None:
    """A network that maps all faces to one point finds no mate first."""
    same = on_circle(0, 0, 0)
    assert search(same[:1], np.array([3]), same, np.array([1, 2, 3])).ranks.tolist() == [3]


def test_tpir__by_hand() -> None:
    """30 queries without mate score 0.01 … 0.30; FPIR 0.1 lets three pass, so a mate has to exceed 0.27.

    Mates: first with 0.28 passes, first with 0.27 does not, second with 0.9 does not.
    """
    others = np.arange(1, 31) / 100
    ranks = np.array([1, 1, 2, *[0] * 30])
    found = SearchResult(ranks, np.array([0.28, 0.27, 0.9, *others]))
    assert found.tpir_at(0.1) == pytest.approx(1 / 3)
    # 30 searches carry no FPIR below 0.1.
    assert found.tpir_at(0.01) is None


def test_tpir__closed_set() -> None:
    """Without queries that have no mate, or with none but those, nothing is claimed."""
    assert SearchResult(np.array([1, 2]), np.ones(2)).tpir_at(0.1) is None
    alone = SearchResult(np.zeros(50, dtype=np.int64), np.arange(50) / 50)
    assert alone.tpir_at(0.1) is None
    assert alone.rank_rate(1) is None
