"""Landmarks of another tool, as Parquet.

    landmarks    list of N lists [x, y], or one flat list x1, y1, x2, …; pixels of the aligned face; null: none found
    key, shard   the record: int64 key; shard (string: file name) only where a set has several files
    path         instead of key: the image file that was packed, relative to a folder
    image_crc32  optional, uint32: CRC-32 of the encoded image, to recognize another set with the same keys

The file's metadata has `landmarks_tool` and `landmarks_tool_version`, unless options name them. A folder of such files
is read in the order of their names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lafs_ray.config import IMAGE_SIZE
from lafs_ray.data.io import filesystem, reading
from lafs_ray.data.io.parquet_table import metadata_text
from lafs_ray.data.io.text_table import DAMAGE
from lafs_ray.errors import DataError

TOOL, TOOL_VERSION = "landmarks_tool", "landmarks_tool_version"

_ROWS_PER_BATCH = 4096
_EXPECTED = "a Parquet file with columns landmarks (lists of x, y in pixels) and key or path"
_FIX = "write the columns as docs/data.md describes them (Landmarks of another tool)"


@dataclass(frozen=True, eq=False)
class PointRows:
    """Some rows of a table of points.

    Args:
        first: number of the first row in the file.
        names: columns of those that the table has: key, shard, path, image_crc32.
        is_found: whether a row has landmarks, bool [n].
        landmarks: float32 [number found, N, 2] in pixels.
    """

    first: int
    names: dict[str, pa.Array]
    is_found: NDArray[np.bool_]
    landmarks: NDArray[np.float32]


class PointsTable:
    """A Parquet file of points, or a folder of them, read a few thousand rows at a time.

    Args:
        uri: of the file or folder.

    Raises:
        DataError: it is missing, damaged, or has other columns.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._files = [uri]
        if filesystem.is_folder(uri):
            names = sorted(name for name in filesystem.list_names(uri) if name.endswith(".parquet"))
            if not names:
                raise self._bad("a folder without .parquet files")
            self._files = [filesystem.join(uri, name) for name in names]
        self.num_rows = 0
        schema = self._open(self._files[0]).schema_arrow
        for file in self._files:
            one = self._open(file)
            self.num_rows += int(one.metadata.num_rows)
            if not one.schema_arrow.equals(schema, check_metadata=True):
                raise self._bad(f"{filesystem.file_name(file)} with other columns or another tool than the first")
        self.columns = [name for name in ("key", "shard", "path", "image_crc32") if name in schema.names]
        if "landmarks" not in schema.names or not {"key", "path"} & set(self.columns):
            raise self._bad(f"columns {', '.join(schema.names[:12]) or 'none'}")
        if self.num_rows == 0:
            raise self._bad("no rows")
        metadata = metadata_text(schema)
        self.tool, self.tool_version = metadata.get(TOOL), metadata.get(TOOL_VERSION)

    def rows(self) -> Iterator[PointRows]:
        """Yield all rows in order.

        Raises:
            DataError: a row is damaged, has another number of landmarks than the first, or values that are no pixels.
        """
        first, count = 0, None
        try:
            for batch in self._batches():
                names = {name: batch.column(name) for name in self.columns}
                is_found = batch.column("landmarks").is_valid().to_numpy(zero_copy_only=False)
                landmarks = self._landmarks(batch.column("landmarks"), first, count)
                count = landmarks.shape[1] if len(landmarks) else count
                yield PointRows(first, names, is_found, landmarks)
                first += batch.num_rows
        except DAMAGE as error:
            raise self._bad(" ".join(str(error).split())[:200]) from None

    def _open(self, file: str) -> pq.ParquetFile:
        content = reading.open_input(file)
        try:
            return pq.ParquetFile(content)
        except DAMAGE as error:
            raise self._bad(f"{filesystem.file_name(file)}: {' '.join(str(error).split())[:200]}") from None

    def _batches(self) -> Iterator[pa.RecordBatch]:
        for file in self._files:
            yield from self._open(file).iter_batches(_ROWS_PER_BATCH, columns=["landmarks", *self.columns])

    def _landmarks(self, column: pa.Array, first: int, count: int | None) -> NDArray[np.float32]:
        """Return the landmarks of the rows that have some, [n, N, 2]."""
        if not (_is_list(column.type)):
            raise self._bad(f"landmarks of type {column.type}")
        rows = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False)) + first
        found = column.drop_null()
        if len(found) == 0:
            return np.empty((0, count or 0, 2), np.float32)
        values, width = found.flatten(), 2
        lengths = pc.list_value_length(found).to_numpy(zero_copy_only=False)
        if _is_list(values.type):
            if not pc.all(pc.equal(pc.list_value_length(values), 2)).as_py():
                raise self._bad("landmarks that are not pairs x, y")
            values, width = values.flatten(), 1
        expected = count * width if count is not None else int(lengths[0])
        odd = lengths != expected
        if odd.any() or expected == 0 or expected % width:
            at = int(odd.argmax())
            raise self._bad(f"{lengths[at] / width:g} landmarks in row {rows[at]}; {expected / width:g} before it")
        points: NDArray[Any] = values.cast(pa.float32()).to_numpy(zero_copy_only=False)
        points = points.reshape(len(found), -1, 2)
        outside = ~((points >= -IMAGE_SIZE) & (points <= 2 * IMAGE_SIZE)).all(axis=(1, 2))
        if outside.any():
            at = int(outside.argmax())
            bad = ~((points[at] >= -IMAGE_SIZE) & (points[at] <= 2 * IMAGE_SIZE)).all(axis=1)
            x, y = points[at, int(bad.argmax())].tolist()
            raise DataError(
                f"{self.uri}, row {rows[at]}",
                found=f"a landmark at ({x:g}, {y:g}), one of {int(outside.sum())} such rows here",
                expected=f"pixels of an aligned face of {IMAGE_SIZE}×{IMAGE_SIZE}",
                fix="run the tool on the aligned faces, and leave null where it finds none",
            )
        return points

    def _bad(self, found: str) -> DataError:
        return DataError(self.uri, found=found, expected=_EXPECTED, fix=_FIX)


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))
