"""Read records of shards of any kind: label, encoded image, and what is wrong with a damaged one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lafs_ray.data import recordio
from lafs_ray.data.io.reading import ByteRanges, read_ranges
from lafs_ray.data.row_reader import read_rows
from lafs_ray.data.shard_layout import Layout, RowGroups, ShardLabels, TarMembers
from lafs_ray.errors import DataError

Record = tuple[int, bytes, str]
"""Label (-1: none), encoded image and error of a record; one of the last two is empty."""


@dataclass(frozen=True, eq=False)
class ShardReads:
    """Records to read from one shard.

    Args:
        ranges: where they are.
        keys: of them, int64 [n].
        layout: of the shard; None: RecordIO.
        labels: of the shard, from its index; None: each record has its own.
    """

    ranges: ByteRanges
    keys: NDArray[np.int64]
    layout: Layout | None
    labels: ShardLabels | None


def read_shards(shards: Sequence[ShardReads]) -> list[Record]:
    """Read records, shard after shard.

    Raises:
        DataError: a file is missing, or has changed since the set was opened.
    """
    ranged = [one for one in shards if not isinstance(one.layout, RowGroups)]
    grouped = [(one, one.layout) for one in shards if isinstance(one.layout, RowGroups)]
    found: dict[int, list[Record]] = {id(one): [] for one in shards}
    places = [
        (one, *place)
        for one in ranged
        for place in zip(_labels(one), one.keys.tolist(), one.ranges.offsets.tolist(), strict=True)
    ]
    for record, (one, label, key, offset) in zip(read_ranges([one.ranges for one in ranged]), places, strict=True):
        if isinstance(one.layout, TarMembers):
            error = one.layout.errors.get(key, "")
            found[id(one)].append((-1, b"", error) if error else (label, bytes(record), ""))
        else:
            found[id(one)].append(_parse_record(record, one.ranges.uri, key, offset))
    rows = read_rows([(one.ranges, layout) for one, layout in grouped]) if grouped else ()
    labels = [(one, label) for one, _ in grouped for label in _labels(one)]
    for (image, error), (one, label) in zip(rows, labels, strict=True):
        found[id(one)].append((-1 if error else label, image, error))
    return [record for one in shards for record in found[id(one)]]


def _labels(one: ShardReads) -> list[int]:
    return [-1] * len(one.keys) if one.labels is None else one.labels.labels(one.keys).tolist()


def _parse_record(record: memoryview, uri: str, key: int, offset: int) -> Record:
    """Return label, encoded image and error of one image record of a `.rec`."""
    where = f"{uri}, key {key}"
    try:
        body, end = recordio.decode_record(record, 0, base_offset=offset, source=where)
        header, payload = recordio.unpack(body, f"{where} at offset {offset}")
    except DataError as error:
        return -1, b"", f"{error.subject}: found {error.found}; expected {error.expected}"
    if end != len(record):
        error_text = f"found a record of {end} bytes; expected {len(record)}, up to the next record"
        return -1, b"", f"{where} at offset {offset}: {error_text}"
    if not payload:
        error_text = f"found no image (flag {header.flag}, 0 bytes); expected a JPEG or PNG"
        return -1, b"", f"{where} at offset {offset}: {error_text}"
    label = header.first_label
    is_identity = math.isfinite(label) and 0 <= label < 1 << 62 and label == int(label)
    return int(label) if is_identity else -1, bytes(payload), ""
