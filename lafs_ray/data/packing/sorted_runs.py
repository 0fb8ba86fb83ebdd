"""Pass 1: read a range of records in order and write it as runs sorted by their new position.

A run is one file: the image bytes in the order of their positions, a row of 24 bytes per image, a
JSON footer and its length. The footer has the first row and byte of each shard, so that the task of a shard reads only
its own byte range. The file name is the range of records covered (`run-<first>-<stop>.run`). Files are written
atomically, so any that exists is complete, whichever process and memory limit produced it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.io import filesystem, reading
from lafs_ray.data.packed_set import MAX_LABELS
from lafs_ray.data.packing.images import ImageRules, fit_image
from lafs_ray.data.packing.options import PackPlan
from lafs_ray.data.packing.sources import ImageRow
from lafs_ray.data.shard import spread
from lafs_ray.data.subset import splitmix64
from lafs_ray.errors import DataError

ROW = np.dtype([("position", "<i8"), ("number", "<i8"), ("label", "<i4"), ("size", "<i4")])
_FOOTER_LENGTH = struct.Struct("<Q")
_NAME = re.compile(r"run-(\d{12})-(\d{12})\.run")
# Memory of a record while its run is collected, in addition to the image.
_ROW_OVERHEAD = 250
_MAX_ERRORS = 100
_FEISTEL_ROUNDS = 8


@dataclass(frozen=True)
class SortedRun:
    """Footer of a sorted run.

    Args:
        uri: of the file.
        first: number of its first record, counted over all sources.
        stop: number after its last.
        row_starts: first row of each shard, then the number of rows; [shards + 1].
        byte_starts: first byte of each shard, then the bytes of all images; [shards + 1].
        num_reencoded: images that were re-encoded.
        num_bad: records left out.
        errors: the first of them, one line each.
    """

    uri: str
    first: int
    stop: int
    row_starts: list[int]
    byte_starts: list[int]
    num_reencoded: int
    num_bad: int
    errors: list[str]


class _RunBuffer:
    """Records of one run in memory."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.rows: list[tuple[int, int, int, int]] = []
        self.images: list[bytes] = []
        self.num_bytes, self.num_reencoded = 0, 0
        self.errors: list[str] = []

    def add(self, position: int, number: int, row: ImageRow, rules: ImageRules) -> None:
        if row.error:
            has_name = row.error.startswith(row.name)
            self.errors.append(row.error if has_name else f"{row.name}: {row.error}")
            return
        if row.label >= MAX_LABELS:
            expected = f"labels below {MAX_LABELS}: larger ones are rounded in a .rec, and two identities may share one"
            self.errors.append(f"{row.name}: found the label {row.label}; expected {expected}")
            return
        try:
            image, is_reencoded = fit_image(row.image, rules, row.landmarks)
        except DataError as error:
            self.errors.append(f"{row.name}: found {error.found}; expected {error.expected}")
            return
        self.rows.append((position, number, row.label, len(image)))
        self.images.append(image)
        self.num_bytes += len(image) + _ROW_OVERHEAD
        self.num_reencoded += is_reencoded


def sort_records(plan: PackPlan, record_range: tuple[int, int]) -> list[SortedRun]:
    """Read records first…stop-1 and write them as one or several sorted runs.

    Raises:
        DataError: a source has changed, there are too many bad records, or the disk is full.
    """
    first, stop = record_range
    permutation = FeistelPermutation(plan.num_records, plan.options.seed)
    runs: list[SortedRun] = []
    buffer = _RunBuffer(first)
    num_bad = 0
    for number, row in enumerate(_rows(plan, first, stop), first):
        if (offset := (number - first) % 4096) == 0:
            positions = permutation.positions(number, min(number + 4096, stop)).tolist()
        before = len(buffer.errors)
        buffer.add(positions[offset], number, row, plan.options.rules)
        num_bad += len(buffer.errors) - before
        if num_bad > plan.max_bad:
            raise too_many_bad(num_bad, number + 1 - first, plan.max_bad, buffer.errors)
        if buffer.num_bytes >= plan.options.task_bytes:
            runs.append(_write(plan, buffer, number + 1))
            buffer = _RunBuffer(number + 1)
    if buffer.first < stop:
        runs.append(_write(plan, buffer, stop))
    return runs


def too_many_bad(count: int, num_read: int, allowed: int, errors: Sequence[str]) -> DataError:
    """Return the error for more bad records than allowed, or for no usable record at all."""
    lines = "".join(f"\n    {line}" for line in errors[-10:])
    return DataError(
        "bad records",
        found=f"{count} of {num_read} records read:{lines}",
        expected=f"at most {allowed} (--max-bad), and at least one usable image",
        fix="repair the sources (for photographs: --resize or --landmarks), or raise --max-bad",
    )


def _rows(plan: PackPlan, first: int, stop: int) -> Iterator[ImageRow]:
    """Yield the records of a range that may span several sources."""
    for number, source in enumerate(plan.sources):
        start, end = plan.starts[number : number + 2].tolist()
        low, high = max(first, start), min(stop, end)
        if low < high:
            yield from source.read(low - start, high - start)


def sample_images(plan: PackPlan, most: int) -> Iterator[bytes]:
    """Read an evenly spaced sample of records as they will be stored; bad records are passed over.

    Raises:
        DataError: a source has changed.
    """
    for number in spread(plan.num_records, most).tolist():
        for row in _rows(plan, number, number + 1):
            if not row.error:
                with contextlib.suppress(DataError):
                    yield fit_image(row.image, plan.options.rules, row.landmarks)[0]


def _write(plan: PackPlan, buffer: _RunBuffer, stop: int) -> SortedRun:
    rows = np.array(buffer.rows, ROW)
    order = np.argsort(rows["position"])
    rows = rows[order]
    row_starts = np.searchsorted(rows["position"], plan.shard_starts)
    ends = np.concatenate([[0], np.cumsum(rows["size"], dtype=np.int64)])
    run = SortedRun(
        uri=filesystem.join(plan.scratch, f"run-{buffer.first:012}-{stop:012}.run"),
        first=buffer.first,
        stop=stop,
        row_starts=row_starts.tolist(),
        byte_starts=ends[row_starts].tolist(),
        num_reencoded=buffer.num_reencoded,
        num_bad=len(buffer.errors),
        errors=buffer.errors[:_MAX_ERRORS],
    )
    footer = json.dumps(asdict(run)).encode()
    with filesystem.atomic_write(run.uri) as file:
        for index in order.tolist():
            file.write(buffer.images[index])
        file.write(rows.tobytes() + footer + _FOOTER_LENGTH.pack(len(footer)))
    return run


def read_runs(scratch: str) -> list[SortedRun]:
    """Read the footers of the runs in a folder, in the order of their records."""
    runs = []
    for name in filter(_NAME.fullmatch, filesystem.list_names(scratch)):
        uri = filesystem.join(scratch, name)
        with reading.open_input(uri) as file:
            end = file.size() - _FOOTER_LENGTH.size
            length = _FOOTER_LENGTH.unpack(file.read_at(_FOOTER_LENGTH.size, end))[0]
            content: dict[str, Any] = json.loads(file.read_at(length, end - length))
        runs.append(SortedRun(**{**content, "uri": uri}))
    return runs


def missing_ranges(runs: Sequence[SortedRun], num_records: int) -> list[tuple[int, int]]:
    """Return the ranges of records that no run covers."""
    result, position = [], 0
    for run in sorted(runs, key=lambda run: run.first):
        assert run.first >= position, f"{run.uri} overlaps the run before it"
        if run.first > position:
            result.append((position, run.first))
        position = run.stop
    return [*result, (position, num_records)] if position < num_records else result


def read_rows(file: Any, run: SortedRun, shard: int) -> NDArray[Any]:
    """Read the rows of one shard from an opened run, sorted by position; dtype `ROW`."""
    first, stop = run.row_starts[shard : shard + 2]
    begin = run.byte_starts[-1] + ROW.itemsize * first
    return np.frombuffer(file.read_at(ROW.itemsize * (stop - first), begin), ROW)


def read_all_rows(file: Any, run: SortedRun) -> NDArray[Any]:
    """Read the rows of all shards from an opened run; dtype `ROW`."""
    return np.frombuffer(file.read_at(ROW.itemsize * run.row_starts[-1], run.byte_starts[-1]), ROW)


def first_errors(runs: Sequence[SortedRun]) -> list[str]:
    """Return the first hundred bad records, one line each."""
    in_order = sorted(runs, key=lambda run: run.first)
    return [line for run in in_order for line in run.errors][:_MAX_ERRORS]


class FeistelPermutation:
    """Random permutation of 0…num_records-1: a Feistel network with cycle walking.

    Args:
        num_records: at least 1.
        seed: of the order.
    """

    def __init__(self, num_records: int, seed: int) -> None:
        assert num_records >= 1, "at least one record"
        self._num_records = num_records
        self._half_bits = max(((num_records - 1).bit_length() + 1) // 2, 1)
        name = f"lafs_ray order {seed} {num_records}".encode()
        digest = hashlib.blake2b(name, digest_size=8 * _FEISTEL_ROUNDS).digest()
        self._keys = np.frombuffer(digest, "<u8")

    def positions(self, first: int, stop: int) -> NDArray[np.int64]:
        """Return the positions of records first…stop-1 in the new order, int64 [stop - first]."""
        values = self._permute(np.arange(first, stop, dtype=np.uint64))
        while len(outside := np.flatnonzero(values >= self._num_records)):
            values[outside] = self._permute(values[outside])
        return values.astype(np.int64)

    def _permute(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        shift, mask = np.uint64(self._half_bits), np.uint64((1 << self._half_bits) - 1)
        left, right = values >> shift, values & mask
        for key in self._keys:
            left, right = right, left ^ (splitmix64(right ^ key) & mask)
        return np.asarray(left << shift | right, dtype=np.uint64)
