"""Labels of all `.tar` or Parquet shards of a set, numbered together.

Integers stay as they are, as in a `.rec`. Names, and integers too large for one, get numbers in sorted order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lafs_ray.data.label_names import label_names, numbered
from lafs_ray.data.packed_set import MAX_LABELS
from lafs_ray.data.shard_layout import SetLabels, ShardLabels
from lafs_ray.errors import DataError

LABEL_KEYS = ("label", "identity", "class", "cls")
"""Names of the label in a member `.json`, and of its column in Parquet; the first one counts."""

# Python converts no integers of more than 4300 digits.
_MOST_CHARACTERS = 1000


@dataclass(frozen=True, eq=False)
class FoundLabels:
    """Labels of a shard as they are there.

    Args:
        column: of each image, integers or texts; None: the shard has none.
        place: where one was expected, for messages.
        names: of the integers 0…n-1; None: they have none.
    """

    column: pa.Array | None
    place: str
    names: tuple[str, ...] | None = None


def number_set(path: str, counts: Sequence[int], found: Sequence[FoundLabels]) -> list[ShardLabels]:
    """Number the labels of all shards.

    Args:
        path: of the set, for messages.
        counts: images of each shard.
        found: labels of each shard.

    Raises:
        DataError: a label is a fraction, or longer than `_MOST_CHARACTERS`.
    """
    known = [one.column for one in found if one.column is not None]
    if not known:
        none = SetLabels(np.empty(0, np.int64), found[0].place)
        return [ShardLabels(np.full(count, -1, np.int32), none) for count in counts]
    columns = [
        pa.nulls(count, known[0].type) if one.column is None else one.column
        for count, one in zip(counts, found, strict=True)
    ]
    kinds = {column.type for column in columns}
    if kinds == {pa.int64()}:
        labels = np.concatenate([column.fill_null(-1).to_numpy(zero_copy_only=False) for column in columns])
        if labels.max(initial=-1) < MAX_LABELS:
            return _split(counts, np.maximum(labels, -1).astype(np.int32), None, found)
    chunks = [column.cast(pa.large_string()) for column in columns]

    def bad(row: int | None, problem: str) -> DataError:
        where = path if row is None else f"{path}, image {row}"
        return DataError(where, found=problem, expected="integers ≥ 0, or names", fix="correct the labels")

    longest = max(pc.max(pc.utf8_length(chunk)).as_py() or 0 for chunk in chunks)
    if longest > _MOST_CHARACTERS:
        raise bad(None, f"a label of {longest} characters")
    names = label_names(pa.chunked_array(chunks, pa.large_string()), bad)
    numbers, texts = numbered(names, by_number=True)
    if texts and all(text.isdecimal() and str(int(text)) == text and int(text) < MAX_LABELS for text in texts):
        values = np.array([int(text) for text in texts], np.int32)
        return _split(counts, np.where(numbers < 0, -1, values[numbers]).astype(np.int32), None, found)
    return _split(counts, numbers, tuple(texts), found)


def _split(
    counts: Sequence[int], labels: NDArray[np.int32], names: tuple[str, ...] | None, found: Sequence[FoundLabels]
) -> list[ShardLabels]:
    listed = np.unique(labels[labels >= 0]).astype(np.int64)
    shared = found[0].names
    if names is None and shared and np.array_equal(listed, range(len(shared))):
        names = shared if all(one.names == shared for one in found) else None
    of_set = SetLabels(listed, found[0].place, names)
    return [ShardLabels(part, of_set) for part in np.split(labels, np.cumsum(counts)[:-1])]
