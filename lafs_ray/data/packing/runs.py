"""Pass 1: a piece of the sources, read in a line, written as runs that are sorted by new place.

A run is one file: image bytes in the order of their places, a row of 24 bytes for each, a footer in
JSON and its length. The footer says at which row and byte each shard begins, so a shard's task
reads no more than its own part. The name says which records it covers (`run-<first>-<stop>.run`);
it is written atomically, so what exists is complete, whoever wrote it and with whatever budget.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.io import filesystem
from lafs_ray.data.packing.images import ImageRules, fit_image
from lafs_ray.data.packing.sources import Row, Source
from lafs_ray.data.subset import mixed
from lafs_ray.errors import DataError

ROW = np.dtype([("place", "<i8"), ("number", "<i8"), ("label", "<i4"), ("size", "<i4")])
_FOOTER_LENGTH = struct.Struct("<Q")
_NAME = re.compile(r"run-(\d{12})-(\d{12})\.run")
# What a record costs in memory while its run is gathered, beside its bytes.
_ROW_OVERHEAD = 250
_NAMED = 100


@dataclass(frozen=True)
class RunFooter:
    """What a run knows about itself.

    Args:
        uri: of the file.
        first: number of its first record, counted over all sources.
        stop: number after its last.
        row_starts: row where each shard begins, then the number of rows; [shards + 1].
        byte_starts: byte where each shard begins, then the bytes of all images; [shards + 1].
        highest: highest label in each source as it stands there; -1: none.
        encoded: images that were encoded anew.
        left_out: how many records are bad.
        named: the first of them, a line each.
    """

    uri: str
    first: int
    stop: int
    row_starts: list[int]
    byte_starts: list[int]
    highest: list[int]
    encoded: int
    left_out: int
    named: list[str]


@dataclass(frozen=True, eq=False)
class Sorting:
    """What pass 1 has to know.

    Args:
        sources: in the order of their records' numbers.
        starts: number of each source's first record, then of all records; int64 [sources + 1].
        shuffle: the new order.
        edges: first place of each shard, then of all; int64 [shards + 1].
        rules: for images.
        scratch: where runs go.
        run_bytes: memory that the records of a run may take.
        max_bad: bad records with which one piece stops by itself.
    """

    sources: tuple[Source, ...]
    starts: NDArray[np.int64]
    shuffle: Shuffle
    edges: NDArray[np.int64]
    rules: ImageRules
    scratch: str
    run_bytes: int
    max_bad: int


class _Gathered:
    """Records of one run while they come in."""

    def __init__(self, first: int, num_sources: int) -> None:
        self.first = first
        self.rows: list[tuple[int, int, int, int]] = []
        self.images: list[bytes] = []
        self.num_bytes, self.encoded = 0, 0
        self.highest = [-1] * num_sources
        self.bad: list[str] = []

    def add(self, place: int, number: int, source: int, row: Row, rules: ImageRules) -> None:
        if row.error:
            line = row.error if row.error.startswith(row.where) else f"{row.where}: {row.error}"
            self.bad.append(line)
            return
        try:
            image, encoded = fit_image(row.image, rules, row.landmarks)
        except DataError as error:
            self.bad.append(f"{row.where}: found {error.found}; expected {error.expected}")
            return
        self.rows.append((place, number, row.label, len(image)))
        self.images.append(image)
        self.num_bytes += len(image) + _ROW_OVERHEAD
        self.encoded += encoded
        self.highest[source] = max(self.highest[source], row.label)


def sort_piece(sorting: Sorting, piece: tuple[int, int]) -> list[RunFooter]:
    """Read records first…stop-1 and write them as one or several runs.

    Raises:
        DataError: a source has changed, there are too many bad records, or the disk is full.
    """
    first, stop = piece
    footers: list[RunFooter] = []
    gathered = _Gathered(first, len(sorting.sources))
    num_bad = 0
    for number, (source, row) in enumerate(_rows(sorting, first, stop), first):
        if (offset := (number - first) % 4096) == 0:
            places = sorting.shuffle.places(number, min(number + 4096, stop)).tolist()
        before = len(gathered.bad)
        gathered.add(places[offset], number, source, row, sorting.rules)
        num_bad += len(gathered.bad) - before
        if num_bad > sorting.max_bad:
            raise too_many_bad(num_bad, sorting.max_bad, gathered.bad, so_far=True)
        if gathered.num_bytes >= sorting.run_bytes:
            footers.append(_write(sorting, gathered, number + 1))
            gathered = _Gathered(number + 1, len(sorting.sources))
    if gathered.first < stop:
        footers.append(_write(sorting, gathered, stop))
    return footers


def too_many_bad(count: int, allowed: int, named: Iterable[str], *, so_far: bool) -> DataError:
    """The refusal to go on with so many bad records."""
    lines = "".join(f"\n    {line}" for line in list(named)[-10:])
    return DataError(
        "bad records",
        found=f"{count}{' so far' if so_far else ''}:{lines}",
        expected=f"at most {allowed} (--max-bad)",
        fix="mend the sources (--resize and --landmarks are for photographs), or allow more to be "
        "left out with --max-bad",
    )


def none_sound(count: int, named: Iterable[str], *, so_far: bool) -> DataError:
    """The refusal of sources of which no record is sound."""
    lines = "".join(f"\n    {line}" for line in named)
    return DataError(
        "the sources",
        found=f"{count} images{' so far' if so_far else ''}, of which none is sound:{lines}",
        expected="aligned faces, or photographs with landmarks",
        fix="mend the sources; --resize takes square images of another size, --landmarks aligns",
    )


def _rows(sorting: Sorting, first: int, stop: int) -> Iterator[tuple[int, Row]]:
    """(number of the source, record) of records that may lie in several sources."""
    for number, source in enumerate(sorting.sources):
        start, end = sorting.starts[number : number + 2].tolist()
        low, high = max(first, start), min(stop, end)
        if low < high:
            for row in source.read(low - start, high - start):
                yield number, row


def _write(sorting: Sorting, gathered: _Gathered, stop: int) -> RunFooter:
    rows = np.array(gathered.rows, ROW)
    order = np.argsort(rows["place"])
    rows = rows[order]
    row_starts = np.searchsorted(rows["place"], sorting.edges)
    ends = np.concatenate([[0], np.cumsum(rows["size"], dtype=np.int64)])
    name = f"run-{gathered.first:012}-{stop:012}.run"
    footer = RunFooter(
        uri=filesystem.join(sorting.scratch, name),
        first=gathered.first,
        stop=stop,
        row_starts=row_starts.tolist(),
        byte_starts=ends[row_starts].tolist(),
        highest=gathered.highest,
        encoded=gathered.encoded,
        left_out=len(gathered.bad),
        named=gathered.bad[:_NAMED],
    )
    text = json.dumps(asdict(footer)).encode()
    with filesystem.atomic_write(footer.uri) as file:
        for index in order.tolist():
            file.write(gathered.images[index])
        file.write(rows.tobytes() + text + _FOOTER_LENGTH.pack(len(text)))
    return footer


def read_runs(scratch: str) -> list[RunFooter]:
    """The footers of the runs in a folder, by the numbers of their records."""
    names = [name for name in filesystem.list_names(scratch) if _NAME.fullmatch(name)]
    return [_read_footer(filesystem.join(scratch, name)) for name in names]


def _read_footer(uri: str) -> RunFooter:
    with filesystem.open_input(uri) as file:
        end = file.size() - _FOOTER_LENGTH.size
        length = _FOOTER_LENGTH.unpack(file.read_at(_FOOTER_LENGTH.size, end))[0]
        content: dict[str, Any] = json.loads(file.read_at(length, end - length))
    return RunFooter(**{**content, "uri": uri})


def gaps(footers: list[RunFooter], num_records: int) -> list[tuple[int, int]]:
    """The ranges of records that no run covers."""
    result, position = [], 0
    for footer in sorted(footers, key=lambda footer: footer.first):
        assert footer.first >= position, f"{footer.uri} overlaps the run before it"
        if footer.first > position:
            result.append((position, footer.first))
        position = footer.stop
    return [*result, (position, num_records)] if position < num_records else result


def read_rows(file: Any, footer: RunFooter, shard: int) -> NDArray[Any]:
    """The rows of one shard in an opened run, sorted by place; dtype `ROW`."""
    first, stop = footer.row_starts[shard : shard + 2]
    begin = footer.byte_starts[-1] + ROW.itemsize * first
    return np.frombuffer(file.read_at(ROW.itemsize * (stop - first), begin), ROW)


_ROUNDS = 8


class Shuffle:
    """A random permutation of 0…num_records-1.

    Args:
        num_records: records in all sources.
        seed: of the order.
    """

    def __init__(self, num_records: int, seed: int) -> None:
        assert num_records >= 1, "at least one record"
        self._num_records = num_records
        self._half = max(((num_records - 1).bit_length() + 1) // 2, 1)
        name = f"lafs_ray order {seed} {num_records}".encode()
        digest = hashlib.blake2b(name, digest_size=8 * _ROUNDS).digest()
        self._keys = np.frombuffer(digest, "<u8")

    def places(self, first: int, stop: int) -> NDArray[np.int64]:
        """The places of records first…stop-1 in the new order, int64 [stop - first]."""
        values = self._once(np.arange(first, stop, dtype=np.uint64))
        while len(outside := np.flatnonzero(values >= self._num_records)):
            values[outside] = self._once(values[outside])
        return values.astype(np.int64)

    def _once(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        shift, mask = np.uint64(self._half), np.uint64((1 << self._half) - 1)
        left, right = values >> shift, values & mask
        for key in self._keys:
            left, right = right, left ^ (mixed(right ^ key) & mask)
        return np.asarray(left << shift | right, dtype=np.uint64)


def shard_edges(num_records: int, num_shards: int) -> NDArray[np.int64]:
    """The first place of each shard, then num_records; int64 [num_shards + 1].

    Sizes differ by one record at most.
    """
    return np.arange(num_shards + 1, dtype=np.int64) * num_records // num_shards
