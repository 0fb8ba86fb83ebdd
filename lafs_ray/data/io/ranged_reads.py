"""Ranged reads: byte ranges of many records, of unchanged files, in few and concurrent requests.

Ranges near each other are coalesced into one request. An object store takes tens of milliseconds
to answer, so up to 16 requests to it are in flight at once, whichever files they go to. A file that
has changed since its set was opened raises at the end of the reads, before their bytes are used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.io import filesystem
from lafs_ray.errors import DataError

# Ranges this near are read in one request: 64 KiB cost less than a second round trip.
_MAX_GAP_BYTES = 64 << 10
_MAX_READ_BYTES = 8 << 20
_CONCURRENT_READS = 16

# Modification time of each local file of an open set, as this process saw it first. Not a part of
# the set: every node may have a copy of its own.
_modified_ns: dict[str, int] = {}


@dataclass(frozen=True, eq=False)
class ByteRanges:
    """Byte ranges of one file.

    Args:
        uri: the file.
        offsets: first byte of each range, ascending, int64 [n], n ≥ 1.
        sizes: lengths in bytes, int64 [n].
        file_size: of the file when its set was opened; None: not checked.
        version: ETag of the object when its set was opened; empty: not known.
    """

    uri: str
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    file_size: int | None = None
    version: str = ""


def read_ranges(files: Sequence[ByteRanges]) -> Iterator[memoryview]:
    """Yield the bytes of each range, file after file; neighbors come with one request.

    Use them after the last one only: the files are checked for changes at the end.

    Args:
        files: ranges of different files.

    Raises:
        DataError: a file is missing or has changed, cannot be read, or ends before a range does.
    """
    if not files:
        return
    is_local = all(filesystem.local_path(ranges.uri) is not None for ranges in files)
    with ExitStack() as stack:
        inputs = [stack.enter_context(filesystem.open_input(ranges.uri)) for ranges in files]
        apply: Callable[..., Iterator[Any]] = map
        if not is_local:
            apply = stack.enter_context(ThreadPoolExecutor(_CONCURRENT_READS)).map
        reads = [
            (ranges, file, group)
            for ranges, file in zip(files, inputs, strict=True)
            for group in _coalesce(ranges)
        ]
        try:
            buffers = apply(_read, *zip(*reads, strict=True))
            for (ranges, _, group), buffer in zip(reads, buffers, strict=True):
                base = int(ranges.offsets[group.start])
                for i in group:
                    begin = int(ranges.offsets[i]) - base
                    yield buffer[begin : begin + int(ranges.sizes[i])]
        except DataError:
            # A replaced file causes errors of all kinds: report the cause.
            list(apply(_check_unchanged, files))
            raise
        list(apply(_check_unchanged, files))


def _coalesce(ranges: ByteRanges) -> list[range]:
    """Group the ranges that are read together: near each other, and not too long."""
    begins, ends = ranges.offsets.tolist(), (ranges.offsets + ranges.sizes).tolist()
    groups, first = [], 0
    for i in range(1, len(begins)):
        if begins[i] - ends[i - 1] > _MAX_GAP_BYTES or ends[i] - begins[first] > _MAX_READ_BYTES:
            groups.append(range(first, i))
            first = i
    return [*groups, range(first, len(begins))]


def _read(ranges: ByteRanges, file: Any, group: range) -> memoryview:
    begin = int(ranges.offsets[group[0]])
    end = int(ranges.offsets[group[-1]] + ranges.sizes[group[-1]])
    buffer = file.read_at(end - begin, begin)
    if len(buffer) < end - begin:
        raise DataError(
            f"{ranges.uri} at offset {begin}",
            found=f"{len(buffer)} bytes to the end of the file",
            expected=f"a record of at least {end - begin} bytes (it is truncated)",
            fix="copy the file again, with its .idx (one of another file points between records), "
            "or pack the images again",
        )
    return memoryview(buffer)


def _check_unchanged(ranges: ByteRanges) -> None:
    if ranges.file_size is None:
        return
    size, version, modified_ns = _file_state(ranges.uri)
    found = expected = ""
    if size != ranges.file_size:
        found, expected = f"{size} bytes", f"{ranges.file_size} bytes"
    elif ranges.version and version != ranges.version:
        found, expected = f"version {version}", f"version {ranges.version}"
    elif modified_ns != _modified_ns.setdefault(ranges.uri, modified_ns):
        found, expected = "a file modified since", "the same file"
    if found:
        raise DataError(
            ranges.uri,
            found=found,
            expected=f"{expected}, as when the set was opened",
            fix="do not write to a set in use; restart to open it again",
        )


def _file_state(uri: str) -> tuple[int, str, int]:
    """Return size, ETag (empty on a disk) and modification time in ns (0 in an object store)."""
    if filesystem.local_path(uri) is not None:
        size, modified_ns = filesystem.file_stamp(uri)
        return size, "", modified_ns
    with filesystem.open_input(uri) as file:
        return file.size(), file.version(), 0


def record_file_state(uri: str) -> tuple[int, str]:
    """Return size and ETag of a file whose set is being opened, to compare later reads with.

    The modification time of a local file is remembered in this process.
    """
    size, version, _modified_ns[uri] = _file_state(uri)
    return size, version
