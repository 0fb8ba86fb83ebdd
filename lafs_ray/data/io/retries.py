"""Reads that are retried where the error may pass, and the message of those that fail.

An object store's client retries by itself (`lafs_ray.data.io.s3`). What is left is network disks:
after a failover or a lost connection NFS returns ESTALE or EIO, and reopening the file helps. After six attempts in
about half a minute the read fails, with byte range, attempts and seconds.
"""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable
from typing import TypeVar

from lafs_ray.errors import DataError

_ATTEMPTS = 6
_FIRST_WAIT_S, _MAX_WAIT_S = 0.5, 16.0
_NO_PERMISSION = {errno.EACCES, errno.EPERM, errno.EROFS}
_TRANSIENT = {
    *(errno.ESTALE, errno.EIO, errno.EREMOTEIO, errno.EAGAIN, errno.ETIMEDOUT, errno.ENOTCONN),
    *(errno.ECONNRESET, errno.ECONNABORTED, errno.EHOSTDOWN, errno.EHOSTUNREACH),
    *(errno.ENETDOWN, errno.ENETUNREACH),
}
# S3 errors without errno, in the words of pyarrow.
_FORBIDDEN = ("ACCESS_DENIED", "INVALID_ACCESS_KEY", "SIGNATURE_DOES_NOT_MATCH", "HTTP status 403")

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
    text = error_text(error)
    if isinstance(error, FileNotFoundError):
        found, fix = "no such file", "check the path; has the file been moved or deleted?"
    elif error.errno in _NO_PERMISSION or any(word in text for word in _FORBIDDEN):
        found, fix = "no permission to read it", "check the file's owner and mode (or credentials)"
    else:
        found, fix = text, "check that the storage is reachable and mounted"
    if attempts > 1:
        found += f"; gave up after {attempts} attempts in {seconds:.1f} s"
    elif seconds > 1:
        # The store's client has retried; it does not report how often.
        found += f"; gave up after {seconds:.1f} s"
    return DataError(subject, found=found, expected="a readable file", fix=fix)


def error_text(error: OSError) -> str:
    """Return the message of an error, without the details that Google's client adds."""
    text, details, _ = str(error).partition(" error_info={")
    return text.removeprefix("google::cloud::Status(") if details else text
