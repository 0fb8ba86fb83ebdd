"""Find the `.rec` files of a path: a file, a folder of them, or a pattern."""

from __future__ import annotations

import os
from fnmatch import fnmatchcase

from pyarrow import fs

from lafs_ray.data.io import filesystem, reading
from lafs_ray.data.io.listing import list_tree
from lafs_ray.errors import DataError


def find_record_files(path: str) -> tuple[str, ...]:
    """Return the `.rec` files of a face set, sorted by name.

    Args:
        path: a `.rec` file, a folder of them, or a pattern (`*`, `[…]`; on disk also `?`).

    Raises:
        DataError: nothing is there, the `.rec` of an `.idx` is missing, or it is not a `.rec` file.
    """
    wildcards = "*[" if reading.is_uri(path) else "*?["
    is_pattern = any(mark in path for mark in wildcards) and not (not reading.is_uri(path) and os.path.exists(path))
    if is_pattern:
        return _matching(path, wildcards)
    info = filesystem.file_info(path)
    if info.type == fs.FileType.Directory:
        return _in_folder(path)
    bare = path.partition("?")[0] if reading.is_uri(path) else path
    if not bare.endswith(".rec"):
        found = "no such file or folder" if info.type == fs.FileType.NotFound else "not a .rec file"
        expected = "a .rec file, a folder of .rec files, or a pattern such as shards/*.rec"
        raise DataError(path, found=found, expected=expected, fix="check the path")
    if info.type == fs.FileType.NotFound:
        orphans = filesystem.exists(filesystem.replace_suffix(path, ".rec", ".idx"))
        found = "an .idx without its .rec" if orphans else "no such file"
        raise DataError(path, found=found, expected="a .rec file", fix="copy the .rec to this path")
    return (path,)


def _in_folder(folder: str) -> tuple[str, ...]:
    names = filesystem.list_names(folder)
    records = [name for name in names if name.endswith(".rec")]
    indexes = [name for name in names if name.endswith(".idx")]
    orphans = [name for name in indexes if name[:-4] + ".rec" not in records]
    if orphans:
        raise DataError(
            folder,
            found=f".idx without .rec: {', '.join(orphans[:5])}",
            expected="a .rec for every .idx",
            fix="copy the missing .rec files, or remove the .idx files",
        )
    if not records:
        count = f"{len(names)} file{'s' * (len(names) != 1)}"
        found = f"{count}, none of them .rec" if names else "an empty folder"
        if not names and next(list_tree(folder), None):
            found = "only subfolders, no .rec"
        fix = "give the folder of the .rec; to train on images, run `lafs pack` first"
        raise DataError(folder, found=found, expected="at least one .rec file", fix=fix)
    return tuple(filesystem.join(folder, name) for name in records)


def _matching(pattern: str, wildcards: str) -> tuple[str, ...]:
    pattern, mark, query = pattern.partition("?") if reading.is_uri(pattern) else (pattern, "", "")
    parts = pattern.split("/")
    first = next(i for i, part in enumerate(parts) if any(mark in part for mark in wildcards))
    base, rest = "/".join(parts[:first]) or ("/" if first else "."), parts[first:]
    base += mark + query
    names = filesystem.list_names(base, recursive=len(rest) > 1)
    matches = [
        name
        for name in names
        if len(name.split("/")) == len(rest) and all(map(fnmatchcase, name.split("/"), rest)) and name.endswith(".rec")
    ]
    if not matches:
        found = f"no match among {len(names)} file{'s' * (len(names) != 1)}"
        pattern += mark + query
        raise DataError(pattern, found=found, expected="at least one .rec", fix="check the pattern")
    return tuple(filesystem.join(base, name) for name in matches)
