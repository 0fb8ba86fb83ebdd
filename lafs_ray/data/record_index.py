"""Open one `.rec` file with its index: find the image records and validate the index.

Two layouts. In insightface's, record 0 and identity records describe the images (`insightface_layout.py`). In a plain
file (im2rec) every record is an image. Without an index the file is scanned once, and the keys are the records' ids.

An index is validated with a few small reads: records must begin and end where it says, at 18
places. An index of another file, or half of one, is thus refused before a run starts, while a single damaged record is
left to the reader.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lafs_ray.data import recordio
from lafs_ray.data.insightface_layout import INDEX_FIX, key_range, keys_of_records, select_images
from lafs_ray.data.io import filesystem, reading
from lafs_ray.data.io.reading import record_file_state
from lafs_ray.data.io.walk import require_no_dead_link
from lafs_ray.data.shard import Shard, spread
from lafs_ray.errors import DataError

logger = logging.getLogger(__name__)

_SAMPLED_RECORDS = 18
# Ids of records from here on are no keys; they would not fit into int64 arrays.
_MAX_ID = 1 << 62


def open_shard(uri: str) -> Shard:
    """Index the images of one `.rec` file.

    Raises:
        DataError: see `lafs_ray.data.face_set.open_faces`.
    """
    size_bytes, version = record_file_state(uri)
    if size_bytes == 0:
        fix = "copy the file again"
        raise DataError(uri, found="an empty file (0 bytes)", expected="RecordIO", fix=fix)
    with reading.open_input(uri) as file:
        recordio.record_end(file, 0, size_bytes, uri)
    index = recordio.index_uri(uri)
    require_no_dead_link(index)
    if not filesystem.exists(index):
        return select_images(_scanned(uri, size_bytes, version))
    keys, offsets = _ordered_index(uri, size_bytes)
    last_end = _check_boundaries(uri, keys, offsets, size_bytes)
    sizes = np.diff(offsets, append=np.int64(last_end))
    shard = Shard(uri, size_bytes, keys, offsets, sizes, version=version)
    if _counts_records(shard):
        logger.warning("%s counts the records in file order, but record 0 is after the images: reading %s", index, uri)
        shard = _scanned(uri, size_bytes, version)
    return select_images(shard)


def _scanned(uri: str, size_bytes: int, version: str) -> Shard:
    """Find the records of a file without a (usable) index, and the keys in them."""

    def columns() -> Iterator[int]:
        for offset, size, header, payload_bytes in recordio.scan_records(uri):
            yield from (offset, size, header.id if header.id < _MAX_ID else -1)
            yield from key_range(header, payload_bytes) or (-1, -1)

    offsets, sizes, ids, starts, stops = np.fromiter(columns(), np.int64).reshape(-1, 5).T.copy()
    return Shard(uri, size_bytes, keys_of_records(ids, starts, stops), offsets, sizes, version=version)


def _counts_records(shard: Shard) -> bool:
    """Return whether the index was made by counting, of a file in which insightface wrote record 0 after the images."""
    count = len(shard.keys)
    if count < 2 or not np.array_equal(shard.keys, np.arange(count)):
        return False
    try:
        ends = [key_range(*header) for header in shard.headers(np.array([0, count - 1]))]
    except DataError:
        return False  # A damaged record, which is left to the reader.
    return ends[0] is None and ends[1] is not None


def _ordered_index(uri: str, size_bytes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Read keys and offsets, in file order.

    Raises:
        DataError: an offset lies outside the file, is no multiple of 4, or occurs twice.
    """
    index = recordio.index_uri(uri)
    keys, offsets = recordio.read_index(index)
    if not len(keys):
        found = "no records"
        raise DataError(index, found=found, expected="one line per record", fix=INDEX_FIX)
    if not np.all(offsets[1:] > offsets[:-1]):
        order = np.argsort(offsets, kind="stable")
        keys, offsets = keys[order], offsets[order]
    duplicates = np.flatnonzero(offsets[1:] == offsets[:-1])
    if len(duplicates):
        first, second = keys[duplicates[0]], keys[duplicates[0] + 1]
        found = f"keys {first} and {second} at the same offset {offsets[duplicates[0]]}"
        raise DataError(index, found=found, expected="different offsets", fix=INDEX_FIX)
    outside = np.flatnonzero((offsets < 0) | (offsets >= size_bytes) | (offsets % 4 != 0))
    if len(outside):
        raise DataError(
            f"{index}, key {keys[outside[0]]}",
            found=f"offset {offsets[outside[0]]}",
            expected=f"a multiple of 4 inside {uri}, which has {size_bytes} bytes",
            fix=INDEX_FIX,
        )
    if offsets[0] != 0:
        found = f"offset {offsets[0]} as the first"
        raise DataError(index, found=found, expected="a record at offset 0", fix=INDEX_FIX)
    return keys, offsets


def _check_boundaries(uri: str, keys: NDArray[np.int64], offsets: NDArray[np.int64], size_bytes: int) -> int:
    """Check that records end where the index says the next begins; return the last one's end.

    Raises:
        DataError: the index skips records or points between them, or the last one is truncated.
    """
    last_end = size_bytes
    with reading.open_input(uri) as file:
        for position in spread(len(offsets), _SAMPLED_RECORDS).tolist():
            start = int(offsets[position])
            is_last = position + 1 == len(offsets)
            if not recordio.starts_record(file, start):
                # The end of its predecessor distinguishes a damaged record from a wrong index.
                _check_follows(file, uri, keys, offsets, position - 1)
            elif is_last:
                last_end = recordio.record_end(file, start, size_bytes, f"{uri}, key {keys[-1]}")
                if recordio.starts_record(file, last_end):
                    raise _bad_boundary(uri, int(keys[-1]), last_end, "the index ends there")
            else:
                _check_follows(file, uri, keys, offsets, position)
    return last_end


def _check_follows(file: Any, uri: str, keys: NDArray[np.int64], offsets: NDArray[np.int64], position: int) -> None:
    """Raise if the index and the file disagree on where the record after `position` begins.

    A damaged record is ignored: its length leads to a place where no record begins.
    """
    start, following = int(offsets[position]), int(offsets[position + 1])
    try:
        end = recordio.record_end(file, start, file.size(), uri)
    except DataError:
        return
    if end != following and recordio.starts_record(file, end):
        place = f"key {keys[position + 1]} is at offset {following} in the index"
        raise _bad_boundary(uri, int(keys[position]), end, place)


def _bad_boundary(uri: str, key: int, end: int, place: str) -> DataError:
    return DataError(
        f"{recordio.index_uri(uri)}, key {key}",
        found=f"a record that ends at offset {end}, where the next begins; but {place}",
        expected="an index of all records of this file",
        fix=INDEX_FIX,
    )
