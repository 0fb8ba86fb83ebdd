"""Folders of a million image files: streamed listings, concurrent reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pyarrow import fs

from lafs_ray.data.io import filesystem, reading
from lafs_ray.data.io.retries import read_error, retry_transient
from lafs_ray.errors import DataError

# Opening a file on NFS, or in an object store, is mostly latency.
_CONCURRENT_FILES, _FILES_AT_ONCE = 16, 256


def read_files(folder: str, names: Sequence[str]) -> Iterator[bytes | DataError]:
    """Read many small files, some of them concurrently.

    Args:
        folder: what names are relative to.
        names: relative to the folder, or complete paths or URIs.

    Yields:
        In the order of the names, the content, or what is wrong with the file.
    """
    store, path = reading.resolve(folder)

    def read(name: str) -> bytes | DataError:
        try:
            if reading.is_uri(name):
                return filesystem.read_bytes(name)
            # Not by URI: names need not be percent-encoded, and the client is looked up once.
            if name.startswith("/"):
                return retry_transient(lambda: _read_file(store, name), name)
            uri = filesystem.join(folder, name)
            return retry_transient(lambda: _read_file(store, f"{path}/{name}"), uri)
        except DataError as error:
            return error

    for start in range(0, len(names), _FILES_AT_ONCE):
        yield from reading.all_at_once(_CONCURRENT_FILES, read, names[start : start + _FILES_AT_ONCE])


def _read_file(store: fs.FileSystem, path: str) -> bytes:
    with reading.open_file(store, path) as file:
        return bytes(file.read())


def list_tree(folder: str) -> Iterator[tuple[str, int, int]]:
    """List all files below a folder, in no particular order.

    On disk one subfolder is listed after the other, so that memory holds only its files; an object store lists all
    objects in pages, whatever the folders.

    Yields:
        Name relative to the folder, size in bytes, modification time in ns.

    Raises:
        DataError: a folder cannot be read.
    """
    store, path = reading.resolve(folder)
    prefix = path.rstrip("/") + "/"
    is_local = isinstance(store, fs.LocalFileSystem)
    pending = [path]
    while pending:
        try:
            infos = store.get_file_info(fs.FileSelector(pending.pop(), recursive=not is_local))
        except OSError as error:
            raise read_error(folder, error) from error
        for info in infos:
            if info.type == fs.FileType.File:
                yield info.path.removeprefix(prefix), int(info.size), int(info.mtime_ns or 0)
            elif info.type == fs.FileType.Directory and is_local:
                pending.append(info.path)
