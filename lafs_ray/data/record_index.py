"""Open one `.rec` file with its index: find the image records and validate the index.

Two layouts. In insightface's, record 0 holds the range of identity keys, keys 1… are images, and an identity record
holds the range of its image keys. In a plain file (im2rec) every record is an image; its index may be missing, the file
is then scanned once.

An index is validated with a few small reads: records must begin and end where it says, at 18
places. An index of another file, or half of one, is thus refused before a run starts, while a single damaged record is
left to the reader.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lafs_ray.data import recordio
from lafs_ray.data.io import filesystem, reading
from lafs_ray.data.io.reading import ByteRanges, read_ranges, record_file_state
from lafs_ray.errors import DataError

_SAMPLED_RECORDS = 18
# Labels and keys are float32 in the file; larger ones (and nan) do not fit into int64 arrays.
_MAX_LABEL = 1 << 62
_INDEX_FIX = (
    "copy .rec and .idx again from one place, or delete the .idx: the .rec is then scanned once, "
    "and record n gets key n"
)


@dataclass(frozen=True, eq=False)
class Identities:
    """The identities of one shard in insightface's layout.

    Args:
        base: the label of the shard's first identity; the i-th has label base + i.
        starts: first image key of each identity, int64 [identities].
        stops: the key after its last image, int64 [identities].
    """

    base: int
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]

    @property
    def listed(self) -> NDArray[np.int64]:
        """Labels that the shard lists, int64 [identities]."""
        return self.base + np.arange(len(self.starts))

    def labels(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the label of each image key, int64 [n]."""
        # An identity without images has start == stop and must sort before its neighbor.
        order = np.lexsort((self.stops, self.starts))
        rank = np.searchsorted(self.starts[order], keys, side="right") - 1
        return self.base + order[rank]


@dataclass(frozen=True, eq=False)
class Shard:
    """Records of one file in file order; after `_select_images`, only its images.

    Args:
        uri: the `.rec` file.
        size_bytes: of the file.
        keys: of the records, int64 [n].
        offsets: of the records in the file, int64 [n].
        sizes: of the records with framing and padding, int64 [n].
        identities: in insightface's layout.
        version: ETag of the object; empty on a disk.
    """

    uri: str
    size_bytes: int
    keys: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    identities: Identities | None = None
    version: str = ""

    def headers(self, positions: NDArray[np.int64]) -> list[tuple[recordio.Header, int]]:
        """Return header and payload size in bytes of the records at these ascending positions.

        Raises:
            DataError: one of them is damaged.
        """
        result = []
        ranges = ByteRanges(self.uri, self.offsets[positions], self.sizes[positions])
        for record, position in zip(read_ranges([ranges]), positions.tolist(), strict=True):
            where = f"{self.uri}, key {self.keys[position]}"
            offset = int(self.offsets[position])
            body, _ = recordio.decode_record(record, 0, base_offset=offset, source=where)
            header, payload = recordio.unpack(body, where)
            result.append((header, len(payload)))
        return result


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
    if filesystem.exists(recordio.index_uri(uri)):
        keys, offsets = _ordered_index(uri, size_bytes)
        last_end = _check_boundaries(uri, keys, offsets, size_bytes)
        sizes = np.diff(offsets, append=np.int64(last_end))
    else:
        columns = (n for offset, size, _ in recordio.scan_records(uri) for n in (offset, size))
        offsets, sizes = np.fromiter(columns, np.int64).reshape(-1, 2).T.copy()
        keys = np.arange(len(offsets))
    return _select_images(Shard(uri, size_bytes, keys, offsets, sizes, version=version))


def _ordered_index(uri: str, size_bytes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Read keys and offsets, in file order.

    Raises:
        DataError: an offset lies outside the file, is no multiple of 4, or occurs twice.
    """
    index = recordio.index_uri(uri)
    keys, offsets = recordio.read_index(index)
    if not len(keys):
        found = "no records"
        raise DataError(index, found=found, expected="one line per record", fix=_INDEX_FIX)
    if not np.all(offsets[1:] > offsets[:-1]):
        order = np.argsort(offsets, kind="stable")
        keys, offsets = keys[order], offsets[order]
    duplicates = np.flatnonzero(offsets[1:] == offsets[:-1])
    if len(duplicates):
        first, second = keys[duplicates[0]], keys[duplicates[0] + 1]
        found = f"keys {first} and {second} at the same offset {offsets[duplicates[0]]}"
        raise DataError(index, found=found, expected="different offsets", fix=_INDEX_FIX)
    outside = np.flatnonzero((offsets < 0) | (offsets >= size_bytes) | (offsets % 4 != 0))
    if len(outside):
        raise DataError(
            f"{index}, key {keys[outside[0]]}",
            found=f"offset {offsets[outside[0]]}",
            expected=f"a multiple of 4 inside {uri}, which has {size_bytes} bytes",
            fix=_INDEX_FIX,
        )
    if offsets[0] != 0:
        found = f"offset {offsets[0]} as the first"
        raise DataError(index, found=found, expected="a record at offset 0", fix=_INDEX_FIX)
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
        fix=_INDEX_FIX,
    )


def spread(count: int, most: int) -> NDArray[np.int64]:
    """Return up to `most` positions below `count`, evenly spaced, with the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def _select_images(shard: Shard) -> Shard:
    """Separate the image records of a shard from its identity records."""
    if np.all(shard.keys[1:] > shard.keys[:-1]):
        by_key, sorted_keys = np.arange(len(shard.keys)), shard.keys
    else:
        by_key = np.argsort(shard.keys, kind="stable")
        sorted_keys = shard.keys[by_key]
    duplicates = np.flatnonzero(sorted_keys[1:] == sorted_keys[:-1])
    if len(duplicates):
        found = f"key {sorted_keys[duplicates[0]]} twice"
        subject = recordio.index_uri(shard.uri)
        raise DataError(subject, found=found, expected="different keys", fix=_INDEX_FIX)
    if sorted_keys[0] != 0:
        return shard
    identity_keys = _key_range(*shard.headers(by_key[:1])[0])
    if identity_keys is None:
        return shard
    first, stop = identity_keys
    _check_keys(shard.uri, sorted_keys, first, stop)
    starts, stops = _identity_ranges(shard, by_key[first:stop], first)
    base = _first_label(shard, by_key, starts, stops)
    positions = np.sort(by_key[1:first])
    images: NDArray[np.int64] | slice = positions
    if positions[-1] - positions[0] == first - 2:
        # Contiguous, as every writer leaves them: views save copies of 120 MB for 5 M images.
        images = slice(int(positions[0]), int(positions[-1]) + 1)
    return Shard(
        shard.uri,
        shard.size_bytes,
        shard.keys[images],
        shard.offsets[images],
        shard.sizes[images],
        Identities(base, starts, stops),
        shard.version,
    )


def _key_range(header: recordio.Header, payload_bytes: int) -> tuple[int, int] | None:
    """Return the key range in a header or identity record of insightface; None for an image."""
    if payload_bytes or not isinstance(header.label, tuple) or len(header.label) != 2:
        return None
    if not all(abs(label) < _MAX_LABEL for label in header.label):
        return None
    return int(header.label[0]), int(header.label[1])


def _check_keys(uri: str, sorted_keys: NDArray[np.int64], first: int, stop: int) -> None:
    """Check the keys: images are 1 … first-1, identities first … stop-1, as record 0 says."""
    counts = f"{first - 1} images (keys 1 to {first - 1}) and {stop - first} identities (keys "
    counts += f"{first} to {stop - 1}), as record 0 says"
    if not 1 < first < stop:
        found = f"record 0 says [{first}, {stop}]"
        expected = "[first identity key, last identity key + 1], with images before them"
        raise DataError(uri, found=found, expected=expected, fix="pack the images again")
    if len(sorted_keys) != stop or sorted_keys[-1] != stop - 1:
        common = min(len(sorted_keys), stop)
        gaps = np.flatnonzero(sorted_keys[:common] != np.arange(common))
        key = int(gaps[0]) if len(gaps) else common
        problem = f"key {key} is missing" if key < stop else f"unexpected key {sorted_keys[key]}"
        found = f"{len(sorted_keys)} records; {problem}"
        raise DataError(uri, found=found, expected=counts, fix=_INDEX_FIX)


def _identity_ranges(
    shard: Shard, positions: NDArray[np.int64], first: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Read the image keys [start, stop) of each identity; all together cover each image once."""
    starts, stops = np.empty(len(positions), np.int64), np.empty(len(positions), np.int64)
    in_file_order = np.argsort(positions, kind="stable")
    headers = shard.headers(positions[in_file_order])
    for identity, (header, payload_bytes) in zip(in_file_order.tolist(), headers, strict=True):
        images = _key_range(header, payload_bytes)
        if images is None:
            found = f"flag {header.flag} and a payload of {payload_bytes} bytes"
            raise _bad_identity(shard.uri, first + identity, found, first)
        starts[identity], stops[identity] = images
    order = np.lexsort((stops, starts))
    next_start = np.append(starts[order][1:], first)
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
    for identity in spread(len(starts), _SAMPLED_RECORDS).tolist():
        if stops[identity] > starts[identity]:
            key = starts[identity]
            with contextlib.suppress(DataError):
                label = shard.headers(by_key[key : key + 1])[0][0].first_label
                if abs(label) < _MAX_LABEL:
                    return int(label) - int(identity)
    return 0
