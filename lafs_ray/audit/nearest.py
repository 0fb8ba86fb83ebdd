"""The k most similar vectors of a set, exactly in blocks, or with faiss's inverted file.

Exact up to 50,000 vectors, and above where faiss-cpu (the extra `audit`) is missing. The inverted file keeps vectors as
float16, half of their size in memory; queries are read from the disk in blocks. Blocks of queries are independent
tasks, in this process or on Ray. Letters: N gallery vectors, Q queries, D width.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lafs_ray.audit.embeddings import Floats, Int64s, VectorFile
from lafs_ray.data.io import filesystem

logger = logging.getLogger(__name__)

EXACT_UP_TO = 50_000
# Of an inverted file: lists, vectors to train on for each, lists searched.
_LISTS_PER_ROOT, _TRAINED_PER_LIST, _LISTS_SEARCHED = 3, 40, 16
_QUERIES_AT_ONCE, _TASK = 512, 16_384
_GALLERY_AT_ONCE = 1 << 12

Apply = Callable[[Callable[[Any, Any], Any], Any, Sequence[Any]], Iterator[Any]]


@dataclass(frozen=True, eq=False)
class Neighbors:
    """The k best of each query.

    Args:
        rows: of the gallery, best first, int32 [Q, k]; -1 where there are fewer.
        scores: cosines, float32 [Q, k].
    """

    rows: NDArray[np.int32]
    scores: Floats


@dataclass(frozen=True, eq=False)
class Search:
    """A search, as its tasks share it.

    Args:
        gallery: what is searched.
        queries: what is searched for.
        k: neighbors of each query.
        index: file of the inverted index; None: exact.
        is_self: whether queries and gallery are the same rows; a row is then no neighbor of itself.
    """

    gallery: VectorFile
    queries: VectorFile
    k: int
    index: str | None
    is_self: bool

    def run(self, apply: Apply) -> Neighbors:
        """Search for all queries."""
        count = self.queries.num_rows
        rows, scores = np.empty((count, self.k), np.int32), np.empty((count, self.k), np.float32)
        ranges = [(start, min(start + _TASK, count)) for start in range(0, count, _TASK)]
        for start, found_rows, found_scores in apply(search_range, self, ranges):
            rows[start : start + len(found_rows)] = found_rows
            scores[start : start + len(found_rows)] = found_scores
        return Neighbors(rows, scores)


def has_faiss() -> bool:
    """Return whether the extra `audit` is installed."""
    return importlib.util.find_spec("faiss") is not None


@dataclass(eq=False)
class Gallery:
    """Vectors that are searched several times; an index is built once, at the first search.

    Args:
        vectors: the gallery.
        folder: for the index.
        exact: never approximate.
    """

    vectors: VectorFile
    folder: str
    exact: bool = False
    _index: str | None = field(default=None, init=False)

    @property
    def is_approximate(self) -> bool:
        """Whether neighbors are found by the inverted file."""
        return not self.exact and self.vectors.num_rows > EXACT_UP_TO and has_faiss()

    def search(self, queries: VectorFile, k: int, apply: Apply) -> Neighbors:
        """Return the k best vectors of each query."""
        if self.is_approximate and self._index is None:
            self._index = build_index(self.vectors, filesystem.join(self.folder, "neighbors.index"))
        elif self.vectors.num_rows > EXACT_UP_TO and not has_faiss():
            logger.warning(
                "faiss-cpu is missing: all %d vectors are compared exactly, which takes hours for a million; "
                "pip install 'lafs-ray[audit]'",
                self.vectors.num_rows,
            )
        is_self = queries.path == self.vectors.path
        k = min(k, self.vectors.num_rows - is_self)
        return Search(self.vectors, queries, k, self._index, is_self).run(apply)


def build_index(vectors: VectorFile, path: str) -> str:
    """Build an inverted file over the vectors, in float16, and write it to `path`."""
    import faiss

    faiss.omp_set_num_threads(os.cpu_count() or 1)
    rows, count = vectors.open(), vectors.num_rows
    num_lists = max(int(_LISTS_PER_ROOT * math.sqrt(count)), 1)
    coarse = faiss.IndexFlatIP(vectors.width)
    kind = faiss.ScalarQuantizer.QT_fp16
    index = faiss.IndexIVFScalarQuantizer(coarse, vectors.width, num_lists, kind, faiss.METRIC_INNER_PRODUCT, False)
    sample = np.sort(np.random.default_rng(0).permutation(count)[: num_lists * _TRAINED_PER_LIST])
    index.train(rows[sample])
    for start in range(0, count, _TASK):
        index.add(np.ascontiguousarray(rows[start : start + _TASK]))
    faiss.write_index(index, path)
    return path


@functools.lru_cache(maxsize=1)
def _open_index(path: str, stamp: tuple[int, int]) -> Any:
    """Open an index once in a process; its vectors stay on the disk, mapped into memory."""
    import faiss

    del stamp
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    index: Any = faiss.read_index(path, faiss.IO_FLAG_MMAP)
    index.nprobe = _LISTS_SEARCHED
    return index


def search_range(search: Search, queries: tuple[int, int]) -> tuple[int, NDArray[np.int32], Floats]:
    """Search for the queries start…stop-1; return start, rows [n, k] and scores [n, k]."""
    start, stop = queries
    vectors = search.queries.open()
    k = search.k + search.is_self
    parts = []
    for first in range(start, stop, _QUERIES_AT_ONCE):
        block = np.ascontiguousarray(vectors[first : min(first + _QUERIES_AT_ONCE, stop)])
        if search.index is None:
            scores, rows = _exact(block, search.gallery.open(), k)
        else:
            scores, rows = _open_index(search.index, filesystem.file_stamp(search.index)).search(block, k)
        parts.append(_without_self(first, rows, scores) if search.is_self else (rows, scores))
    rows, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
    return start, rows.astype(np.int32), scores.astype(np.float32)


def _exact(block: Floats, gallery: Floats, k: int) -> tuple[Floats, Int64s]:
    """Compare with the whole gallery, 4,096 vectors at a time, of which only those are sorted that enter the k best."""
    best_scores = np.full((len(block), k), -np.inf, np.float32)
    best_rows = np.full((len(block), k), -1, np.int64)
    for first in range(0, len(gallery), _GALLERY_AT_ONCE):
        scores = block @ gallery[first : first + _GALLERY_AT_ONCE].T
        if first == 0:
            rows = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
        else:
            scores, rows = _better(scores, best_scores[:, -1], first)
        rows = np.concatenate([best_rows, rows], axis=1)
        scores = np.concatenate([best_scores, scores], axis=1)
        order = _top(scores, k)
        best_rows, best_scores = (np.take_along_axis(one, order, axis=1) for one in (rows, scores))
    return best_scores, best_rows


def _better(scores: Floats, than: Floats, first: int) -> tuple[Floats, Int64s]:
    """Return the scores above each query's bound and their rows, filled up with -inf and -1, [n, most of a query]."""
    queries, columns = np.divmod(np.flatnonzero(scores > than[:, None]), scores.shape[1])
    counts = np.bincount(queries, minlength=len(scores))
    places = np.arange(len(queries)) - np.repeat(np.cumsum(counts) - counts, counts)
    shape = (len(scores), int(counts.max(initial=0)))
    kept, rows = np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int64)
    kept[queries, places], rows[queries, places] = scores[queries, columns], first + columns
    return kept, rows


def _top(scores: Floats, k: int) -> NDArray[np.intp]:
    """Return the columns of the k highest scores, highest first, ties by column: [n, k]."""
    k = min(k, scores.shape[1])
    near = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    return np.take_along_axis(near, np.lexsort((near, -np.take_along_axis(scores, near, axis=1)), axis=1), axis=1)


def _without_self(first: int, rows: Int64s, scores: Floats) -> tuple[Int64s, Floats]:
    """Remove each query itself, or the last neighbor where an approximate search missed it."""
    own = rows == np.arange(first, first + len(rows))[:, None]
    own[~own.any(axis=1), -1] = True
    shape = (len(rows), rows.shape[1] - 1)
    return rows[~own].reshape(shape), scores[~own].reshape(shape)
