"""The way of a face from a record to a batch; read this file from top to bottom.

    sample_indices   shuffle block → indices of its records, and their passes
    read_records     → stored bytes, from a disk or an object store
    decode           → faces: RGB pixels; a damaged record is replaced by another one
    transform        → views, and their tokens; supplied by the task, see `Transform`
    collate          → one batch per optimizer step

Debug mode calls them one after the other in one process (`local_stream`); Ray Data calls the first two in read tasks,
`decode` and `transform` in actors, and `collate` in the training worker (`lafs_ray.engine.ray_ingest`). What becomes of
a record depends on (seed, epoch, shard, key) alone, so both give the same batches, bit for bit. Its epoch is the pass
through its set: of several sets that are mixed, small ones are passed through more often than large ones; of a pair of
neighbors it is the number of the row in the run.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.images import ColorOrder, decode_image
from lafs_ray.data.mixed_faces import MixedFaces, TrainingFaces
from lafs_ray.data.sampler import EpochSampler, ShuffleBlock
from lafs_ray.errors import DataError

Columns = dict[str, NDArray[Any]]
"""Named columns of equal length, one row per face."""

WORK = ("read_s", "preprocess_s")
"""Columns with each row's share of the seconds that `read_records` and `Preprocessor` took."""

_SUBSTITUTE_STREAM = 0x73756273
_MAX_SUBSTITUTES = 16

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def sample_indices(sampler: EpochSampler, block: ShuffleBlock) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return index and epoch of a block's records, step by step: int64 [steps · rows] each."""
    indices, epochs = sampler.sample(block)
    return indices.ravel(), epochs.ravel()


def read_records(faces: TrainingFaces, indices: NDArray[np.int64], epochs: NDArray[np.int64]) -> Columns:
    """Read the stored bytes of n records.

    Args:
        faces: the set.
        indices: of the records, int64 [n].
        epochs: of each, int64 [n].

    Returns:
        Columns epoch, shard, key, label (int64 [n]), image (bytes as object [n]), error (str as object [n], empty where
        the record is sound), read_s (float32 [n]) and cached landmarks (as `FaceRows`), if any.
    """
    start = time.perf_counter()
    rows = faces.read(indices)
    image = np.empty(len(indices), dtype=object)
    image[:] = rows.images
    records: Columns = {
        "epoch": epochs,
        "shard": rows.shard.astype(np.int64),
        "key": rows.key,
        "label": rows.label,
        "image": image,
        "error": np.array(rows.errors, dtype=object),
        "read_s": _seconds_per_row(start, len(indices)),
    }
    return records if rows.landmarks is None else {**records, "landmarks": rows.landmarks}


Transform = Callable[[Columns], Columns]
"""Makes training columns from decoded faces.

In: image uint8 [B,112,112,3] RGB, label, epoch, shard and key int64 [B], and landmarks float16 where the set has cached
ones: [B,2,N,2] in pretraining, of the image and of its mirror image, else [B,N,2]. Out: what the task's `loss` takes,
rows in the same order.
"""


@dataclass(frozen=True, eq=False)
class Preprocessor:
    """The two stages that take CPU time: `decode`, then the task's `transform`.

    A damaged record is replaced by another one of its set, sampled from (seed, epoch, shard, key), so that every rank
    keeps the same number of rows and a rerun chooses the same replacement.

    Args:
        faces: the set, to read replacements from.
        color_order: what the JPEGs decode to, unless `faces` are several sets, which have their own.
        seed: seed of the replacements.
        transform: see `Transform`.
        num_classes: a record whose label is not in 0…num_classes-1 counts as damaged; None: labels are not checked.
        fingerprint: `crop_fingerprint` of this machine; empty: unknown.
    """

    faces: TrainingFaces
    color_order: ColorOrder
    seed: int
    transform: Transform
    num_classes: int | None = None
    fingerprint: str = ""

    def __call__(self, records: Columns) -> Columns:
        """Decode and transform rows of `read_records`.

        Returns:
            Columns of `transform`, skipped (str as object, mostly empty), those of `WORK`, and fingerprint (str [n]).

        Raises:
            DataError: too many replacements in a row are damaged as well.
        """
        start = time.perf_counter()
        faces, skipped = self.decode(records)
        views = self.transform(faces)
        seconds = _seconds_per_row(start, len(skipped))
        return {
            **views,
            "skipped": skipped,
            "fingerprint": np.full(len(skipped), self.fingerprint),
            "read_s": records["read_s"],
            "preprocess_s": seconds,
        }

    def decode(self, records: Columns) -> tuple[Columns, NDArray[Any]]:
        """Return the input of `transform`, and for each replaced record why (str as object [n])."""
        rows = [self._decode_or_replace(records, row) for row in range(len(records["key"]))]
        faces = {name: np.stack([face[name] for face, _ in rows]) for name in rows[0][0]}
        skipped = np.array([problem for _, problem in rows], dtype=object)
        return {**faces, "epoch": records["epoch"]}, skipped

    def _decode_or_replace(self, records: Columns, row: int) -> tuple[Columns, str]:
        face, problem = self._decode_row(records, row)
        if face is not None:
            return face, ""
        epoch, shard, key = (int(records[name][row]) for name in ("epoch", "shard", "key"))
        generator = np.random.default_rng([_SUBSTITUTE_STREAM, self.seed, epoch, shard, key])
        first, count = 0, self.faces.num_images
        if isinstance(self.faces, MixedFaces):
            of_mix, first = self.faces.set_of(shard)
            count = of_mix.faces.num_images
        for index in first + generator.integers(count, size=_MAX_SUBSTITUTES):
            face, _ = self._decode_row(read_records(self.faces, np.array([index]), np.array([epoch])), 0)
            if face is not None:
                return face, problem
        raise DataError(
            problem,
            found=f"this record and {_MAX_SUBSTITUTES} others sampled in its place are damaged",
            expected="a set in which nearly all records are sound",
            fix="check data.path or data.mix and data.color_order, and that the images are 112×112 faces",
        )

    def _decode_row(self, records: Columns, row: int) -> tuple[Columns | None, str]:
        """Return one row of `transform`'s input without its epoch, or None and what is wrong.

        Raises:
            DataError: the record is sound, but was not when landmarks were cached.
        """
        if error := records["error"][row]:
            return None, str(error)
        names = ("shard", "key", "label", "landmarks")
        face: Columns = {name: records[name][row] for name in names if name in records}
        where = f"{self.faces.shard_uris[face['shard']]}, record {face['key']}"
        if self.num_classes is not None and not 0 <= face["label"] < self.num_classes:
            expected = f"expected 0 to {self.num_classes - 1}"
            return None, f"{where}: found label {face['label']}; {expected}"
        try:
            face["image"] = decode_image(records["image"][row], color_order=self._color_order_of(int(face["shard"])))
        except DataError as problem:
            return None, f"{where}: found {problem.found}; expected {problem.expected}"
        if "landmarks" in face and np.isnan(face["landmarks"]).any():
            raise DataError(
                where,
                found="a sound record that was damaged when landmarks were cached",
                expected="landmarks of every sound record",
                fix="delete the cached landmarks and run `lafs cache-landmarks` again",
            )
        return face, ""

    def _color_order_of(self, shard: int) -> ColorOrder:
        return self.faces.set_of(shard)[0].color_order if isinstance(self.faces, MixedFaces) else self.color_order


@dataclass(frozen=True)
class StepBatch:
    """One rank's share of the batch of one optimizer step.

    Args:
        step: global step.
        epoch: its epoch.
        columns: what the task's `loss` takes, rows in batch order.
        skipped: a line for each damaged record that was replaced by another.
        fingerprints: `crop_fingerprint` of the machines that preprocessed the rows.
        work_s: seconds that processes spent on these rows, by name in `WORK`.
    """

    step: int
    epoch: int
    columns: Columns
    skipped: list[str]
    fingerprints: frozenset[str] = frozenset()
    work_s: dict[str, float] = field(default_factory=dict)


def collate(step: int, blocks: Sequence[ShuffleBlock], parts: Sequence[Columns], sampler: EpochSampler) -> StepBatch:
    """Join the rows of one step, a part from each block, into its batch.

    In a run with neighbors there is a column `paired`, bool: the row is the first or second of a pair of them. Without
    its partner, which was damaged, a face is single.
    """
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if sampler.neighbors is not None:
        paired = np.concatenate([sampler.paired(block)[step - block.steps[0]] for block in blocks])
        is_skipped = np.array([bool(line) for line in columns["skipped"]])
        columns["paired"] = paired & ~(is_skipped | is_skipped[np.arange(len(paired)) ^ paired])
    skipped = [line for line in columns.pop("skipped") if line]
    fingerprints = frozenset(columns.pop("fingerprint").tolist()) - {""}
    work_s = {name: float(columns.pop(name).sum()) for name in WORK}
    return StepBatch(step, blocks[0].epoch, columns, skipped, fingerprints, work_s)


def split(batch: StepBatch, parts: int) -> list[Columns]:
    """Return the micro-batches of a step, in row order."""
    rows = len(next(iter(batch.columns.values())))
    assert rows % parts == 0, f"{rows} rows in {parts} micro-batches"
    size = rows // parts
    return [
        {name: column[start : start + size] for name, column in batch.columns.items()} for start in range(0, rows, size)
    ]


def rows_of_step(block: ShuffleBlock, columns: Columns, step: int) -> Columns:
    """Return the rows of one step out of a block's columns."""
    first = (step - block.steps[0]) * block.rows_per_step
    return {name: column[first : first + block.rows_per_step] for name, column in columns.items()}


def local_stream(
    faces: TrainingFaces,
    sampler: EpochSampler,
    preprocess: Preprocessor,
    first: int,
    stop: int,
    rank: int = 0,
    world: int = 1,
) -> Iterator[StepBatch]:
    """Yield one rank's batches of steps first…stop-1, computed in this process (debug mode).

    A thread reads the next shuffle blocks while this one's faces are decoded, step by step, and trained on: storage and
    processor overlap, and the first step need not wait for a whole block.
    """

    def read(blocks: Sequence[ShuffleBlock]) -> list[Columns]:
        return [read_records(faces, *sample_indices(sampler, block)) for block in blocks]

    for blocks, records in read_ahead(read, sampler.blocks(first, stop, rank, world)):
        for step in range(*blocks[0].steps):
            rows = [rows_of_step(*one, step) for one in zip(blocks, records, strict=True)]
            yield collate(step, blocks, [preprocess(part) for part in rows], sampler)


def read_ahead(read: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[tuple[_Item, _Result]]:
    """Yield each item with its result of `read`, while a thread reads the next one."""
    pending: deque[tuple[_Item, Future[_Result]]] = deque()
    reader = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
    try:
        for item in items:
            pending.append((item, reader.submit(read, item)))
            if len(pending) > 1:
                ready, result = pending.popleft()
                yield ready, result.result()
        for ready, result in pending:
            yield ready, result.result()
    finally:
        # Not waiting for the thread: the garbage collector may end this generator in the middle of anything, such as
        # the start of another thread, where waiting never ends.
        reader.shutdown(wait=False, cancel_futures=True)


def _seconds_per_row(start: float, rows: int) -> NDArray[np.float32]:
    return np.full(rows, (time.perf_counter() - start) / rows, dtype=np.float32)
