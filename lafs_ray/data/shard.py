"""The records of one shard, and the identities that those of a `.rec` list."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lafs_ray.data import recordio
from lafs_ray.data.io.reading import ByteRanges, read_ranges
from lafs_ray.data.shard_layout import Layout

# What insightface's record 0 and identity records hold keys in: from 2^24 on, odd ones are rounded.
KEY_DTYPE = np.dtype(np.float32)


def stored_keys(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return keys as record 0 and identity records hold them, int64 [n]: rounded to `KEY_DTYPE`."""
    return keys.astype(KEY_DTYPE).astype(np.int64)


def key_bounds(stored: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the lowest and the highest key that is stored as each of these numbers, int64 [n] each."""
    rounded = stored.astype(KEY_DTYPE)
    below = np.abs(rounded - np.nextafter(rounded, KEY_DTYPE.type(0))).astype(np.float64)
    above = np.spacing(np.abs(rounded)).astype(np.float64)
    # Half the distance to the neighbors; whether a tie rounds here depends on the neighbor.
    low, high = stored - (below / 2).astype(np.int64), stored + (above / 2).astype(np.int64)
    low += stored_keys(low) != stored
    high -= stored_keys(high) != stored
    return low, high


def spread(count: int, most: int) -> NDArray[np.int64]:
    """Return up to `most` positions below `count`, evenly spaced, with the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


@dataclass(frozen=True, eq=False)
class Identities:
    """The identities of one shard in insightface's layout.

    Args:
        base: the label of the shard's first identity; the i-th has label base + i.
        starts: first image key of each identity as stored, int64 [identities].
        stops: the key after its last image as stored, int64 [identities].
    """

    base: int
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]

    @property
    def listed(self) -> NDArray[np.int64]:
        """Labels that the shard lists, int64 [identities]."""
        return self.base + np.arange(len(self.starts))

    def labels(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the label of each image key, int64 [n]; of an uncertain one, that of a neighbor."""
        # An identity without images has start == stop and must sort before its neighbor.
        order = np.lexsort((self.stops, self.starts))
        rank = np.searchsorted(self.starts[order], keys, side="right") - 1
        return self.base + order[rank]

    def uncertain(self, keys: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether a key is so near a rounded end of a range that its record alone has its label, bool [n]."""
        low, high = key_bounds(np.unique(self.starts))
        # A range may begin at any key from low to high.
        following = np.searchsorted(high, keys, side="right")
        near = np.append(low, np.iinfo(np.int64).max)[following]
        return np.asarray(keys >= near)


@dataclass(frozen=True, eq=False)
class Shard:
    """Records of one file in file order; in an opened set, only its images.

    Args:
        uri: the file.
        size_bytes: of the file.
        keys: of the records, int64 [n].
        offsets: of the records in the file, int64 [n].
        sizes: of the records with framing and padding, int64 [n].
        identities: in insightface's layout.
        version: ETag of the object; empty on a disk.
        layout: of its images; None: RecordIO.
    """

    uri: str
    size_bytes: int
    keys: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    identities: Identities | None = None
    version: str = ""
    layout: Layout | None = None

    def headers(self, positions: NDArray[np.int64]) -> list[tuple[recordio.Header, int]]:
        """Return header and payload size in bytes of the records at these ascending positions.

        Raises:
            DataError: one of them is damaged.
        """
        if not len(positions):
            return []
        result = []
        ranges = ByteRanges(self.uri, self.offsets[positions], self.sizes[positions])
        for record, position in zip(read_ranges([ranges]), positions.tolist(), strict=True):
            where = f"{self.uri}, key {self.keys[position]}"
            offset = int(self.offsets[position])
            body, _ = recordio.decode_record(record, 0, base_offset=offset, source=where)
            header, payload = recordio.unpack(body, where)
            result.append((header, len(payload)))
        return result
