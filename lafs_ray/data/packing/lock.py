"""Only one process packs into a folder: `pack.lock` names it.

On disk the lock is `flock`, which the kernel (for NFS: the server) releases when its process or its host dies. An
object store has no locks, and some network file systems lack `flock`: there the lock is a lease, a file rewritten every
10 s that expires 5 minutes after the last time. Two processes that create a lease within the same second may both go
on; then they write the same bytes twice, because `pack.json` refuses a second process with another request.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator

from lafs_ray.data.io import filesystem, reading
from lafs_ray.errors import DataError

LOCK = "pack.lock"
RENEW_S = 10.0
EXPIRE_S = 300.0
_NO_FLOCK = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}


@contextlib.contextmanager
def locked(folder: str) -> Iterator[None]:
    """Hold the lock of a folder, which is created if missing.

    Raises:
        DataError: another process holds it, or the folder is not writable.
    """
    uri = filesystem.join(folder, LOCK)
    path = reading.local_path(uri)
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    owner = f"process {os.getpid()} on {socket.gethostname()}, since {since}".encode()
    with contextlib.ExitStack() as stack:
        if path is not None and (file := _flock(path, uri, owner)) is not None:
            stack.callback(os.close, file)
            stack.callback(filesystem.delete, uri)
        else:
            _check_lease(uri)
            stack.callback(filesystem.delete, uri)
            stack.enter_context(_renewed(uri, owner))
        yield


def _flock(path: str, uri: str, owner: bytes) -> int | None:
    """Return the descriptor of the locked file; None where the file system has no `flock`."""
    with filesystem.write_errors(uri), contextlib.ExitStack() as stack:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        filesystem.require_regular(uri, path)
        while True:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            stack.callback(os.close, file)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                fix = "wait until it ends, or choose another folder"
                raise _in_use(uri, os.pread(file, 1024, 0), fix) from error
            except OSError as error:
                if error.errno in _NO_FLOCK:
                    return None
                raise
            # Between `open` and `flock` the former owner may have deleted the file.
            if os.path.exists(path) and os.path.samestat(os.fstat(file), os.stat(path)):
                os.ftruncate(file, 0)
                os.pwrite(file, owner, 0)
                stack.pop_all()
                return file


def _check_lease(uri: str) -> None:
    if not filesystem.exists(uri):
        return
    size, renewed_ns = filesystem.file_stamp(uri)
    # Where `flock` failed, our own attempt may have created an empty file.
    if size and time.time() - renewed_ns / 1e9 < EXPIRE_S:
        fix = "wait until it ends, or choose another folder; the lock of a process that died"
        fix = f"{fix} expires after {EXPIRE_S / 60:.0f} minutes"
        raise _in_use(uri, filesystem.read_bytes(uri), fix)


@contextlib.contextmanager
def _renewed(uri: str, owner: bytes) -> Iterator[None]:
    """Write the lease, and again every `RENEW_S` in a thread."""
    end = threading.Event()

    def renew() -> None:
        with filesystem.atomic_write(uri) as file:
            file.write(owner)

    def renew_until_end() -> None:
        while not end.wait(RENEW_S):
            # An unreachable store may answer the next time.
            with contextlib.suppress(DataError, OSError):
                renew()

    renew()
    thread = threading.Thread(target=renew_until_end, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join(timeout=RENEW_S)


def _in_use(uri: str, owner: bytes, fix: str) -> DataError:
    return DataError(
        filesystem.parent(uri),
        found=f"another packer at work: {owner.decode(errors='replace')}",
        expected="a folder that no other process writes to",
        fix=fix,
    )
