"""Files by path or URI: one small layer over pyarrow.fs, so that disk, S3 and GCS read alike.

Writing is all or nothing. On disk a temporary neighbor is renamed; for an object store the bytes
are spooled to a local temporary file first, because closing a half-written pyarrow stream would
complete the upload. Price: the spool needs local space for one file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from functools import lru_cache
from typing import IO, Any, BinaryIO

from pyarrow import fs

from lafs_ray.config.paths import absolute as absolute
from lafs_ray.config.paths import is_uri as is_uri
from lafs_ray.data.io.retry import Input, retry_transient
from lafs_ray.data.io.s3 import is_s3, s3_client, without_credentials
from lafs_ray.errors import DataError

_COPY_BYTES = 8 << 20
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_NO_PERMISSION = {errno.EACCES, errno.EPERM}


# Making a client may cost a request, and every read of a shard asks for it.
@lru_cache(maxsize=4096)
def _resolve_uri(uri: str) -> tuple[fs.FileSystem, str]:
    if is_s3(uri):
        return s3_client(uri)
    filesystem, path = fs.FileSystem.from_uri(uri)
    return filesystem, str(path)


def resolve(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system that holds `uri`, and the path in it.

    A path without scheme is a path of this machine; a relative one is made absolute.

    Raises:
        DataError: the scheme is unknown, the URI malformed, or the storage cannot be reached.
    """
    if not is_uri(uri):
        return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri))
    try:
        return _resolve_uri(uri)
    except (OSError, ValueError) as error:
        raise DataError(
            without_credentials(uri),
            found=str(error),
            expected="a local path, or a URI such as s3://bucket/key, gs://bucket/key, file:///dir",
            fix="correct the scheme (and percent-encode spaces), or check the credentials",
        ) from error


def file_info(uri: str) -> fs.FileInfo:
    """Type, size and time of the last change of what is there, or that nothing is."""
    filesystem, path = resolve(uri)
    return retry_transient(lambda: filesystem.get_file_info(path), uri)


def exists(uri: str) -> bool:
    """Whether a file or folder is there."""
    return bool(file_info(uri).type != fs.FileType.NotFound)


def is_folder(uri: str) -> bool:
    """Whether a folder is there."""
    return bool(file_info(uri).type == fs.FileType.Directory)


def file_size(uri: str) -> int:
    """Size of a file in bytes.

    Raises:
        DataError: there is no such file.
    """
    return file_stamp(uri)[0]


def file_stamp(uri: str) -> tuple[int, int]:
    """Size in bytes and time of the last change in ns: equal stamps, most likely an unchanged file.

    Raises:
        DataError: there is no such file.
    """
    info = file_info(uri)
    if info.type != fs.FileType.File:
        found = "no such file" if info.type == fs.FileType.NotFound else "a folder"
        raise DataError(uri, found=found, expected="a file", fix="check the path")
    return int(info.size), int(info.mtime_ns or 0)


def join(base: str, *parts: str) -> str:
    """A path below `base`; a URI keeps its query (`s3://b/dir?region=…`) at the end."""
    head, mark, query = base.partition("?") if is_uri(base) else (base, "", "")
    return "/".join([head.rstrip("/"), *parts]) + mark + query


def parent(uri: str) -> str:
    """The folder of a path or URI; a URI keeps its query."""
    head, mark, query = uri.partition("?") if is_uri(uri) else (uri, "", "")
    folder = head.rpartition("/")[0]
    return (folder or ("/" if head.startswith("/") else ".")) + mark + query


def file_name(uri: str) -> str:
    """The last part of a path or URI, without a URI's query."""
    return (uri.partition("?")[0] if is_uri(uri) else uri).rpartition("/")[2]


def replace_suffix(uri: str, old: str, new: str) -> str:
    """`uri` with the file's ending exchanged; the query of a URI stays."""
    head, mark, query = uri.partition("?") if is_uri(uri) else (uri, "", "")
    assert head.endswith(old), f"{uri} does not end in {old}"
    return head.removesuffix(old) + new + mark + query


def open_input(uri: str) -> Input:
    """A random-access file, opened at the first use; to be closed, as by `with`.

    Raises:
        DataError: there is no such file; later, reading fails for good.
    """
    return Input(uri, *resolve(uri))


@contextlib.contextmanager
def atomic_write(uri: str) -> Iterator[BinaryIO]:
    """A binary file that appears under its name when the block ends without an exception.

    Missing parent folders are made. An exception in the block leaves what was there before.

    Raises:
        DataError: no permission to write, the disk is full, or the upload failed.
    """
    filesystem, path = resolve(uri)
    if isinstance(filesystem, fs.LocalFileSystem):
        with _renamed_at_end(uri, path) as file:
            yield file
        return
    with tempfile.TemporaryFile() as spool:
        with write_errors(tempfile.gettempdir(), only=_DISK_FULL):
            yield spool
            spool.flush()
        _upload(spool, filesystem, path, uri)


def require_writable(folder: str) -> None:
    """See that files can be written to a folder, before the work that they are to hold.

    Raises:
        DataError: no permission to write, the disk is full, or the store refuses them.
    """
    online_eval = join(folder, ".writable")
    with atomic_write(online_eval) as file:
        file.write(b"lafs_ray looked whether it may write here\n")
    delete(online_eval)


@contextlib.contextmanager
def _renamed_at_end(uri: str, path: str) -> Iterator[BinaryIO]:
    folder, name = os.path.split(path)
    # The ending keeps half-written shards out of every `*.rec` pattern.
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex[:12]}.partial")
    try:
        with write_errors(uri):
            os.makedirs(folder, exist_ok=True)
            file = open(temporary, "xb")  # noqa: SIM115 - a `with` would hide the error, see below
        try:
            # The block may raise an OSError of its own making; only a full disk is surely ours.
            with write_errors(uri, only=_DISK_FULL):
                yield file
            with write_errors(uri):
                file.flush()
                os.fsync(file.fileno())
        finally:
            # Closing tries to write what a full disk refused once more, and fails once more.
            with contextlib.suppress(OSError):
                file.close()
        with write_errors(uri):
            os.replace(temporary, path)
            _sync_folder(folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _sync_folder(folder: str) -> None:
    """Make a rename survive a power cut: it lives in the folder, not in the file."""
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
            # S3 publishes nothing of an upload that failed, and the old object stays. Where a store
            # has published what had arrived, no file is better than a part.
            with contextlib.suppress(OSError):
                if _state(filesystem, path) != before:
                    filesystem.delete_file(path)
            raise


def _state(filesystem: fs.FileSystem, path: str) -> tuple[Any, ...]:
    """To see whether a file is another one (pyarrow's own FileInfo is equal to itself alone)."""
    info = filesystem.get_file_info(path)
    return info.type, info.size, info.mtime_ns


@contextlib.contextmanager
def write_errors(uri: str, only: set[int] | None = None) -> Iterator[None]:
    """Tell an OSError (of the kinds in `only`, by default of any) as a DataError about `uri`."""
    try:
        yield
    except OSError as error:
        if only is not None and error.errno not in only:
            raise
        if error.errno in _DISK_FULL:
            found, fix = "disk full", "free some space, or write to another disk"
        elif error.errno == errno.EROFS:
            found, fix = "a file system that is read-only", "name a place elsewhere"
        elif error.errno in _NO_PERMISSION:
            found, fix = "no permission to write", "check the folder's owner and mode"
        elif error.errno in (errno.EEXIST, errno.ENOTDIR):
            found, fix = "a file where a folder has to be", "name another place"
        else:
            found, fix = str(error), "check the path and that the storage is reachable"
        raise DataError(uri, found=found, expected="a place to write the file", fix=fix) from error


def read_bytes(uri: str) -> bytes:
    """The whole content of a file.

    Raises:
        DataError: it is missing or cannot be read.
    """
    with open_input(uri) as file:
        return file.readall()


def require_absent(uri: str) -> None:
    """Refuse a place where something is already.

    Raises:
        DataError: there is a file or folder.
    """
    if exists(uri):
        raise DataError(
            uri,
            found="a file of that name",
            expected="a name that is free",
            fix="choose another name, or add --force to replace it",
        )


@contextlib.contextmanager
def local_file(uri: str) -> Iterator[str]:
    """A path of this machine's disk with a file's content, for libraries that know only paths.

    A file of an object store is copied to a temporary folder first, under its own name.

    Raises:
        DataError: it is missing or cannot be read.
    """
    if (path := local_path(uri)) is not None:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, file_name(uri))
        with write_errors(copy), open(copy, "wb") as target, open_input(uri) as source:
            shutil.copyfileobj(source, target, _COPY_BYTES)
        yield copy


def list_names(folder: str, *, recursive: bool = False) -> list[str]:
    """Sorted names of the files directly in a folder; none where there is no folder.

    Args:
        folder: a path or URI.
        recursive: also files in the folders below, as paths relative to this one.
    """
    if not exists(folder):
        return []
    filesystem, path = resolve(folder)
    selector = fs.FileSelector(path, recursive=recursive)
    infos = retry_transient(lambda: filesystem.get_file_info(selector), folder)
    prefix = path.rstrip("/") + "/"
    return sorted(one.path.removeprefix(prefix) for one in infos if one.type == fs.FileType.File)


def delete_tree(folder: str) -> None:
    """Delete a folder with all in it; that it is gone already is no mistake."""
    filesystem, path = resolve(folder)
    with write_errors(folder), contextlib.suppress(FileNotFoundError):
        filesystem.delete_dir(path)


def delete(uri: str) -> None:
    """Delete a file; that it is gone already is no mistake."""
    filesystem, path = resolve(uri)
    with write_errors(uri), contextlib.suppress(FileNotFoundError):
        filesystem.delete_file(path)


def local_path(uri: str) -> str | None:
    """The path of a file on this machine's disk; None where it lies in an object store."""
    filesystem, path = resolve(uri)
    return path if isinstance(filesystem, fs.LocalFileSystem) else None
