"""Files opened on disk or in an object store, and byte ranges of them, read with retries.

Ranges near each other are coalesced into one request. An object store takes tens of milliseconds to answer, so up to 16
requests to it are in flight at once, whichever files they go to. A file that has changed since its set was opened
raises at the end of the reads, before their bytes are used.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pyarrow import fs

from lafs_ray.data.io.retries import retry_transient
from lafs_ray.data.io.s3 import resolve_uri
from lafs_ray.errors import DataError

# Ranges this near are read in one request: 64 KiB cost less than a second round trip.
_MAX_GAP_BYTES = 64 << 10
_MAX_READ_BYTES = 8 << 20
_CONCURRENT_READS = 16
_Result = TypeVar("_Result")
NO_FILE = "a device, pipe or socket"

# Modification time of each local file of an open set, as this process saw it first. Not a part of the set: every node
# may have a copy of its own.
_modified_ns: dict[str, int] = {}


def is_uri(path: str) -> bool:
    """Return whether `path` names its storage (`s3://…`) instead of being a local path."""
    return "://" in path


def resolve(uri: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of `uri`, and the path in it.

    A path without a scheme is local; a relative one is made absolute.

    Raises:
        DataError: the scheme is unknown, the URI malformed, the path not UTF-8, or the storage unreachable.
    """
    try:
        uri.encode()
    except UnicodeEncodeError:
        name = os.fsencode(uri).decode("utf-8", "backslashreplace")
        expected, fix = "paths in UTF-8", "rename the file or folder"
        raise DataError(name, found="a name that is not UTF-8", expected=expected, fix=fix) from None
    if is_uri(uri):
        return resolve_uri(uri)
    return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri))


def local_path(uri: str) -> str | None:
    """Return the local path of a file; None for one in an object store."""
    filesystem, path = resolve(uri)
    return path if isinstance(filesystem, fs.LocalFileSystem) else None


def require_file(path: str) -> None:
    """Check that a local path is no device, pipe or socket: reading one may block, or never end.

    Raises:
        DataError: it is one.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # Opening the file fails with the same error, and is tried again.
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise DataError(path, found=NO_FILE, expected="a regular file", fix="write its content to a file first")


def open_file(filesystem: fs.FileSystem, path: str) -> Any:
    """Open a file of a file system for reading; see `require_file`."""
    if isinstance(filesystem, fs.LocalFileSystem):
        require_file(path)
    return filesystem.open_input_file(path)


def open_input(uri: str) -> Input:
    """Return a random-access file, opened at the first use; use it in a `with` block.

    Its methods raise a DataError if the file is missing or cannot be read.

    Raises:
        DataError: the URI is malformed, or its storage unreachable.
    """
    return Input(uri, *resolve(uri))


class Input(io.RawIOBase):
    """A random-access file; `read_at` is thread-safe.

    Args:
        uri: for messages.
        filesystem: of the file.
        path: in that file system.
    """

    def __init__(self, uri: str, filesystem: fs.FileSystem, path: str) -> None:
        super().__init__()
        self._uri, self._filesystem, self._path = uri, filesystem, path
        self._lock = threading.Lock()
        self._file: Any = None
        self._position = 0

    def _open(self) -> Any:
        with self._lock:
            if self._file is None:
                self._file = open_file(self._filesystem, self._path)
            return self._file

    def size(self) -> int:
        """Return the size in bytes when the file was opened."""
        return retry_transient(lambda: int(self._open().size()), self._uri)

    def version(self) -> str:
        """Return the object's ETag, else generation or modification time; empty on a disk."""
        if isinstance(self._filesystem, fs.LocalFileSystem):
            return ""
        metadata = retry_transient(lambda: self._open().metadata() or {}, self._uri)
        known = {name.lower(): value.decode("latin-1") for name, value in metadata.items()}
        names = ("etag", "generation", "last-modified")
        return next((known[name] for name in names if name in known), "")

    def read_at(self, nbytes: int, offset: int) -> Any:
        """Read a byte range; the buffer is shorter only where the file ends.

        Raises:
            DataError: they cannot be read.
        """

        def read() -> Any:
            file = None
            try:
                file = self._open()
                # Google's client fails at the end of a file (416), where others return nothing.
                wanted = min(nbytes, file.size() - offset)
                if wanted <= 0:
                    return b""
                buffer = file.read_at(wanted, offset)
                if len(buffer) < wanted:
                    raise OSError(errno.EIO, f"{len(buffer)} of {nbytes} bytes arrived")
            except OSError:
                # The next attempt reopens the file; other threads may still use this handle.
                with self._lock:
                    if self._file is file:
                        self._file = None
                raise
            return buffer

        retry_transient(self._open, self._uri)
        return retry_transient(read, f"{self._uri}, bytes {offset} to {offset + nbytes}")

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the offset of the next `read`."""
        base = self.size() if whence == io.SEEK_END else (0, self._position)[whence]
        self._position = base + offset
        return self._position

    def readinto(self, target: Any) -> int:
        """Read into a buffer; return the number of bytes read."""
        view = memoryview(target).cast("B")
        found = self.read_at(len(view), self._position)
        view[: len(found)] = memoryview(found)
        self._position += len(found)
        return len(found)

    def readall(self) -> bytes:
        """Read the rest of the file in one request."""
        found = self.read_at(self.size() - self._position, self._position)
        self._position += len(found)
        return bytes(found)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None
        super().close()


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
    is_local = all(local_path(ranges.uri) is not None for ranges in files)
    with ExitStack() as stack:
        inputs = [stack.enter_context(open_input(ranges.uri)) for ranges in files]
        apply: Callable[..., Iterable[Any]] = map if is_local else partial(all_at_once, _CONCURRENT_READS)
        reads = [
            (ranges, file, group) for ranges, file in zip(files, inputs, strict=True) for group in _coalesce(ranges)
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
            list(apply(check_unchanged, files))
            raise
        list(apply(check_unchanged, files))


def all_at_once(threads: int, function: Callable[..., _Result], *columns: Iterable[Any]) -> list[_Result]:
    """Return the results of a function that mostly waits, as `map` in some threads, all of which have ended.

    For generators: one that is left behind is ended by the garbage collector, in the middle of anything, and waiting
    for threads then, as the start of another thread, waits for ever.
    """
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, *columns))


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


def check_unchanged(ranges: ByteRanges) -> None:
    """Check that a file is the one whose set was opened.

    Raises:
        DataError: it has changed.
    """
    if ranges.file_size is None:
        return
    size, version, modified_ns = file_state(ranges.uri)
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


def file_state(uri: str) -> tuple[int, str, int]:
    """Return size, ETag (empty on a disk) and modification time in ns (0 in an object store)."""
    if (path := local_path(uri)) is not None:
        status = retry_transient(lambda: os.stat(path), uri)
        return status.st_size, "", status.st_mtime_ns
    with open_input(uri) as file:
        return file.size(), file.version(), 0


def record_file_state(uri: str) -> tuple[int, str]:
    """Return size and ETag of a file whose set is being opened, to compare later reads with.

    The modification time of a local file is remembered in this process.
    """
    size, version, _modified_ns[uri] = file_state(uri)
    return size, version
