"""A file opened for reading that retries transient errors.

An object store's client retries by itself (`lafs_ray.data.io.s3`). What is left is network disks:
after a failover or a lost connection NFS returns ESTALE or EIO, and reopening the file helps. After
six attempts in about half a minute the read fails, with byte range, attempts and seconds.
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

_ATTEMPTS = 6
_FIRST_WAIT_S, _MAX_WAIT_S = 0.5, 16.0
_NO_PERMISSION = {errno.EACCES, errno.EPERM, errno.EROFS}
_TRANSIENT = {
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
# S3 errors without errno, in the words of pyarrow.
_S3_FORBIDDEN = (
    *("ACCESS_DENIED", "INVALID_ACCESS_KEY"),
    *("SIGNATURE_DOES_NOT_MATCH", "HTTP status 403"),
)

T = TypeVar("T")


def retry_transient(action: Callable[[], T], subject: str) -> T:
    """Call `action` and return its result; retry transient errors with exponential backoff.

    Args:
        action: reads; raises OSError.
        subject: the file and byte range, for messages.

    Raises:
        DataError: the error is permanent, or the last attempt failed.
    """
    begin = time.monotonic()
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return action()
        except OSError as error:
            if error.errno not in _TRANSIENT or attempt == _ATTEMPTS:
                raise read_error(subject, error, attempt, time.monotonic() - begin) from error
        # Jitter, so that the readers of a cluster do not all come back at once.
        wait = min(_MAX_WAIT_S, _FIRST_WAIT_S * 2 ** (attempt - 1))
        time.sleep(wait * random.uniform(0.5, 1.0))
    raise AssertionError("unreachable")


def read_error(subject: str, error: OSError, attempts: int = 1, seconds: float = 0.0) -> DataError:
    """Return the message for a failed read."""
    text = str(error)
    if isinstance(error, FileNotFoundError):
        found, fix = "no such file", "check the path; has the file been moved or deleted?"
    elif error.errno in _NO_PERMISSION or any(word in text for word in _S3_FORBIDDEN):
        found, fix = "no permission to read it", "check the file's owner and mode (or credentials)"
    else:
        found, fix = text, "check that the storage is reachable and mounted"
    if attempts > 1:
        found += f"; gave up after {attempts} attempts in {seconds:.1f} s"
    elif seconds > 1:
        # The store's client has retried; it does not report how often.
        found += f"; gave up after {seconds:.1f} s"
    return DataError(subject, found=found, expected="a readable file", fix=fix)


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
                self._file = self._filesystem.open_input_file(self._path)
            return self._file

    def _drop(self, broken: Any) -> None:
        """Make the next attempt reopen the file; other threads may still use the old handle."""
        with self._lock:
            if self._file is broken:
                self._file = None

    def size(self) -> int:
        """Return the size in bytes when the file was opened."""
        return retry_transient(lambda: int(self._open().size()), self._uri)

    def version(self) -> str:
        """Return the object's ETag, else generation or modification time; empty on a disk."""
        if isinstance(self._filesystem, fs.LocalFileSystem):
            return ""
        metadata = retry_transient(lambda: self._open().metadata() or {}, self._uri)
        known = {_text(name).lower(): _text(value) for name, value in metadata.items()}
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
                buffer = file.read_at(nbytes, offset)
                missing = min(nbytes, file.size() - offset) - len(buffer)
                if missing > 0:
                    raise OSError(errno.EIO, f"{len(buffer)} of {nbytes} bytes arrived")
            except OSError:
                self._drop(file)
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

    def tell(self) -> int:
        """Return the offset of the next `read`."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the offset of the next `read`."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size()}[whence]
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


def _text(value: str | bytes) -> str:
    """Decode what pyarrow returns: names as str, values as bytes."""
    return value if isinstance(value, str) else value.decode("latin-1")
