"""What an audit found, as a table and as a list of records to leave out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lafs_ray.audit.embeddings import EmbeddedSet, Floats, Int64s

# Kinds whose training images a list to leave out names: what a test set shares, and second copies.
LEAKS = ("identical picture in a test set", "near-duplicate in a test set", "identity of a test set")
COPIES = ("identical picture twice", "near-duplicate twice")
FACELESS = "unaligned or faceless"
LABELS = ("wrong label", "stray", "two identities that are one", "identity that is two")


@dataclass(frozen=True, eq=False)
class Finding:
    """Rows of one kind, the clearest first.

    Args:
        kind: one of `LEAKS`, `COPIES` and `LABELS`, or `FACELESS`.
        first: the set that was audited.
        rows: of it, int64 [n].
        second: the set of the other row; the same one for findings within it.
        others: rows of `second`, int64 [n]; -1: none.
        scores: float32 [n]; what they are depends on the kind.
    """

    kind: str
    first: EmbeddedSet
    rows: Int64s
    second: EmbeddedSet
    others: Int64s
    scores: Floats

    def __len__(self) -> int:
        return len(self.rows)

    def table(self) -> pa.Table:
        """Return a row for each, with file, key and label of both."""
        columns: dict[str, list[object]] = {name: [] for name in _COLUMNS}
        for row, other, score in zip(self.rows.tolist(), self.others.tolist(), self.scores.tolist(), strict=True):
            values = [self.kind, *_named(self.first, row), *_named(self.second, other), score]
            for name, value in zip(_COLUMNS, values, strict=True):
                columns[name].append(value)
        return pa.table(columns, schema=SCHEMA)


_COLUMNS = {
    "kind": pa.string(),
    **{
        f"{prefix}{name}": kind
        for prefix in ("", "other_")
        for name, kind in (("set", pa.string()), ("shard", pa.string()), ("key", pa.string()), ("label", pa.int64()))
    },
    "score": pa.float32(),
}
SCHEMA = pa.schema(_COLUMNS.items())


def _named(one: EmbeddedSet, row: int) -> tuple[str, str | None, str | None, int | None]:
    if row < 0:
        return one.name, None, None, None
    shard, key = one.where(row)
    label = int(one.labels[row])
    return one.name, shard or None, key, label if label >= 0 else None


def exclusion_list(findings: Iterable[Finding]) -> pa.Table:
    """Return the training images to leave out, each once with its first reason: columns shard, key, reason.

    Of an identity that a test set shares, all images; of a picture that is there twice, the later one.
    """
    reasons: dict[int, str] = {}
    embedded: EmbeddedSet | None = None
    for one in findings:
        if one.kind not in (*LEAKS, *COPIES):
            continue
        embedded = one.first
        rows = one.others if one.kind in COPIES else one.rows
        if one.kind == LEAKS[2]:
            rows = _all_of(embedded.labels, rows)
        for row in rows.tolist():
            reasons.setdefault(row, one.kind)
    listed = sorted(reasons)
    places = [embedded.where(row) for row in listed] if embedded is not None else []
    return pa.table(
        {
            "shard": pa.array([shard for shard, _ in places], pa.string()),
            "key": pa.array([key for _, key in places], pa.string()),
            "reason": pa.array([reasons[row] for row in listed], pa.string()),
        }
    )


def _all_of(labels: Int64s, rows: Int64s) -> Int64s:
    """Return all rows of these rows' identities; a row without a label stands for itself."""
    found: NDArray[np.int64] = np.unique(labels[rows])
    same = np.flatnonzero(np.isin(labels, found[found >= 0]))
    return np.union1d(same, rows[labels[rows] < 0])
