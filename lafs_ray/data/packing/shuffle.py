"""The place of every record in the new order, computed instead of stored.

A Feistel network over the smallest even number of bits that holds all records, walked until it ends
below their number: a permutation for any seed, in constant memory, for any part of the records. Our
own, as numpy's generators may shuffle differently in another version, and an interrupted packing
has to go on with the same order.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.splitmix import mixed

_ROUNDS = 8


class Shuffle:
    """A random permutation of 0…num_records-1.

    Args:
        num_records: records in all sources.
        seed: of the order.
    """

    def __init__(self, num_records: int, seed: int) -> None:
        assert num_records >= 1, "at least one record"
        self._num_records = num_records
        self._half = max(((num_records - 1).bit_length() + 1) // 2, 1)
        name = f"lafs_ray order {seed} {num_records}".encode()
        digest = hashlib.blake2b(name, digest_size=8 * _ROUNDS).digest()
        self._keys = np.frombuffer(digest, "<u8")

    def places(self, first: int, stop: int) -> NDArray[np.int64]:
        """The places of records first…stop-1 in the new order, int64 [stop - first]."""
        values = self._once(np.arange(first, stop, dtype=np.uint64))
        while len(outside := np.flatnonzero(values >= self._num_records)):
            values[outside] = self._once(values[outside])
        return values.astype(np.int64)

    def _once(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        shift, mask = np.uint64(self._half), np.uint64((1 << self._half) - 1)
        left, right = values >> shift, values & mask
        for key in self._keys:
            left, right = right, left ^ (mixed(right ^ key) & mask)
        return np.asarray(left << shift | right, dtype=np.uint64)


def shard_edges(num_records: int, num_shards: int) -> NDArray[np.int64]:
    """The first place of each shard, then num_records; int64 [num_shards + 1].

    Sizes differ by one record at most.
    """
    return np.arange(num_shards + 1, dtype=np.int64) * num_records // num_shards
