"""How the images of a `.tar` or Parquet shard are stored, and the labels that its index found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class TarMembers:
    """Images are byte ranges of a tar; the key of one is the number of its sample.

    Args:
        errors: why a sample cannot be used, by key.
    """

    errors: Mapping[int, str]


@dataclass(frozen=True, eq=False)
class RowGroups:
    """Images are rows of a Parquet file, read by row groups; offsets and keys are numbers of rows.

    Args:
        columns: paths of the columns to read: a binary one, or `bytes` and maybe `path` of a struct.
        starts: first row of each row group, then the number of rows; int64 [groups + 1].
        group_bytes: of each row group, uncompressed, int64 [groups].
    """

    columns: tuple[str, ...]
    starts: NDArray[np.int64]
    group_bytes: NDArray[np.int64]

    def groups_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row group of each row, int64 [n]."""
        return np.searchsorted(self.starts, rows, side="right") - 1


Layout = TarMembers | RowGroups
"""Of a shard other than a `.rec`."""


@dataclass(frozen=True, eq=False)
class SetLabels:
    """Labels of a set of several shards.

    Args:
        listed: those that occur, ascending, int64 [identities].
        place: where labels were looked for, for messages.
        names: of the labels 0…identities-1; None: they are numbers in the files.
    """

    listed: NDArray[np.int64]
    place: str
    names: Sequence[str] | None = None


@dataclass(frozen=True, eq=False)
class ShardLabels:
    """Labels of the images of one shard, from its index.

    Args:
        of_key: label of each key 0…n-1, int32 [n]; -1: none.
        of_set: those of the whole set.
    """

    of_key: NDArray[np.int32]
    of_set: SetLabels

    @property
    def listed(self) -> NDArray[np.int64]:
        """Labels of the set, int64 [identities]."""
        return self.of_set.listed

    def labels(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the label of each image key, int64 [n]; -1: it has none."""
        return self.of_key[keys].astype(np.int64)
