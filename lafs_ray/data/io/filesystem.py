"""Paths, listings, writes and deletions on disk, S3 and GCS, by path or URI (pyarrow.fs).

Writes are atomic. On disk a temporary file in the same folder is renamed; for an object store the bytes are spooled to
a local temporary file first, because closing a half-written pyarrow stream would complete the upload. The spool needs
local space for one file.
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
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import IO, Any, BinaryIO

from pyarrow import fs

from lafs_ray.config.paths import absolute as absolute
from lafs_ray.data.io import reading
from lafs_ray.errors import DataError

_COPY_BYTES = 8 << 20
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_NO_PERMISSION = {errno.EACCES, errno.EPERM}
_NEW = "a path that does not exist yet"
# What commands read in a folder of faces or of a run; their own outputs may lie beside it.
_READ_IN_FOLDERS = (
    *(".rec", ".idx", ".bin", "/manifest.json", ".pt", ".jsonl", "/config.json"),
    *(".jpg", ".jpeg", ".png", ".bmp", ".webp"),
)


def file_info(uri: str) -> fs.FileInfo:
    """Return type (NotFound, File or Directory), size and modification time."""
    filesystem, path = reading.resolve(uri)
    return reading.retry_transient(lambda: filesystem.get_file_info(path), uri)


def exists(uri: str) -> bool:
    """Return whether a file or folder exists."""
    return bool(file_info(uri).type != fs.FileType.NotFound)


def is_folder(uri: str) -> bool:
    """Return whether a folder exists."""
    return bool(file_info(uri).type == fs.FileType.Directory)


def file_size(uri: str) -> int:
    """Return the size of a file in bytes.

    Raises:
        DataError: there is no such file.
    """
    return file_stamp(uri)[0]


def file_stamp(uri: str) -> tuple[int, int]:
    """Return size in bytes and modification time in ns, to detect changes.

    Raises:
        DataError: there is no such file.
    """
    info = file_info(uri)
    if info.type != fs.FileType.File:
        found = {fs.FileType.NotFound: "no such file", fs.FileType.Directory: "a folder"}.get(
            info.type, reading.NO_FILE
        )
        raise DataError(uri, found=found, expected="a file", fix="check the path")
    return int(info.size), int(info.mtime_ns or 0)


def join(base: str, *parts: str) -> str:
    """Join path components to `base`; a URI keeps its query (`s3://b/dir?region=…`) at the end."""
    head, mark, query = base.partition("?") if reading.is_uri(base) else (base, "", "")
    return "/".join([head.rstrip("/"), *parts]) + mark + query


def parent(uri: str) -> str:
    """Return the folder of a path or URI; a URI keeps its query."""
    head, mark, query = uri.partition("?") if reading.is_uri(uri) else (uri, "", "")
    folder = head.rpartition("/")[0]
    return (folder or ("/" if head.startswith("/") else ".")) + mark + query


def file_name(uri: str) -> str:
    """Return the last component of a path or URI, without a URI's query."""
    return (uri.partition("?")[0] if reading.is_uri(uri) else uri).rpartition("/")[2]


def replace_suffix(uri: str, old: str, new: str) -> str:
    """Replace the file name's suffix; a URI keeps its query."""
    head, mark, query = uri.partition("?") if reading.is_uri(uri) else (uri, "", "")
    assert head.endswith(old), f"{uri} does not end in {old}"
    return head.removesuffix(old) + new + mark + query


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
        with write_errors(tempfile.gettempdir(), only=_DISK_FULL):
            yield spool
            spool.flush()
        _upload(spool, filesystem, path, uri)


def require_writable(folder: str) -> None:
    """Check that files can be written to a folder, by writing one.

    Raises:
        DataError: no permission to write, the disk is full, or the store refuses it.
    """
    uri = join(folder, f".writable-{uuid.uuid4().hex[:12]}")
    with atomic_write(uri) as file:
        file.write(b"lafs_ray checks that it can write here\n")
    delete(uri)


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
        if error.errno in _DISK_FULL:
            found, fix = "disk full", "free some space, or write to another disk"
        elif error.errno == errno.EROFS:
            found, fix = "a read-only file system", "choose another path"
        elif error.errno == errno.EFBIG:
            found, fix = "a file too large for this system", "raise `ulimit -f`, or write to another file system"
        elif error.errno in _NO_PERMISSION:
            found, fix = "no permission to write", "check the folder's owner and mode"
        elif error.errno in (errno.EEXIST, errno.ENOTDIR):
            found, fix = "a file where a folder is needed", "choose another path"
        else:
            found, fix = str(error), "check the path and that the storage is reachable"
        raise DataError(uri, found=found, expected="a writable path", fix=fix) from error


def read_bytes(uri: str) -> bytes:
    """Read the content of a file.

    Raises:
        DataError: it is missing or cannot be read.
    """
    with reading.open_input(uri) as file:
        return file.readall()


def require_output(uri: str, *, force: bool = False, inputs: Sequence[str] = ()) -> None:
    """Check that a file may be written to a path.

    Args:
        uri: the output, a path or URI.
        force: whether it may replace a regular file.
        inputs: files and folders that the same command reads; neither they nor data in them are ever replaced.

    Raises:
        DataError: it exists and is an input, no regular file, or there without `force`.
    """
    path = reading.local_path(uri)
    if path is not None:
        require_regular(uri, path)
    if not exists(uri):
        return
    for given in inputs:
        if _reads(given, uri):
            raise DataError(uri, found=f"an input of this command ({given})", expected=_NEW, fix="choose another path")
    if not force:
        fix = "choose another path, or add --force to replace it"
        raise DataError(uri, found="an existing file", expected=_NEW, fix=fix)


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
        raise DataError(uri, found=found, expected="a regular file, or " + _NEW, fix="choose another path")


def _reads(given: str, uri: str) -> bool:
    """Return whether an existing file is what a command reads from a file, folder or pattern."""
    own, used = (
        os.path.realpath(path) if (path := reading.local_path(one)) else one.partition("?")[0] for one in (uri, given)
    )
    if own == used or (os.path.exists(own) and os.path.exists(used) and os.path.samefile(own, used)):
        return True
    record = own.removesuffix(".idx") + ".rec" if own.endswith(".idx") else own
    if record == used or fnmatchcase(record, used):
        return True
    return own.startswith(used.rstrip("/") + "/") and own.lower().endswith(_READ_IN_FOLDERS)


@contextlib.contextmanager
def local_file(uri: str) -> Iterator[str]:
    """Yield a local path with a file's content, for libraries that take only paths.

    A file of an object store is copied to a temporary folder first, under its own name.

    Raises:
        DataError: it is missing or cannot be read.
    """
    if (path := reading.local_path(uri)) is not None:
        reading.require_file(path)
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, file_name(uri))
        with write_errors(copy), open(copy, "wb") as target, reading.open_input(uri) as source:
            shutil.copyfileobj(source, target, _COPY_BYTES)
        yield copy


def list_names(folder: str, *, recursive: bool = False) -> list[str]:
    """Return the sorted names of the files in a folder; empty if it does not exist.

    Args:
        folder: a path or URI.
        recursive: also files in subfolders, as paths relative to the folder.
    """
    if not exists(folder):
        return []
    filesystem, path = reading.resolve(folder)
    selector = fs.FileSelector(path, recursive=recursive)
    infos = reading.retry_transient(lambda: filesystem.get_file_info(selector), folder)
    prefix = path.rstrip("/") + "/"
    return sorted(one.path.removeprefix(prefix) for one in infos if one.type == fs.FileType.File)


def delete_tree(folder: str) -> None:
    """Delete a folder with its content, if it exists."""
    filesystem, path = reading.resolve(folder)
    with write_errors(folder), contextlib.suppress(FileNotFoundError):
        filesystem.delete_dir(path)


def delete(uri: str) -> None:
    """Delete a file, if it exists."""
    filesystem, path = reading.resolve(uri)
    with write_errors(uri), contextlib.suppress(FileNotFoundError):
        filesystem.delete_file(path)
