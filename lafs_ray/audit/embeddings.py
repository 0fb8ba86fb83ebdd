"""Embeddings of a set, as `jobs/embed.py` writes them, unpacked to a file that is mapped into memory.

Vectors are centered by the mean of the training set and normalized, so that the scalar product of two is their cosine.
Memory is that of a row group and of the columns, 30 bytes a row; the vectors lie on the disk. Letters: N rows, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lafs_ray.data.io import filesystem, reading
from lafs_ray.data.io.parquet_table import metadata_text
from lafs_ray.data.io.text_table import DAMAGE
from lafs_ray.errors import DataError

Floats = NDArray[np.float32]
Int64s = NDArray[np.int64]

_ROWS_AT_ONCE = 8192


@dataclass(frozen=True, eq=False)
class VectorFile:
    """Normalized vectors in a raw float32 file.

    Args:
        path: of the file, on a disk that all workers reach.
        num_rows: N.
        width: D.
    """

    path: str
    num_rows: int
    width: int

    def open(self) -> Floats:
        """Map the vectors into memory, read only: float32 [N, D]."""
        return np.memmap(self.path, np.float32, "r", shape=(self.num_rows, self.width))


@dataclass(frozen=True, eq=False)
class EmbeddedSet:
    """Embeddings of a set with the names of its images.

    Args:
        uri: the Parquet file.
        faces: the set that was embedded; empty where the file does not say.
        color_order: of its images.
        shards: the `.rec` files; empty for other sources.
        shard: number of each row's file, int32 [N]; -1: none.
        keys: of each row: record key, file name or number in a pair file; [N].
        labels: identity of each row, int64 [N]; -1: none.
        vectors: of the rows.
    """

    uri: str
    faces: str
    color_order: str
    shards: tuple[str, ...]
    shard: NDArray[np.int32]
    keys: pa.Array
    labels: Int64s
    vectors: VectorFile

    @property
    def num_rows(self) -> int:
        """Number of faces."""
        return len(self.labels)

    @property
    def name(self) -> str:
        """Short name for tables: the last parts of the path of the faces."""
        return "/".join(filesystem.absolute(self.faces or self.uri).rstrip("/").rsplit("/", 2)[-2:])

    def where(self, row: int) -> tuple[str, str]:
        """Return file (empty where images are files) and key of a row."""
        number = int(self.shard[row])
        return self.shards[number] if number >= 0 else "", str(self.keys[row].as_py())


def read_embeddings(uri: str, path: str, mean: NDArray[np.float64] | None = None) -> tuple[EmbeddedSet, Any]:
    """Read a Parquet file of embeddings, and write its normalized vectors to `path`.

    Args:
        uri: the Parquet file.
        path: of the raw file, which is replaced.
        mean: subtracted from all vectors; None: their own mean.

    Returns:
        The set and the mean that was subtracted, float64 [D].

    Raises:
        DataError: the file is missing or damaged, or has no vectors of one width.
    """
    with reading.open_input(uri) as raw:
        try:
            file = pq.ParquetFile(raw)
            return _read(uri, file, path, mean)
        except DAMAGE as error:
            raise _unusable(uri, str(error).splitlines()[0]) from None


def _read(uri: str, file: pq.ParquetFile, path: str, mean: NDArray[np.float64] | None) -> tuple[EmbeddedSet, Any]:
    schema = file.schema_arrow
    if "vector" not in schema.names or not pa.types.is_fixed_size_list(schema.field("vector").type):
        raise _unusable(uri, f"columns {', '.join(schema.names)}")
    width, count = schema.field("vector").type.list_size, file.metadata.num_rows
    if count == 0:
        raise _unusable(uri, "no rows")
    if mean is None:
        mean = sum(rows.sum(axis=0, dtype=np.float64) for rows in _vectors(file, width)) / count
    if len(mean) != width:
        raise DataError(
            uri,
            found=f"vectors of {width}",
            expected=f"vectors of {len(mean)}, as the training set's: made by the same network",
            fix="embed both sets with one network",
        )
    vectors = VectorFile(path, count, width)
    out: Floats = np.memmap(path, np.float32, "w+", shape=(count, width))
    start = 0
    for rows in _vectors(file, width):
        centered = rows - mean
        norms = np.linalg.norm(centered, axis=1, keepdims=True)
        out[start : start + len(rows)] = centered / np.where(norms == 0, 1, norms)
        start += len(rows)
    names = [name for name in ("shard", "key", "label") if name in schema.names]
    table = file.read(columns=names)
    shards, shard = (), np.full(count, -1, np.int32)
    if "shard" in names:
        column = table["shard"].combine_chunks().dictionary_encode()
        shards, shard = tuple(column.dictionary.to_pylist()), column.indices.to_numpy().astype(np.int32)
    labels = np.full(count, -1, np.int64)
    if "label" in names:
        labels = table["label"].combine_chunks().fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    keys = table["key"].combine_chunks() if "key" in names else pa.array(range(count))
    metadata = metadata_text(schema)
    faces, color_order = metadata.get("faces", ""), metadata.get("faces_color_order", "rgb")
    return EmbeddedSet(uri, faces, color_order, shards, shard, keys, labels, vectors), mean


def _vectors(file: pq.ParquetFile, width: int) -> Iterator[Floats]:
    """Yield the vectors of some thousand rows at a time, float32 [n, D]."""
    for batch in file.iter_batches(_ROWS_AT_ONCE, columns=["vector"], use_threads=False):
        rows = batch.column(0).flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
        if not np.isfinite(rows).all():
            raise ValueError("a vector that is not finite")
        yield rows.astype(np.float32, copy=False)


def _unusable(uri: str, found: str) -> DataError:
    return DataError(
        uri,
        found=found,
        expected="a Parquet file with a column `vector`, a fixed-size list of finite numbers",
        fix="make it with jobs/embed.py",
    )
