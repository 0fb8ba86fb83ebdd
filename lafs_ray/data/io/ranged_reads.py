"""Ranged reads of many records of many files: few, large, overlapping, and of unchanged files.

Records near each other come with one request. From an object store, which answers in tens of
milliseconds, 16 requests are under way at once, whichever files they go to. A file that has changed
since its set was opened is told at the end of the reads, before anyone uses what they brought.
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
from lafs_ray.data.io.block_cache import BlockCache, CachedFile
from lafs_ray.errors import DataError

# Two records this near are read in one request: 64 KiB cost less than a second round trip.
_GAP_BYTES = 64 << 10
_RUN_BYTES = 8 << 20
_REMOTE_READS = 16

# When each local file of an open set was last written, as this process saw it first. Not a part of
# the set: every node may have a copy of its own.
_written_ns: dict[str, int] = {}


@dataclass(frozen=True, eq=False)
class Spans:
    """Which bytes of a file are wanted.

    Args:
        uri: the file.
        offsets: where the spans begin, ascending, int64 [n], n ≥ 1.
        sizes: how long they are in bytes, int64 [n].
        file_size: of the file when its set was opened; None: it may have any.
        version: what the object store called its content then; empty: not known.
    """

    uri: str
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    file_size: int | None = None
    version: str = ""


def read_spans(
    uri: str, offsets: NDArray[np.int64], sizes: NDArray[np.int64]
) -> Iterator[memoryview]:
    """`fetch_spans` of one file that may have any size and version."""
    return fetch_spans([Spans(uri, offsets, sizes)])


def fetch_spans(wanted: Sequence[Spans], cache: BlockCache | None = None) -> Iterator[memoryview]:
    """The bytes of each span, file after file; neighbors come with one ranged read.

    What comes is to be used after the last one: only then is it known that no file has changed.

    Args:
        wanted: different files.
        cache: keeps what comes from an object store.

    Raises:
        DataError: a file has vanished or changed, cannot be read, or ends before a span does.
    """
    if not wanted:
        return
    is_local = all(filesystem.local_path(spans.uri) is not None for spans in wanted)
    with ExitStack() as stack:
        files = [stack.enter_context(_opened(spans, cache)) for spans in wanted]
        apply: Callable[..., Iterator[Any]] = map
        if not is_local:
            apply = stack.enter_context(ThreadPoolExecutor(_REMOTE_READS)).map
        reads = [
            (spans, file, run)
            for spans, file in zip(wanted, files, strict=True)
            for run in _runs(spans.offsets.tolist(), (spans.offsets + spans.sizes).tolist())
        ]
        try:
            buffers = apply(_fetch, *zip(*reads, strict=True))
            for (spans, _, run), buffer in zip(reads, buffers, strict=True):
                base = int(spans.offsets[run[0]])
                for i in range(*run):
                    begin = int(spans.offsets[i]) - base
                    yield buffer[begin : begin + int(spans.sizes[i])]
        except DataError:
            # A file that was exchanged tells all kinds of nonsense: say what lies behind it.
            _check_all(apply, wanted, files)
            raise
        _check_all(apply, wanted, files)


def _opened(spans: Spans, cache: BlockCache | None) -> Any:
    if cache is None or not spans.version or spans.file_size is None:
        return filesystem.open_input(spans.uri)
    return CachedFile(cache, spans.uri, spans.version, spans.file_size)


def _fetch(spans: Spans, file: Any, run: tuple[int, int]) -> memoryview:
    begin = int(spans.offsets[run[0]])
    end = int(spans.offsets[run[1] - 1] + spans.sizes[run[1] - 1])
    buffer = file.read_at(end - begin, begin)
    if len(buffer) < end - begin:
        raise DataError(
            f"{spans.uri} at offset {begin}",
            found=f"{len(buffer)} bytes to the end",
            expected=f"a record of at least {end - begin} bytes (it is cut short)",
            fix="copy the file again, with its .idx (one of another file points between records), "
            "or pack the images anew",
        )
    return memoryview(buffer)


def _check_all(
    apply: Callable[..., Iterator[Any]], wanted: Sequence[Spans], files: Sequence[Any]
) -> None:
    """Have the files stayed as they were? What passes goes into the cache."""
    doubtful = [
        (spans, file)
        for spans, file in zip(wanted, files, strict=True)
        # What the cache had is of the right version, whatever has become of the file.
        if spans.file_size is not None and not (isinstance(file, CachedFile) and file.untouched)
    ]
    if doubtful:
        list(apply(_check_unchanged, [spans for spans, _ in doubtful]))
    for _, file in doubtful:
        if isinstance(file, CachedFile):
            file.keep()


def _check_unchanged(spans: Spans) -> None:
    size, version, written_ns = stamp(spans.uri)
    found = expected = ""
    if size != spans.file_size:
        found, expected = f"{size} bytes", f"{spans.file_size} bytes"
    elif spans.version and version != spans.version:
        found, expected = f"version {version}", f"version {spans.version}"
    elif written_ns != _written_ns.setdefault(spans.uri, written_ns):
        found, expected = "a file that was written since", "the same file"
    if found:
        raise DataError(
            spans.uri,
            found=found,
            expected=f"{expected}, as when the set was opened",
            fix="do not write to a set in use; start again to open it anew",
        )


def stamp(uri: str) -> tuple[int, str, int]:
    """Size, object store's version (empty on disk), and time of the last change (0 elsewhere)."""
    if filesystem.local_path(uri) is not None:
        size, written_ns = filesystem.file_stamp(uri)
        return size, "", written_ns
    with filesystem.open_input(uri) as file:
        return file.size(), file.version(), 0


def note_opened(uri: str) -> tuple[int, str]:
    """Size and version of a file whose set is being opened; reads are compared with them."""
    size, version, _written_ns[uri] = stamp(uri)
    return size, version


def _runs(begins: list[int], ends: list[int]) -> list[tuple[int, int]]:
    """Index ranges of spans that are read together: near each other, and not too long."""
    runs, first = [], 0
    for i in range(1, len(begins)):
        if begins[i] - ends[i - 1] > _GAP_BYTES or ends[i] - begins[first] > _RUN_BYTES:
            runs.append((first, i))
            first = i
    return [*runs, (first, len(begins))]
