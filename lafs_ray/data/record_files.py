"""Which `.rec` files a path means: a file, a folder that holds some, or a pattern."""

from __future__ import annotations

import os
from fnmatch import fnmatchcase

from pyarrow import fs

from lafs_ray.data.io import filesystem
from lafs_ray.data.io.listing import list_tree
from lafs_ray.errors import DataError


def find_record_files(path: str) -> tuple[str, ...]:
    """The `.rec` files of a face set, sorted by name.

    Args:
        path: a `.rec` file, a folder that holds some, or a pattern (`*`, `[…]`; on disk also `?`).

    Raises:
        DataError: nothing is there, an `.idx` lacks its `.rec`, or the file is of another kind.
    """
    wildcards = "*[" if filesystem.is_uri(path) else "*?["
    is_pattern = any(mark in path for mark in wildcards) and not (
        not filesystem.is_uri(path) and os.path.exists(path)
    )
    if is_pattern:
        return _matching(path, wildcards)
    info = filesystem.file_info(path)
    if info.type == fs.FileType.Directory:
        return _in_folder(path)
    bare = path.partition("?")[0] if filesystem.is_uri(path) else path
    if not bare.endswith(".rec"):
        found = "no such file or folder" if info.type == fs.FileType.NotFound else "another file"
        expected = "a .rec file, a folder of .rec files, or a pattern such as shards/*.rec"
        raise DataError(path, found=found, expected=expected, fix="check the path")
    if info.type == fs.FileType.NotFound:
        lonely = filesystem.exists(filesystem.replace_suffix(path, ".rec", ".idx"))
        found = "the .idx, but no .rec beside it" if lonely else "no such file"
        raise DataError(path, found=found, expected="a .rec file", fix="copy the .rec to this path")
    return (path,)


def _in_folder(folder: str) -> tuple[str, ...]:
    names = filesystem.list_names(folder)
    records = [name for name in names if name.endswith(".rec")]
    lonely = [name for name in names if name.endswith(".idx") and name[:-4] + ".rec" not in records]
    if lonely:
        raise DataError(
            folder,
            found=f".idx without .rec: {', '.join(lonely[:5])}",
            expected="a .rec beside every .idx",
            fix="copy the missing .rec files, or remove the .idx files",
        )
    if not records:
        found = f"{len(names)} files, none of them .rec" if names else "an empty folder"
        if not names and next(list_tree(folder), None):
            found = "files in its subfolders alone"
        fix = "give the folder that holds the .rec; pack a folder of images first (jobs/pack.py)"
        raise DataError(folder, found=found, expected="at least one .rec file", fix=fix)
    return tuple(filesystem.join(folder, name) for name in records)


def _matching(pattern: str, wildcards: str) -> tuple[str, ...]:
    pattern, mark, query = (
        pattern.partition("?") if filesystem.is_uri(pattern) else (pattern, "", "")
    )
    parts = pattern.split("/")
    first = next(i for i, part in enumerate(parts) if any(mark in part for mark in wildcards))
    base, wanted = "/".join(parts[:first]) or ("/" if first else "."), parts[first:]
    base += mark + query
    names = filesystem.list_names(base, recursive=len(wanted) > 1)
    matches = [
        name
        for name in names
        if len(name.split("/")) == len(wanted)
        and all(map(fnmatchcase, name.split("/"), wanted))
        and name.endswith(".rec")
    ]
    if not matches:
        found = f"no match among {len(names)} files" if names else f"nothing below {base}"
        pattern += mark + query
        raise DataError(pattern, found=found, expected="at least one .rec", fix="check the pattern")
    return tuple(filesystem.join(base, name) for name in matches)
