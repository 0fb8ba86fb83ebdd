"""From the order of records to batches: read a portion, decode and cut it, deal it out by steps.

The three parts are plain functions of their input. Debug mode calls them one after the other in one
process; Ray Data calls the first in read tasks, the second in actors and the third in the training
worker (`lafs_ray.engine.ray_ingest`). The crops of a record depend on (seed, epoch, shard, key)
alone, so both give the same batches, bit for bit.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.face_set import FaceRows, FaceSet
from lafs_ray.data.images import decode_image
from lafs_ray.data.sampler import EpochSampler, ShuffleBlock
from lafs_ray.errors import DataError

Columns = dict[str, NDArray[Any]]
"""Named columns of equal length, one row for each face."""

Transform = Callable[[Columns], Columns]
"""Makes training columns from decoded faces.

In: image uint8 [B,112,112,3] RGB, label, epoch, shard and key int64 [B], and landmarks float16
[B,N,2] where the set has cached ones. Out: what the method's
`loss` takes, rows in the same order.
"""

WORK = ("read", "cut")
"""Kinds of work on a batch before it is trained on: reading its records; decoding and cutting."""

_SUBSTITUTE_STREAM = 0x73756273
_MAX_SUBSTITUTES = 16


@dataclass(frozen=True)
class StepBatch:
    """One rank's share of one optimizer step.

    Args:
        step: global step.
        epoch: its epoch.
        columns: what the method's `loss` takes, rows in batch order.
        skipped: a line for each damaged record that was replaced by another.
        work_s: seconds that processes have spent on these rows, by kind of work (`WORK`).
    """

    step: int
    epoch: int
    columns: Columns
    skipped: list[str]
    work_s: dict[str, float] = field(default_factory=dict)


def read_records(faces: FaceSet, plan: EpochSampler, portion: ShuffleBlock) -> Columns:
    """The stored bytes of a portion's records, step by step.

    Returns:
        Columns epoch, shard, key, label (int64 [n]), image (bytes as object [n]), error (str as
        object [n], empty where the record is sound) and cached landmarks (float16 [n,N,2]), if any.
    """
    rows = faces.read(plan.records(portion).ravel())
    return {"epoch": np.full(len(rows.images), portion.epoch, dtype=np.int64), **_as_columns(rows)}


def _as_columns(rows: FaceRows) -> Columns:
    image = np.empty(len(rows.images), dtype=object)
    image[:] = rows.images
    columns: Columns = {
        "shard": rows.shard.astype(np.int64),
        "key": rows.key,
        "label": rows.label,
        "image": image,
        "error": np.array(rows.errors, dtype=object),
    }
    return columns if rows.landmarks is None else {**columns, "landmarks": rows.landmarks}


class Preprocessor:
    """Decodes faces, replaces damaged ones and cuts what the method trains on.

    A damaged record is replaced by another one drawn from (seed, epoch, shard, key), so that every
    rank keeps the same number of rows and a rerun replaces it by the same record.

    Args:
        faces: the set, to read replacements from.
        color_order: what the JPEGs decode to.
        seed: seed of the replacements.
        cut: see `Transform`.
        num_classes: a record whose label is not in 0…num_classes-1 is damaged; None: labels are
            not read.
    """

    def __init__(
        self,
        faces: FaceSet,
        color_order: Literal["rgb", "bgr"],
        seed: int,
        cut: Transform,
        num_classes: int | None = None,
    ) -> None:
        self._faces, self._color_order, self._seed, self._cut = faces, color_order, seed, cut
        self._num_classes = num_classes

    def __call__(self, rows: Columns) -> Columns:
        """Columns of `cut` for rows of `read_records`, and `skipped` (str as object, mostly empty).

        Raises:
            DataError: too many replacements in a row are damaged as well.
        """
        faces = [self._sound_face(rows, index) for index in range(len(rows["key"]))]
        columns = {name: np.stack([face[name] for face, _ in faces]) for name in faces[0][0]}
        cut = self._cut({**columns, "epoch": rows["epoch"]})
        return {**cut, "skipped": np.array([problem for _, problem in faces], dtype=object)}

    def _sound_face(self, rows: Columns, index: int) -> tuple[Columns, str]:
        """What `Transform` takes, of a row or its replacement, and why it was replaced."""
        face, problem = self._decode(rows, index)
        if face is not None:
            return face, ""
        epoch, shard, key = (int(rows[name][index]) for name in ("epoch", "shard", "key"))
        entropy = [_SUBSTITUTE_STREAM, self._seed, epoch, shard, key]
        draws = np.random.default_rng(entropy).integers(
            self._faces.num_images, size=_MAX_SUBSTITUTES
        )
        for draw in draws:
            face, _ = self._decode(_as_columns(self._faces.read(np.array([draw]))), 0)
            if face is not None:
                return face, problem
        raise DataError(
            problem,
            found=f"this record and {_MAX_SUBSTITUTES} others drawn in its place are damaged",
            expected="a set in which nearly all records are sound",
            fix="check data.path and data.color_order, and that the images are 112×112 faces",
        )

    def _decode(self, rows: Columns, index: int) -> tuple[Columns | None, str]:
        """What `Transform` takes of a row but its epoch, or None and what is wrong with the record.

        Raises:
            DataError: the record is sound, but was not when landmarks were cached.
        """
        if error := rows["error"][index]:
            return None, str(error)
        names = ("shard", "key", "label", "landmarks")
        face: Columns = {name: rows[name][index] for name in names if name in rows}
        where = f"{self._faces.shard_uris[face['shard']]}, record {face['key']}"
        if self._num_classes is not None and not 0 <= face["label"] < self._num_classes:
            expected = f"expected 0 to {self._num_classes - 1}"
            return None, f"{where}: found label {face['label']}; {expected}"
        try:
            face["image"] = decode_image(rows["image"][index], color_order=self._color_order)
        except DataError as problem:
            return None, f"{where}: found {problem.found}; expected {problem.expected}"
        if "landmarks" in face and np.isnan(face["landmarks"]).any():
            raise DataError(
                where,
                found="a sound record that was damaged when landmarks were cached",
                expected="landmarks of every sound record",
                fix="delete the cached landmarks and make them anew (jobs/cache_landmarks.py)",
            )
        return face, ""


def timed_read(faces: FaceSet, plan: EpochSampler, portion: ShuffleBlock) -> Columns:
    """`read_records`, and a column `read`: each row's share of the seconds it took."""
    start = time.perf_counter()
    columns = read_records(faces, plan, portion)
    return {**columns, "read": _shares(start, len(columns["key"]))}


def timed_preprocess(crop: Preprocessor, rows: Columns) -> Columns:
    """What `crop` makes of rows of `timed_read`; their column `read`, and one `cut` like it."""
    start = time.perf_counter()
    cut = crop({name: column for name, column in rows.items() if name != "read"})
    return {**cut, "read": rows["read"], "cut": _shares(start, len(rows["read"]))}


def _shares(start: float, rows: int) -> NDArray[np.float32]:
    return np.full(rows, (time.perf_counter() - start) / rows, dtype=np.float32)


def collate_steps(
    windows: Iterable[tuple[list[ShuffleBlock], list[Columns]]],
) -> Iterator[StepBatch]:
    """Turn the cut portions of each window into one batch for each step."""
    for portions, blocks in windows:
        first, stop = portions[0].steps
        for offset in range(stop - first):
            parts = [
                _rows_of_step(p, block, offset) for p, block in zip(portions, blocks, strict=True)
            ]
            columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            skipped = [line for line in columns.pop("skipped") if line]
            work_s = {kind: float(columns.pop(kind).sum()) for kind in WORK if kind in columns}
            yield StepBatch(first + offset, portions[0].epoch, columns, skipped, work_s)


def _rows_of_step(portion: ShuffleBlock, block: Columns, offset: int) -> Columns:
    rows = portion.rows[1] - portion.rows[0]
    return {name: column[offset * rows : (offset + 1) * rows] for name, column in block.items()}


def _read_ahead(
    faces: FaceSet, plan: EpochSampler, windows: Iterator[list[ShuffleBlock]]
) -> Iterator[tuple[list[ShuffleBlock], list[Columns]]]:
    """Each window with its records, read while the one before it is in use."""

    def read(portions: list[ShuffleBlock]) -> tuple[list[ShuffleBlock], list[Columns]]:
        return portions, [timed_read(faces, plan, portion) for portion in portions]

    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader:
        # One window in use and one on the way: some 2 MB for each 256 records.
        ahead = [reader.submit(read, portions) for portions in itertools.islice(windows, 1)]
        while ahead:
            ready = ahead.pop().result()
            ahead = [reader.submit(read, portions) for portions in itertools.islice(windows, 1)]
            yield ready


def local_stream(
    faces: FaceSet, plan: EpochSampler, crop: Preprocessor, first: int, stop: int
) -> Iterator[StepBatch]:
    """Batches of steps first…stop-1 in this process: what debug mode trains on.

    Faces are cut step by step, so the first step need not wait for a whole window to be cut. While
    one window is cut and trained on, a thread reads the next: storage and processor overlap, and
    what is read does not depend on when.
    """
    for portions, blocks in _read_ahead(faces, plan, plan.windows(first, stop)):
        for offset in range(portions[0].steps[1] - portions[0].steps[0]):
            step = portions[0].steps[0] + offset
            one_step = [
                ShuffleBlock(p.epoch, p.window, p.slot, (step, step + 1), p.rows) for p in portions
            ]
            cut = [
                timed_preprocess(crop, _rows_of_step(p, block, offset))
                for p, block in zip(portions, blocks, strict=True)
            ]
            yield from collate_steps([(one_step, cut)])
