"""Write the embeddings of a face set to one Parquet file, a row for each face.

Faces are streamed: 256 are read, decoded and embedded at a time, and row groups have 8192 rows
(25 MB at width 768), so memory does not grow with the set. The write is atomic; the file's metadata names the network.
Letters: B faces, D width.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lafs_ray.config import IMAGE_SIZE
from lafs_ray.data.eval_sets import EncodedImage, ImageSource
from lafs_ray.data.images import decode_image, decode_resized
from lafs_ray.data.io import filesystem
from lafs_ray.data.progress import ProgressLog
from lafs_ray.errors import DataError
from lafs_ray.evaluation.embed import require_finite

logger = logging.getLogger(__name__)

Embed = Callable[[NDArray[np.uint8]], NDArray[np.float32]]

CHUNK = 256
_ROW_GROUP = 8192
_NAMED = 10


@dataclass(frozen=True)
class Decoding:
    """Decoding options of stored faces.

    Args:
        color_order: what the files decode to.
        resize: scale square images of another size to 112×112; else they count as damaged.
        max_bad_records: faces that may be left out before the run fails.
    """

    color_order: Literal["rgb", "bgr"] = "rgb"
    resize: bool = False
    max_bad_records: int = 100


@dataclass
class Outcome:
    """Counts of an embedding run.

    Args:
        num_rows: faces written.
        left_out: one line for each damaged face.
    """

    num_rows: int = 0
    left_out: list[str] = field(default_factory=list)


def with_flip(embed: Embed) -> Embed:
    """Add the embedding of the mirror image, as in verification."""
    return lambda images: embed(images) + embed(np.ascontiguousarray(images[:, :, ::-1]))


def write_embeddings(
    uri: str, source: ImageSource, embed: Embed, decoding: Decoding, metadata: Mapping[str, str]
) -> Outcome:
    """Embed every face of a source into a Parquet file; each damaged face is logged as a warning.

    Columns: `shard` (only of `.rec` files), `key`, `label` (null where there is none), `vector`
    (float32, fixed-size list of D), in the source's order.

    Args:
        uri: the file.
        source: the faces.
        embed: uint8 [B, 112, 112, 3] RGB to float32 [B, D].
        decoding: how faces become pixels.
        metadata: written to the file's metadata, beside the row counts.

    Raises:
        DataError: more faces are damaged than allowed, or all are; an embedding is not finite; the path cannot be
            written to.
    """
    outcome = Outcome()
    with filesystem.atomic_write(uri) as file, contextlib.ExitStack() as closing:
        writer: pq.ParquetWriter | None = None
        for table in _tables(source, embed, decoding, outcome):
            if writer is None:
                schema = table.schema.with_metadata(dict(metadata))
                writer = pq.ParquetWriter(file, schema, use_dictionary=["shard"])
                closing.enter_context(writer)
            writer.write_table(table)
        if writer is None:
            raise too_many_damaged(outcome, source, "at least one face")
        counts = {"num_rows": outcome.num_rows, "left_out": len(outcome.left_out)}
        writer.add_key_value_metadata({name: str(count) for name, count in counts.items()})
    return outcome


def _tables(source: ImageSource, embed: Embed, decoding: Decoding, outcome: Outcome) -> Iterator[pa.Table]:
    """Yield row groups."""
    faces: list[EncodedImage] = []
    vectors: list[NDArray[np.float32]] = []
    for _, sound, embedded in embed_sound(source, range(0, source.num_images, CHUNK), embed, decoding, outcome):
        faces += sound
        vectors.append(embedded)
        if len(faces) >= _ROW_GROUP:
            yield _table(faces, np.concatenate(vectors))
            faces, vectors = [], []
    if faces:
        yield _table(faces, np.concatenate(vectors))


def embed_sound(
    source: ImageSource, starts: Sequence[int], embed: Embed, decoding: Decoding, outcome: Outcome
) -> Iterator[tuple[NDArray[np.int64], list[EncodedImage], NDArray[np.float32]]]:
    """Embed the sound faces of chunks of a source; each damaged one is logged as a warning.

    Args:
        source: the faces.
        starts: first faces of chunks of `CHUNK`.
        embed: uint8 [B, 112, 112, 3] RGB to float32 [B, D].
        decoding: how faces become pixels.
        outcome: counts, which are updated.

    Yields:
        Numbers in the source int64 [B], faces and vectors [B, D] of a chunk, B ≥ 1.

    Raises:
        DataError: more faces are damaged than allowed, or an embedding is not finite.
    """
    progress = ProgressLog(logger, "faces", min(source.num_images, len(starts) * CHUNK))
    for first in starts:
        stop = min(first + CHUNK, source.num_images)
        rows, sound, images = _decoded(source.read(first, stop), decoding, outcome)
        if len(outcome.left_out) > decoding.max_bad_records:
            raise too_many_damaged(outcome, source, f"at most {decoding.max_bad_records}")
        if sound:
            vectors = embed(np.stack(images))
            require_finite(vectors, [face.where for face in sound])
            outcome.num_rows += len(sound)
            yield first + np.array(rows, np.int64), sound, vectors
        progress.add(stop - first)


def _decoded(
    faces: list[EncodedImage], decoding: Decoding, outcome: Outcome
) -> tuple[list[int], list[EncodedImage], list[NDArray[np.uint8]]]:
    """Decode faces; return rows of the sound ones, these, and their pixels."""
    rows, sound, images = [], [], []
    decode = decode_resized if decoding.resize else decode_image
    for row, face in enumerate(faces):
        problem = face.error
        if not problem:
            try:
                images.append(decode(face.data, color_order=decoding.color_order, size=IMAGE_SIZE))
                sound.append(face)
                rows.append(row)
                continue
            except DataError as error:
                problem = f"{face.where}: found {error.found}; expected {error.expected}"
        outcome.left_out.append(problem)
        logger.warning("left out: %s", problem)
    return rows, sound, images


def _table(faces: list[EncodedImage], vectors: NDArray[np.float32]) -> pa.Table:
    columns: dict[str, pa.Array] = {}
    has_shards = faces[0].shard is not None
    if has_shards:
        columns["shard"] = pa.array([face.shard for face in faces], pa.string())
    keys = [face.key for face in faces]
    columns["key"] = pa.array(keys, pa.int64() if has_shards else pa.string())
    columns["label"] = pa.array([face.label for face in faces], pa.int64())
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
    columns["vector"] = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    return pa.table(columns)


def too_many_damaged(outcome: Outcome, source: ImageSource, expected: str) -> DataError:
    """Return the message of a set in which too many faces, or all, are damaged."""
    shown = outcome.left_out[:_NAMED]
    return DataError(
        f"{source.path}: damaged faces",
        found="\n    ".join([f"{len(outcome.left_out)} so far:", *shown]),
        expected=expected,
        fix="repair the files named, or raise --max-bad-records; aligned faces of another size: lafs pack SET OUT "
        "--resize, or lafs embed --resize",
    )
