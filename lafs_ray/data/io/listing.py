"""Folders of a million image files: listed without holding all names, read many at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from pyarrow import fs

from lafs_ray.data.io import filesystem
from lafs_ray.data.io.retry import unreadable
from lafs_ray.errors import DataError

# Opening a file on NFS, or in an object store, is waiting for an answer.
_FILES_AT_ONCE = 16


def read_files(folder: str, names: Sequence[str]) -> Iterator[bytes | DataError]:
    """The content of each of many small files, some of them read at the same time.

    Args:
        folder: what names are relative to.
        names: relative to the folder, or complete paths or URIs.

    Yields:
        In the order of the names, the content, or what is wrong with the file.
    """
    store, path = filesystem.resolve(folder)

    def read(name: str) -> bytes | DataError:
        try:
            if filesystem.is_uri(name):
                return filesystem.read_bytes(name)
            # Not by URI: names need not be percent-encoded, and the client is found once.
            with store.open_input_file(name if name[0] == "/" else f"{path}/{name}") as file:
                return bytes(file.read())
        except OSError as error:
            return unreadable(name if name[0] == "/" else filesystem.join(folder, name), error)
        except DataError as error:
            return error

    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        yield from pool.map(read, names)


def list_tree(folder: str) -> Iterator[tuple[str, int, int]]:
    """(name relative to the folder, bytes, time of the last change in ns) of every file below it.

    In no particular order. On disk one subfolder is listed after the other, so that memory holds
    only its files; an object store lists everything in pages of its own, whatever the folders.

    Raises:
        DataError: a folder cannot be read.
    """
    store, path = filesystem.resolve(folder)
    prefix = path.rstrip("/") + "/"
    is_local = isinstance(store, fs.LocalFileSystem)
    waiting = [path]
    while waiting:
        try:
            infos = store.get_file_info(fs.FileSelector(waiting.pop(), recursive=not is_local))
        except OSError as error:
            raise unreadable(folder, error) from error
        for info in infos:
            if info.type == fs.FileType.File:
                yield info.path.removeprefix(prefix), int(info.size), int(info.mtime_ns or 0)
            elif info.type == fs.FileType.Directory and is_local:
                waiting.append(info.path)
