"""A file opened for reading, that tries again where trying again helps, and never for ever.

An object store's client retries by itself (`lafs_ray.data.io.s3`). What is left is the disk
that is none: after a failover or a lost connection NFS answers with ESTALE or EIO, and opening the
file anew helps. Six tries in about half a minute; then a message with bytes, tries and seconds.
"""

from __future__ import annotations

import errno
import io
import random
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from pyarrow import fs

from lafs_ray.errors import DataError

_TRIES = 6
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 16.0
_NO_PERMISSION = {errno.EACCES, errno.EPERM, errno.EROFS}
_PASSING = {
    errno.ESTALE,
    errno.EIO,
    errno.ETIMEDOUT,
    errno.EREMOTEIO,
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.ENOTCONN,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EAGAIN,
}
# What S3 says without a number, in pyarrow's words.
_REFUSED = ("ACCESS_DENIED", "INVALID_ACCESS_KEY", "SIGNATURE_DOES_NOT_MATCH", "HTTP status 403")

T = TypeVar("T")


def persist(action: Callable[[], T], subject: str) -> T:
    """The result of reading something; what may pass is tried again, with longer and longer waits.

    Args:
        action: reads; raises OSError.
        subject: the file, and which of its bytes.

    Raises:
        DataError: it failed for good, or too often.
    """
    begin = time.monotonic()
    for attempt in range(1, _TRIES + 1):
        try:
            return action()
        except OSError as error:
            if error.errno not in _PASSING or attempt == _TRIES:
                raise unreadable(subject, error, attempt, time.monotonic() - begin) from error
        # Drawn at random so that the readers of a cluster do not all come back at once.
        wait = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** (attempt - 1))
        time.sleep(wait * random.uniform(0.5, 1.0))
    raise AssertionError("unreachable")


def unreadable(subject: str, error: OSError, tries: int = 1, seconds: float = 0.0) -> DataError:
    """What a failed read means to a user."""
    text = str(error)
    if isinstance(error, FileNotFoundError):
        found, fix = "no such file", "check the path; has the file been moved or deleted?"
    elif error.errno in _NO_PERMISSION or any(word in text for word in _REFUSED):
        found, fix = "no permission to read it", "check the file's owner and mode (or credentials)"
    else:
        found, fix = text, "check that the storage is reachable and mounted"
    if tries > 1:
        found += f"; gave up after {tries} tries in {seconds:.1f} s"
    elif seconds > 1:
        # The store's client has tried several times; how often, only it knows.
        found += f"; gave up after {seconds:.1f} s"
    return DataError(subject, found=found, expected="a readable file", fix=fix)


class Input(io.RawIOBase):
    """A random-access file; several threads may call `read_at` at once.

    Args:
        uri: for messages.
        filesystem: that holds it.
        path: in that file system.
    """

    def __init__(self, uri: str, filesystem: fs.FileSystem, path: str) -> None:
        super().__init__()
        self._uri, self._filesystem, self._path = uri, filesystem, path
        self._lock = threading.Lock()
        self._file: Any = None
        self._position = 0

    def _opened(self) -> Any:
        with self._lock:
            if self._file is None:
                self._file = self._filesystem.open_input_file(self._path)
            return self._file

    def _drop(self, broken: Any) -> None:
        """Let the next try open anew; other threads may still be reading from the old one."""
        with self._lock:
            if self._file is broken:
                self._file = None

    def size(self) -> int:
        """Bytes of the file when it was opened."""
        return persist(lambda: int(self._opened().size()), self._uri)

    def version(self) -> str:
        """What an object store calls this content (its ETag); empty on a disk."""
        if isinstance(self._filesystem, fs.LocalFileSystem):
            return ""
        found = persist(lambda: self._opened().metadata() or {}, self._uri)
        known = {_text(name).lower(): _text(value) for name, value in found.items()}
        names = ("etag", "generation", "last-modified")
        return next((known[name] for name in names if name in known), "")

    def read_at(self, nbytes: int, offset: int) -> Any:
        """A buffer with these bytes; shorter only where the file ends.

        Raises:
            DataError: they cannot be read.
        """

        def read() -> Any:
            file = None
            try:
                file = self._opened()
                buffer = file.read_at(nbytes, offset)
                missing = min(nbytes, file.size() - offset) - len(buffer)
                if missing > 0:
                    raise OSError(errno.EIO, f"{len(buffer)} of {nbytes} bytes arrived")
            except OSError:
                self._drop(file)
                raise
            return buffer

        persist(self._opened, self._uri)
        return persist(read, f"{self._uri}, bytes {offset} to {offset + nbytes}")

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Where the next `read` begins."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move there."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size()}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, target: Any) -> int:
        """Fill as much of `target` as the file has bytes for."""
        view = memoryview(target).cast("B")
        found = self.read_at(len(view), self._position)
        view[: len(found)] = memoryview(found)
        self._position += len(found)
        return len(found)

    def readall(self) -> bytes:
        """All that is left, in one request."""
        found = self.read_at(self.size() - self._position, self._position)
        self._position += len(found)
        return bytes(found)

    def close(self) -> None:
        """Close the file beneath."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None
        super().close()


def _text(value: str | bytes) -> str:
    """Pyarrow gives names as str and values as bytes."""
    return value if isinstance(value, str) else value.decode("latin-1")
