"""insightface's layout of a `.rec`: which records are images, and the ranges of image keys of each identity.

Record 0 holds the range of identity keys, keys 1… are images, and an identity record holds the range of its image keys.
`face2rec2.py` writes record 0 after the images. The ranges are float32: from 2^24 on they are rounded to even numbers,
then to multiples of 4. So the records are counted, and the labels of images near a rounded end are read from them.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lafs_ray.data import recordio
from lafs_ray.data.shard import Identities, Shard, key_bounds, spread, stored_keys
from lafs_ray.errors import DataError

_SAMPLED_RECORDS = 18
# Labels and keys are float32 in the file; larger ones (and nan) do not fit into int64 arrays.
_MAX_LABEL = 1 << 62
INDEX_FIX = "copy .rec and .idx again from one place"


def select_images(shard: Shard) -> Shard:
    """Separate the image records of a shard from record 0 and its identity records; a plain shard stays as it is.

    Raises:
        DataError: a key occurs twice, or record 0, identity records and the number of records contradict each other.
    """
    if np.all(shard.keys[1:] > shard.keys[:-1]):
        by_key, sorted_keys = np.arange(len(shard.keys)), shard.keys
    else:
        by_key = np.argsort(shard.keys, kind="stable")
        sorted_keys = shard.keys[by_key]
    duplicates = np.flatnonzero(sorted_keys[1:] == sorted_keys[:-1])
    if len(duplicates):
        found = f"key {sorted_keys[duplicates[0]]} twice"
        subject = recordio.index_uri(shard.uri)
        raise DataError(subject, found=found, expected="different keys", fix=INDEX_FIX)
    if sorted_keys[0] != 0:
        return shard
    identity_keys = key_range(*shard.headers(by_key[:1])[0])
    if identity_keys is None:
        return shard
    first, stop = _count_records(shard, by_key, sorted_keys, identity_keys)
    starts, stops = _identity_ranges(shard, by_key[first:stop], first)
    base = _first_label(shard, by_key, starts, stops)
    positions = np.sort(by_key[1:first])
    images: NDArray[np.int64] | slice = positions
    if positions[-1] - positions[0] == first - 2:
        # Contiguous, as every writer leaves them: views save copies of 120 MB for 5 M images.
        images = slice(int(positions[0]), int(positions[-1]) + 1)
    return replace(
        shard,
        keys=shard.keys[images],
        offsets=shard.offsets[images],
        sizes=shard.sizes[images],
        identities=Identities(base, starts, stops),
    )


def key_range(header: recordio.Header, payload_bytes: int) -> tuple[int, int] | None:
    """Return the key range in record 0 or an identity record of insightface; None for an image."""
    if payload_bytes or not isinstance(header.label, tuple) or len(header.label) != 2:
        return None
    if not all(abs(label) < _MAX_LABEL for label in header.label):
        return None
    return int(header.label[0]), int(header.label[1])


def keys_of_records(ids: NDArray[np.int64], starts: NDArray[np.int64], stops: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the keys of a file's records where no index has them.

    They are the records' ids, as insightface and im2rec write them. Where ids are missing or occur twice, they count
    the records, in insightface's order: record 0, the images, the identities.

    Args:
        ids: of the records in file order, -1 for one that is no key, int64 [n].
        starts: start of the range that a record holds, -1 for an image, int64 [n].
        stops: its end, -1 for an image.
    """
    is_range = starts >= 0
    by_id = np.argsort(ids, kind="stable")
    ordered = ids[by_id]
    are_keys = ordered[0] >= 0 and (ordered[1:] > ordered[:-1]).all()
    if are_keys and (not is_range.any() or (ordered[0] == 0 and is_range[by_id[0]])):
        return ids
    num_images = int((~is_range).sum())
    ends = stored_keys(np.array([num_images + 1, len(ids)]))
    record_0 = np.flatnonzero((starts == ends[0]) & (stops == ends[1]))
    if not len(record_0):
        return ids if are_keys else np.arange(len(ids))
    keys = np.empty(len(ids), np.int64)
    keys[~is_range] = np.arange(1, num_images + 1)
    keys[is_range] = np.arange(num_images, len(ids)) + (np.flatnonzero(is_range) < record_0[0])
    keys[record_0[0]] = 0
    return keys


def _count_records(
    shard: Shard, by_key: NDArray[np.int64], sorted_keys: NDArray[np.int64], stated: tuple[int, int]
) -> tuple[int, int]:
    """Return the first identity key, and the key after the last: what record 0 states, without its rounding.

    Raises:
        DataError: keys are missing or unexpected, or the records are of other kinds than record 0 states.
    """
    first, stop = stated
    if not 1 < first < stop:
        found = f"record 0 says [{first}, {stop}]"
        expected = "[first identity key, last identity key + 1], with images before them"
        raise DataError(shard.uri, found=found, expected=expected, fix="pack the images again")
    low, high = (bound.tolist() for bound in key_bounds(np.array(stated)))
    count = len(sorted_keys)
    if not low[1] <= count <= high[1] or sorted_keys[-1] != count - 1:
        counts = f"{first - 1} images (keys 1 to {first - 1}) and {stop - first} identities (keys "
        counts += f"{first} to {stop - 1}), as record 0 says"
        common = min(count, stop)
        gaps = np.flatnonzero(sorted_keys[:common] != np.arange(common))
        key = int(gaps[0]) if len(gaps) else common
        problem = f"key {key} is missing" if key < stop else f"unexpected key {sorted_keys[key]}"
        raise DataError(shard.uri, found=f"{count} records; {problem}", expected=counts, fix=INDEX_FIX)
    if low[0] == high[0]:
        return first, count
    candidates = np.sort(by_key[low[0] : min(high[0] + 1, count)])
    headers = zip(candidates.tolist(), shard.headers(candidates), strict=True)
    kinds = {int(shard.keys[position]): key_range(*header) is not None for position, header in headers}
    first = min((key for key, is_range in kinds.items() if is_range), default=high[0] + 1)
    if first > high[0] or any(is_range != (key >= first) for key, is_range in kinds.items()):
        found = f"no first identity record among keys {low[0]} to {high[0]}"
        expected = f"keys from {stated[0]}, give or take rounding, to be identities, as record 0 says"
        raise DataError(shard.uri, found=found, expected=expected, fix=INDEX_FIX)
    return first, count


def _identity_ranges(
    shard: Shard, positions: NDArray[np.int64], first: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Read the image keys [start, stop) of each identity, as stored; all together cover each image once."""
    starts, stops = np.empty(len(positions), np.int64), np.empty(len(positions), np.int64)
    in_file_order = np.argsort(positions, kind="stable")
    headers = shard.headers(positions[in_file_order])
    for identity, (header, payload_bytes) in zip(in_file_order.tolist(), headers, strict=True):
        images = key_range(header, payload_bytes)
        if images is None:
            found = f"flag {header.flag} and a payload of {payload_bytes} bytes"
            raise _bad_identity(shard.uri, first + identity, found, first)
        starts[identity], stops[identity] = images
    order = np.lexsort((stops, starts))
    # Rounded ends still meet: the same key is rounded to the same number.
    next_start = np.append(starts[order][1:], stored_keys(np.array([first])))
    wrong = np.flatnonzero((stops[order] != next_start) | (stops[order] < starts[order]))
    if starts[order[0]] != 1 or len(wrong):
        identity = int(order[0] if starts[order[0]] != 1 else order[wrong[0]])
        found = f"images [{starts[identity]}, {stops[identity]})"
        raise _bad_identity(shard.uri, first + identity, found, first)
    return starts, stops


def _bad_identity(uri: str, key: int, found: str, first: int) -> DataError:
    expected = f"an identity record: flag 2, no payload, ranges that cover keys 1 to {first - 1} once"
    return DataError(f"{uri}, key {key}", found=found, expected=expected, fix="pack the set again")


def _first_label(shard: Shard, by_key: NDArray[np.int64], starts: NDArray[np.int64], stops: NDArray[np.int64]) -> int:
    """Derive the label of identity 0 from the first readable one of 18 images."""
    low, high = key_bounds(starts)
    exact = np.flatnonzero((low == high) & (stops > starts))
    for identity in exact[spread(len(exact), _SAMPLED_RECORDS)].tolist():
        key = starts[identity]
        with contextlib.suppress(DataError):
            label = shard.headers(by_key[key : key + 1])[0][0].first_label
            if abs(label) < _MAX_LABEL:
                return int(label) - int(identity)
    return 0
