"""Atomic writes on disk and to object stores.

On disk a temporary file in the same folder is renamed; for an object store the bytes are spooled to a local temporary
file first, because closing a half-written pyarrow stream would complete the upload. The spool needs local space for one
file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from typing import IO, Any, BinaryIO

from pyarrow import fs

from lafs_ray.data.io import reading
from lafs_ray.data.io.retries import error_text
from lafs_ray.errors import DataError

_COPY_BYTES = 8 << 20
DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_NO_PERMISSION = {errno.EACCES, errno.EPERM}
# Of Linux; a path gets the name of a file while it is written.
_MOST_NAME, _MOST_PATH = 255, 4000
NEW_PATH = "a path that does not exist yet"


@contextlib.contextmanager
def atomic_write(uri: str) -> Iterator[BinaryIO]:
    """Open a binary file that appears under its name when the block ends without an exception.

    Missing parent folders are created. An exception in the block leaves the previous file in place.

    Raises:
        DataError: no permission to write, the disk is full, or the upload failed.
    """
    filesystem, path = reading.resolve(uri)
    if isinstance(filesystem, fs.LocalFileSystem):
        with _rename_on_exit(uri, path) as file:
            yield file
        return
    with tempfile.TemporaryFile() as spool:
        with write_errors(tempfile.gettempdir(), only=DISK_FULL):
            yield spool
            spool.flush()
        _upload(spool, filesystem, path, uri)


class _PartialFile(io.FileIO):
    """A new file beside the one to write, locked so that other processes do not delete it.

    Args:
        uri: the file to write, for messages.
        path: its local path.
    """

    def __init__(self, uri: str, path: str) -> None:
        folder, name = os.path.split(path)
        # The suffix keeps half-written shards out of every `*.rec` pattern.
        super().__init__(os.path.join(folder, f".{name}.{uuid.uuid4().hex[:12]}.partial"), "xb")
        self._uri = uri
        with contextlib.suppress(OSError):  # Some network file systems have no locks.
            fcntl.flock(self, fcntl.LOCK_EX)

    def write(self, data: Any) -> int:
        """Write bytes.

        Raises:
            DataError: the storage refuses them.
        """
        with write_errors(self._uri):
            return os.write(self.fileno(), data)


@contextlib.contextmanager
def _rename_on_exit(uri: str, path: str) -> Iterator[BinaryIO]:
    require_regular(uri, path)
    folder, name = os.path.split(path)
    with write_errors(uri):
        os.makedirs(folder, exist_ok=True)
        _delete_partials(folder, name)
        partial = _PartialFile(uri, path)
        while not os.fstat(partial.fileno()).st_nlink:  # Deleted before it was locked.
            partial = _PartialFile(uri, path)
    try:
        file = io.BufferedWriter(partial)
        try:
            yield file
            with write_errors(uri):
                file.flush()
                os.fsync(file.fileno())
                file.close()
        finally:
            # Closing writes buffered data again, and fails again on a full disk.
            with contextlib.suppress(OSError, DataError):
                file.close()
        require_regular(uri, path)
        with write_errors(uri):
            os.replace(partial.name, path)
            _sync_folder(folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial.name)
        raise


def _delete_partials(folder: str, name: str) -> None:
    """Delete the partial files of `name` whose processes have died, which released their locks."""
    pattern = re.compile(rf"\.{re.escape(name)}\.[0-9a-f]{{12}}\.partial")
    for entry in os.scandir(folder):
        if pattern.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
            with contextlib.suppress(OSError), open(entry.path, "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(entry.path)


def _sync_folder(folder: str) -> None:
    """Make a rename durable: it is stored in the folder, not in the file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _upload(spool: IO[bytes], filesystem: fs.FileSystem, path: str, uri: str) -> None:
    size = spool.seek(0, os.SEEK_END)
    spool.seek(0)
    with write_errors(uri):
        before = _state(filesystem, path)
        try:
            with filesystem.open_output_stream(path) as target:
                shutil.copyfileobj(spool, target, _COPY_BYTES)
            written = filesystem.get_file_info(path).size
            if written != size:
                raise OSError(f"{written} of {size} bytes arrived")
        except BaseException:
            # S3 keeps the old object after a failed upload. Where a store has published a partial one, no file is
            # better.
            with contextlib.suppress(OSError):
                if _state(filesystem, path) != before:
                    filesystem.delete_file(path)
            raise


def _state(filesystem: fs.FileSystem, path: str) -> tuple[Any, ...]:
    """Return what changes when a file is replaced (two FileInfo of pyarrow are never equal)."""
    info = filesystem.get_file_info(path)
    return info.type, info.size, info.mtime_ns


@contextlib.contextmanager
def write_errors(uri: str, only: set[int] | None = None) -> Iterator[None]:
    """Raise an OSError in the block (with errno in `only`, by default any) as a DataError."""
    try:
        yield
    except OSError as error:
        if only is not None and error.errno not in only:
            raise
        if error.errno in DISK_FULL:
            found, fix = "disk full", "free some space, or write to another disk"
        elif error.errno == errno.EROFS:
            found, fix = "a read-only file system", "choose another path"
        elif error.errno == errno.EFBIG:
            found, fix = "a file too large for this system", "raise `ulimit -f`, or write to another file system"
        elif error.errno == errno.ENAMETOOLONG:
            found, fix = "a name that is too long for this file system", "choose a shorter name"
        elif error.errno in _NO_PERMISSION:
            found, fix = "no permission to write", "check the folder's owner and mode"
        elif isinstance(error, FileNotFoundError) and "bucket" in str(error):
            found, fix = "no such bucket", "create the bucket, or correct its name"
        elif error.errno in (errno.EEXIST, errno.ENOTDIR):
            found, fix = "a file where a folder is needed", "choose another path"
        else:
            found, fix = error_text(error), "check the path and that the storage is reachable"
        raise DataError(uri, found=found, expected="a writable path", fix=fix) from error


def require_names(uri: str) -> None:
    """Check that a file system takes the names in a path, that of a file while it is written included.

    Raises:
        DataError: one is too long.
    """
    path = reading.local_path(uri)
    if path is None:
        return
    *folders, name = path.split("/")
    names = [*folders, f".{name}.0123456789ab.partial"]
    longest = max(names, key=lambda part: len(os.fsencode(part)))
    for what, found, most in (("name", longest, _MOST_NAME), ("path", path, _MOST_PATH)):
        if (length := len(os.fsencode(found))) > most:
            raise DataError(
                f"{uri[:200]}…",
                found=f"a {what} of {length} bytes",
                expected=f"at most {most}, which file systems take",
                fix="choose a shorter one",
            )


def require_regular(uri: str, path: str) -> None:
    """Check that a local path is free or a regular file: renaming onto a device or a link would replace it.

    Raises:
        DataError: it is something else.
    """
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return  # Free, or a folder on the way cannot be searched: writing tells.
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFLNK: "a link", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        found = kinds.get(stat.S_IFMT(mode), "a device")
        raise DataError(uri, found=found, expected="a regular file, or " + NEW_PATH, fix="choose another path")
