"""The order of a set's records in one pass: chunks of neighboring records, at random."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class ChunkOrder:
    """The records of a set, chunk by chunk in random order.

    The grid of chunks is shifted at random in each pass, so that the same records do not always share a chunk. It
    shortens only the first and the last chunk of the set, so where a chunk begins is arithmetic, and 4 bytes per chunk
    are kept: 125 million chunks of a set of 500 million take
    0.5 GB in every process that samples indices.

    Args:
        num_records: images in the set.
        chunk_records: neighboring records that stay together.
        entropy: of the order.
    """

    def __init__(self, num_records: int, chunk_records: int, entropy: Sequence[int]) -> None:
        self._size = chunk_records
        generator = np.random.default_rng(list(entropy))
        shift = int(generator.integers(self._size))
        self._begin = shift - self._size if shift else 0
        count = -(-(num_records - self._begin) // self._size)
        self._order = np.arange(count, dtype=np.int32 if count < 1 << 31 else np.int64)
        generator.shuffle(self._order)
        end = self._begin + count * self._size
        # Positions of the two short chunks, and how many records each lacks. After a single chunk there is nothing to
        # move up.
        short = {0: -self._begin, count - 1: end - num_records} if count > 1 else {}
        self._short = sorted(
            (int(np.flatnonzero(self._order == chunk)[0]), missing) for chunk, missing in short.items()
        )

    def records(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the record at each place of the sequence, int64 [n]."""
        # Where the place would be if all chunks had one size.
        even = places.copy()
        for position, missing in self._short:
            even += missing * (even >= (position + 1) * self._size - missing)
        position, within = np.divmod(even, self._size)
        chunk = self._order[position].astype(np.int64)
        found: NDArray[np.int64] = np.maximum(self._begin + chunk * self._size, 0) + within
        return found
