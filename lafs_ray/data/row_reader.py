"""Read images from Parquet: each row group that is needed once a call.

The last row group is kept, up to 64 MiB, so that reading a file from front to back in small pieces costs little more
than reading it at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lafs_ray.data.io import reading
from lafs_ray.data.io.reading import ByteRanges, all_at_once, check_unchanged, file_state, local_path
from lafs_ray.data.io.text_table import DAMAGE
from lafs_ray.data.shard_layout import RowGroups

_KEPT_BYTES = 64 << 20
_BATCH_ROWS = 64
_CONCURRENT_READS = 8
# A column of images may take this many times its file once decoded, and this much more.
_FREE_BYTES, _MOST_FACTOR = 128 << 20, 8

_Version = tuple[str, int, str, int]


@dataclass(frozen=True, eq=False)
class _GroupRead:
    """Rows of one row group to read.

    Args:
        version: path and state of the file.
        layout: of it.
        group: the row group.
        rows: numbers in the group, ascending, int64 [n].
    """

    version: _Version
    layout: RowGroups
    group: int
    rows: NDArray[np.int64]


def read_rows(shards: Sequence[tuple[ByteRanges, RowGroups]]) -> Iterator[tuple[bytes, str]]:
    """Yield image and error of rows, shard after shard; offsets are numbers of rows.

    Raises:
        DataError: a file is missing or has changed.
    """
    reads = []
    for ranges, layout in shards:
        check_unchanged(ranges)
        version = (ranges.uri, *file_state(ranges.uri))
        groups = layout.groups_of(ranges.offsets)
        for group in np.unique(groups).tolist():
            rows = ranges.offsets[groups == group] - layout.starts[group]
            reads.append(_GroupRead(version, layout, group, rows))
    # One after the other on a disk: each may take a lot of memory.
    is_local = all(local_path(ranges.uri) is not None for ranges, _ in shards)
    for images in map(_read_group, reads) if is_local else all_at_once(_CONCURRENT_READS, _read_group, reads):
        yield from images
    for ranges, _ in shards:
        check_unchanged(ranges)


def _read_group(read: _GroupRead) -> list[tuple[bytes, str]]:
    uri, size = read.version[:2]
    first = int(read.layout.starts[read.group])
    try:
        group_bytes = int(read.layout.group_bytes[read.group])
        if group_bytes > (limit := _FREE_BYTES + _MOST_FACTOR * size):
            raise ValueError(f"{group_bytes:,} bytes of images in a file for at most {limit:,}")
        if group_bytes <= _KEPT_BYTES:
            batches = _whole_group(read.version, read.layout.columns, read.group)
            return list(_rows_in(batches, read, first))
        return list(_rows_in(_batches(read.version, read.layout.columns, read.group), read, first))
    except DAMAGE as error:
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        return [
            (b"", f"{uri}, row {first + row}: found a row group that cannot be read ({text}); expected images")
            for row in read.rows.tolist()
        ]


def _rows_in(batches: Any, read: _GroupRead, first: int) -> Iterator[tuple[bytes, str]]:
    wanted, done, begin = read.rows.tolist(), 0, 0
    for batch in batches:
        while done < len(wanted) and wanted[done] < begin + batch.num_rows:
            where = f"{read.version[0]}, row {first + wanted[done]}"
            yield _image(batch.column(0), wanted[done] - begin, where)
            done += 1
        begin += batch.num_rows
        if done == len(wanted):
            return
    raise ValueError(f"{begin} rows in row group {read.group}, fewer than its footer says")


def _image(column: pa.Array, row: int, where: str) -> tuple[bytes, str]:
    path = None
    if pa.types.is_struct(column.type):
        if column.type.get_field_index("path") >= 0:
            path = column.field("path")[row].as_py()
        column = column.field("bytes")
    image = column[row].as_py()
    if image:
        return image, ""
    found = "no image (null)" if image is None else "0 bytes"
    if path is not None:
        found = f"no bytes, only the path {path!r}"
    return b"", f"{where}: found {found}; expected an encoded image"


@lru_cache(maxsize=1)
def _whole_group(version: _Version, columns: tuple[str, ...], group: int) -> list[pa.RecordBatch]:
    return list(_batches(version, columns, group))


def _batches(version: _Version, columns: tuple[str, ...], group: int) -> Iterator[pa.RecordBatch]:
    with reading.open_input(version[0]) as file:
        parquet = pq.ParquetFile(file, metadata=_footer(version))
        yield from parquet.iter_batches(_BATCH_ROWS, row_groups=[group], columns=list(columns), use_threads=False)


@lru_cache(maxsize=64)
def _footer(version: _Version) -> Any:
    with reading.open_input(version[0]) as file:
        return pq.read_metadata(file)
