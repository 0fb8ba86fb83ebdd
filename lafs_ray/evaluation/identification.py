"""Identification (1:N): where the mate of a query (IJB: probe) ranks in a gallery, and whether a threshold finds it.

Closed set: rank-k is the share of mated queries whose identity is among the k best gallery entries. Open set, as in
NIST's and IJB's reports: FPIR is the share of queries without a mate whose best score reaches the threshold, TPIR the
share of mated queries whose mate comes first and reaches it. Letters: Q queries, G gallery entries, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lafs_ray.evaluation.verification import carries_far

Float64s = NDArray[np.float64]
Int64s = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]

RANKS = (1, 5)
FPIRS = (0.01, 0.1)
_SCORES_AT_ONCE = 1 << 24


@dataclass(frozen=True, eq=False)
class SearchResult:
    """Outcome of each query's search in one gallery.

    Args:
        ranks: of the first gallery entry of the query's identity, from 1; 0 where the gallery has none, int64 [Q].
            Equal scores count against the mate.
        scores: of the best gallery entry, float64 [Q].
    """

    ranks: Int64s
    scores: Float64s

    @property
    def num_mated(self) -> int:
        """Number of queries whose identity is in the gallery."""
        return int(np.count_nonzero(self.ranks))

    def rank_rate(self, k: int) -> float | None:
        """Return the share of mated queries with rank k or better; None without any."""
        mated = self.ranks[self.ranks > 0]
        return float(np.mean(mated <= k)) if len(mated) else None

    def tpir_at(self, fpir: float) -> float | None:
        """Return TPIR at the lowest threshold with at most this FPIR.

        None without mated queries, or where the other queries are too few for that rate.
        """
        others = np.sort(self.scores[self.ranks == 0])[::-1]
        if not self.num_mated or not carries_far(len(others), fpir):
            return None
        # A score has to be above the first one that may not pass.
        allowed = int(len(others) * fpir + 1e-9)
        threshold = others[allowed] if allowed < len(others) else -np.inf
        found = (self.ranks == 1) & (self.scores > threshold)
        return float(np.count_nonzero(found) / self.num_mated)


def search(
    queries: Floats,
    query_identities: Int64s,
    gallery: Floats,
    gallery_identities: Int64s,
    *,
    scores_at_once: int = _SCORES_AT_ONCE,
) -> SearchResult:
    """Compare every query with every gallery entry by cosine similarity.

    Args:
        queries: features at length 1, [Q, D].
        query_identities: int64 [Q]; a negative one has no mate.
        gallery: features at length 1, [G, D].
        gallery_identities: int64 [G]; a negative one is a distractor.
        scores_at_once: bounds the memory; does not change the result.
    """
    order = np.argsort(gallery_identities, kind="stable")
    gallery, gallery_identities = gallery[order], gallery_identities[order]
    starts = np.searchsorted(gallery_identities, query_identities, side="left")
    stops = np.searchsorted(gallery_identities, query_identities, side="right")
    stops = np.where(query_identities < 0, starts, stops)
    ranks, best = np.zeros(len(queries), dtype=np.int64), np.empty(len(queries))
    step = max(scores_at_once // len(gallery), 1)
    for start in range(0, len(queries), step):
        scores = queries[start : start + step] @ gallery.T
        best[start : start + step] = scores.max(axis=1)
        for row, number in enumerate(range(start, start + len(scores))):
            mates = slice(starts[number], stops[number])
            if mates.start < mates.stop:
                mate = scores[row, mates].max()
                # Among the mates, ties do not matter.
                not_below = np.count_nonzero(scores[row] >= mate) - np.count_nonzero(scores[row, mates] >= mate)
                ranks[number] = 1 + not_below
    return SearchResult(ranks, best)
