"""Paths, listings, outputs and deletions on disk, S3 and GCS, by path or URI (pyarrow.fs)."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from pyarrow import fs

from lafs_ray.config.paths import absolute as absolute
from lafs_ray.data.io import reading
from lafs_ray.data.io.atomic import NEW_PATH
from lafs_ray.data.io.atomic import atomic_write as atomic_write
from lafs_ray.data.io.atomic import require_names as require_names
from lafs_ray.data.io.atomic import require_regular as require_regular
from lafs_ray.data.io.atomic import write_errors as write_errors
from lafs_ray.data.io.image_columns import has_images
from lafs_ray.data.io.retries import retry_transient
from lafs_ray.errors import DataError

_COPY_BYTES = 8 << 20
# What commands read in a folder of faces or of a run; their own outputs may lie beside it.
_READ_IN_FOLDERS = (
    *(".rec", ".idx", ".tar", ".bin", "/manifest.json", ".pt", ".jsonl", "/config.json"),
    *(".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp"),
)


def file_info(uri: str) -> fs.FileInfo:
    """Return type (NotFound, File or Directory), size and modification time."""
    filesystem, path = reading.resolve(uri)

    def info() -> fs.FileInfo:
        found = filesystem.get_file_info(path)
        if found.type == fs.FileType.NotFound and isinstance(filesystem, fs.GcsFileSystem):
            # pyarrow says so, too, where the store does not answer, and a run would start over; a listing raises.
            with contextlib.suppress(FileNotFoundError):
                if filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True)):
                    found = filesystem.get_file_info(path)
        return found

    return retry_transient(info, uri)


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


def require_writable(folder: str) -> None:
    """Check that files can be written to a folder, by writing one.

    Raises:
        DataError: no permission to write, the disk is full, or the store refuses it.
    """
    uri = join(folder, f".writable-{uuid.uuid4().hex[:12]}")
    with atomic_write(uri) as file:
        file.write(b"lafs_ray checks that it can write here\n")
    delete(uri)


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
    require_names(uri)
    if path is not None:
        require_regular(uri, path)
    if not exists(uri):
        return
    for given in inputs:
        if _reads(given, uri):
            raise DataError(
                uri, found=f"an input of this command ({given})", expected=NEW_PATH, fix="choose another path"
            )
    if not force:
        fix = "choose another path, or add --force to replace it"
        raise DataError(uri, found="an existing file", expected=NEW_PATH, fix=fix)


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
    if not own.startswith(used.rstrip("/") + "/"):
        return False
    return own.lower().endswith(_READ_IN_FOLDERS) or (own.lower().endswith(".parquet") and has_images(uri))


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
    if isinstance(filesystem, fs.LocalFileSystem) and not recursive:
        # pyarrow fails on a name that is not UTF-8.
        return retry_transient(lambda: sorted(one.name for one in os.scandir(path) if one.is_file()), folder)
    selector = fs.FileSelector(path, recursive=recursive)
    infos = retry_transient(lambda: filesystem.get_file_info(selector), folder)
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
