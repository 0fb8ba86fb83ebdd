"""True landmarks of a synthetic set as Parquet, in the form of another tool's landmarks."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lafs_ray import __version__
from lafs_ray.data.face_set import FaceSet, open_faces
from lafs_ray.data.io import filesystem
from lafs_ray.data.points_table import TOOL, TOOL_VERSION
from lafs_ray.synthetic.capture import sample_capture
from lafs_ray.synthetic.datasets import map_in_order
from lafs_ray.synthetic.identity import sample_identity
from lafs_ray.synthetic.landmarks import Points, layout_positions, true_landmarks

# 13 MB at 196 landmarks.
_ROWS_PER_GROUP = 8192
_SCHEMA = pa.schema(
    {
        "shard": pa.string(),
        "key": pa.int64(),
        "image_crc32": pa.uint32(),
        "landmarks": pa.list_(pa.list_(pa.float32(), 2)),
    }
)


def write_landmarks(folder: str, layout: str, *, images_per_identity: int, seed: int, workers: int = 1) -> str:
    """Write `landmarks-<layout>.parquet` beside a set that `write_faces` has written; return its path.

    Args:
        folder: of the set.
        layout: as in `layout_positions`.
        images_per_identity: of the set.
        seed: of its population.
        workers: processes.

    Raises:
        ConfigError: the layout is unknown.
        DataError: the set is missing or damaged, or the folder cannot be written to.
    """
    positions = layout_positions(layout)
    faces = open_faces(folder)
    uri = filesystem.join(folder, f"landmarks-{layout}.parquet")
    schema = _SCHEMA.with_metadata({TOOL: f"lafs_ray synthetic {layout}", TOOL_VERSION: __version__})
    find = partial(_of_identity, seed, images_per_identity, positions)
    numbers = range(faces.num_images // images_per_identity)
    # Labels are the numbers of the identities, in the order of the records.
    results = map_in_order(find, faces.labels()[::images_per_identity].tolist(), workers=workers, unit="identities")
    waiting: list[pa.RecordBatch] = []
    with filesystem.atomic_write(uri) as file, pq.ParquetWriter(file, schema) as writer:
        for batch in _batches(faces, images_per_identity, zip(numbers, results, strict=True), schema):
            waiting.append(batch)
            if sum(one.num_rows for one in waiting) >= _ROWS_PER_GROUP:
                writer.write_table(pa.Table.from_batches(waiting))
                waiting = []
        if waiting:
            writer.write_table(pa.Table.from_batches(waiting))
    return uri


def _batches(
    faces: FaceSet, images_per_identity: int, found: Iterator[tuple[int, Points]], schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of one identity after another."""
    names = [filesystem.file_name(uri) for uri in faces.shard_uris]
    for number, landmarks in found:
        rows = faces.read(np.arange(number * images_per_identity, (number + 1) * images_per_identity))
        columns = [
            [names[shard] for shard in rows.shard.tolist()],
            rows.key,
            [zlib.crc32(image) for image in rows.images],
            landmarks.tolist(),
        ]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _of_identity(seed: int, images_per_identity: int, positions: Points, number: int) -> Points:
    """Return the landmarks of an identity's images, [images, N, 2]."""
    identity = sample_identity(seed, number)
    captures = [sample_capture(seed, number, index) for index in range(images_per_identity)]
    return np.stack([true_landmarks(identity, capture, positions) for capture in captures])
