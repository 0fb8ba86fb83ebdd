"""Landmarks of aligned faces by MediaPipe's FaceMesh, as Parquet files of `points_table`.

Runs in an environment of its own (`make mediapipe-environment`): MediaPipe needs numpy < 2, and is imported in the
functions that use it. Files hold up to 4,096 faces and are written atomically, so an interrupted job continues.
"""

from __future__ import annotations

import importlib
import logging
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lafs_ray.config import IMAGE_SIZE
from lafs_ray.data.face_set import FaceSet, open_faces
from lafs_ray.data.facemesh import FACEMESH_POINTS, spread_points
from lafs_ray.data.images import ColorOrder, decode_image
from lafs_ray.data.io import filesystem
from lafs_ray.data.io.listing import list_tree, read_files
from lafs_ray.data.io.walk import IMAGE_ENDINGS
from lafs_ray.data.points_table import TOOL, TOOL_VERSION
from lafs_ray.data.progress import ProgressLog
from lafs_ray.data.set_files import is_set
from lafs_ray.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

ROWS_PER_FILE = 4096
# The detector misses faces that fill the image.
_BORDER_PX = 28
_GRAY = (128, 128, 128)
_MIN_CONFIDENCE = 0.3


@dataclass(frozen=True)
class Found:
    """Numbers of faces, and of those with landmarks."""

    faces: int
    found: int


@dataclass(frozen=True, eq=False)
class _Job:
    """Faces to look at, sent to each process: a set, or image files below a folder."""

    faces: FaceSet | None
    folder: str
    files: tuple[str, ...]
    out: str
    color_order: ColorOrder
    version: str
    kept: tuple[int, ...]

    @property
    def num_faces(self) -> int:
        return len(self.files) if self.faces is None else self.faces.num_images


def find_landmarks(
    path: str, out: str, *, color_order: ColorOrder = "rgb", workers: int = 1, count: int = len(FACEMESH_POINTS)
) -> Found:
    """Write the landmarks of all faces to Parquet files; null where MediaPipe finds none.

    Args:
        path: a set as `open_faces` takes it, or a folder of aligned images.
        out: folder of the Parquet files.
        color_order: of the decoded images.
        workers: processes.
        count: landmarks of a face, as in `spread_points`.

    Raises:
        ConfigError: MediaPipe is not installed here, or a number is impossible.
        DataError: the faces are missing or damaged, or the folder cannot be written to, or holds files of other faces.
    """
    if workers < 1:
        raise ConfigError("--workers", found=str(workers), expected="1 or more", fix="choose another number")
    kept = spread_points(count)
    job = _open(path, out, color_order, _mediapipe_version(), kept)
    starts = range(0, job.num_faces, ROWS_PER_FILE)
    prefix = "landmarks" if count == len(FACEMESH_POINTS) else f"landmarks-{count}"
    names = {first: f"{prefix}-{first // ROWS_PER_FILE:06d}-of-{len(starts):06d}.parquet" for first in starts}
    present = {name for name in filesystem.list_names(out) if name.endswith(".parquet")}
    if foreign := present - set(names.values()):
        raise DataError(
            out,
            found=f"{min(foreign)}, of other faces or of another number of landmarks",
            expected="an empty folder",
            fix="choose another folder",
        )
    filesystem.require_writable(out)
    missing = [first for first in starts if names[first] not in present]
    done = sum(min(ROWS_PER_FILE, job.num_faces - first) for first in starts if first not in missing)
    progress = ProgressLog(logger, "faces", job.num_faces, done)
    for count in _run(job, names, missing, workers):
        progress.add(count)
    tables = (pq.read_table(filesystem.join(out, name), columns=["landmarks"]) for name in names.values())
    return Found(job.num_faces, sum(table.num_rows - table["landmarks"].null_count for table in tables))


def _mediapipe_version() -> str:
    try:
        return str(importlib.import_module("mediapipe").__version__)
    except ImportError:
        raise ConfigError(
            "mediapipe",
            found="no such package in this environment",
            expected="mediapipe 0.10.21, which needs numpy < 2",
            fix="run `make mediapipe-environment`, then .venv-mediapipe/bin/python jobs/mediapipe_landmarks.py …",
        ) from None


def _open(path: str, out: str, color_order: ColorOrder, version: str, kept: tuple[int, ...]) -> _Job:
    if filesystem.is_folder(path) and not is_set(path):
        files = tuple(sorted(name for name, _, _ in list_tree(path) if name.lower().endswith(IMAGE_ENDINGS)))
        if files:
            return _Job(None, path, files, out, color_order, version, kept)
    return _Job(open_faces(path, color_order, IMAGE_SIZE), path, (), out, color_order, version, kept)


def _run(job: _Job, names: dict[int, str], missing: list[int], workers: int) -> Iterator[int]:
    """Write the missing files; yield the number of faces of each."""
    write = partial(_write_file, job, names)
    if workers == 1:
        yield from map(write, missing)
        return
    # spawn: threads of OpenCV and MediaPipe do not survive a fork.
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        yield from pool.map(write, missing)


def _write_file(job: _Job, names: dict[int, str], first: int) -> int:
    stop = min(first + ROWS_PER_FILE, job.num_faces)
    columns, images = _read(job, first, stop)
    landmarks = list(_landmarks(job, images))
    columns["image_crc32"] = pa.array([zlib.crc32(image) for image in images], pa.uint32())
    columns["landmarks"] = pa.array(
        [None if points is None else points.tolist() for points in landmarks], pa.list_(pa.list_(pa.float32(), 2))
    )
    table = pa.table(columns).replace_schema_metadata({TOOL: "mediapipe facemesh", TOOL_VERSION: job.version})
    with filesystem.atomic_write(filesystem.join(job.out, names[first])) as file:
        pq.write_table(table, file)
    return stop - first


def _read(job: _Job, first: int, stop: int) -> tuple[dict[str, Any], list[bytes]]:
    """Return the names and the encoded images of some faces; empty bytes where one cannot be read."""
    if job.faces is None:
        contents = read_files(job.folder, job.files[first:stop])
        return {"path": list(job.files[first:stop])}, [c if isinstance(c, bytes) else b"" for c in contents]
    rows = job.faces.read(np.arange(first, stop))
    shards = [filesystem.file_name(job.faces.shard_uris[shard]) for shard in rows.shard.tolist()]
    return {"shard": shards, "key": rows.key}, rows.images


def _landmarks(job: _Job, images: Iterable[bytes]) -> Iterator[NDArray[np.float32] | None]:
    """Yield the landmarks of each image, [N, 2] in pixels; None: no face, or no image."""
    points_kept = [FACEMESH_POINTS[number] for number in job.kept]
    solutions = importlib.import_module("mediapipe").solutions
    options = {"static_image_mode": True, "max_num_faces": 1, "min_detection_confidence": _MIN_CONFIDENCE}
    with solutions.face_mesh.FaceMesh(**options) as mesh:
        for content in images:
            try:
                image = decode_image(content, color_order=job.color_order)
            except DataError:
                yield None
                continue
            border = (_BORDER_PX,) * 4
            padded = cv2.copyMakeBorder(image, *border, cv2.BORDER_CONSTANT, value=_GRAY)
            faces = mesh.process(padded).multi_face_landmarks
            if not faces:
                yield None
                continue
            points = np.array([(point.x, point.y) for point in faces[0].landmark], np.float32)
            yield points[points_kept] * len(padded) - _BORDER_PX
