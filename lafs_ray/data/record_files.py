"""Find the `.rec` files of a path: a file, a folder of them, or a pattern."""

from __future__ import annotations

import logging
import os
from fnmatch import fnmatchcase

from pyarrow import fs

from lafs_ray.data.io import filesystem, reading
from lafs_ray.data.io.walk import PassedOver, require_no_dead_link, require_text, walk
from lafs_ray.errors import DataError

logger = logging.getLogger(__name__)


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
    require_no_dead_link(path)
    if info.type == fs.FileType.NotFound:
        orphans = filesystem.exists(filesystem.replace_suffix(path, ".rec", ".idx"))
        found = "an .idx without its .rec" if orphans else "no such file"
        raise DataError(path, found=found, expected="a .rec file", fix="copy the .rec to this path")
    return (path,)


def is_set(folder: str) -> bool:
    """Return whether a folder has `.rec` files directly in it."""
    return any(entry.name.endswith(".rec") for entry in walk(folder, PassedOver(), depth=1))


def _in_folder(folder: str) -> tuple[str, ...]:
    passed_over = PassedOver((".rec", ".idx"))
    entries = {entry.name: entry for entry in walk(folder, passed_over, depth=1)}
    records = sorted(name for name in entries if name.endswith(".rec"))
    indexes = sorted(name for name in entries if name.endswith(".idx"))
    _report(folder, passed_over)
    orphans = [name for name in indexes if name[:-4] + ".rec" not in records]
    if orphans:
        raise DataError(
            folder,
            found=f".idx without .rec: {', '.join(orphans[:5])}",
            expected="a .rec for every .idx",
            fix="copy the missing .rec files, or remove the .idx files",
        )
    if not records:
        count = f"{len(entries)} file{'s' * (len(entries) != 1)}"
        found = f"{count}, none of them .rec" if entries else "an empty folder"
        if not entries and next(walk(folder, PassedOver()), None):
            found = "only subfolders, no .rec"
        fix = "give the folder of the .rec; to train on images, run `lafs pack` first"
        raise DataError(folder, found=found, expected="at least one .rec file", fix=fix)
    return _readable(folder, records)


def _matching(pattern: str, wildcards: str) -> tuple[str, ...]:
    pattern, mark, query = pattern.partition("?") if reading.is_uri(pattern) else (pattern, "", "")
    parts = pattern.split("/")
    first = next(i for i, part in enumerate(parts) if any(mark in part for mark in wildcards))
    base, rest = "/".join(parts[:first]) or ("/" if first else "."), parts[first:]
    base += mark + query
    passed_over = PassedOver((".rec",))
    found = walk(base, passed_over, depth=len(rest)) if filesystem.is_folder(base) else iter(())
    names = sorted(entry.name for entry in found)
    matches = [
        name
        for name in names
        if len(name.split("/")) == len(rest) and all(map(fnmatchcase, name.split("/"), rest)) and name.endswith(".rec")
    ]
    _report(base, passed_over)
    if not matches:
        count = f"no match among {len(names)} file{'s' * (len(names) != 1)}"
        pattern += mark + query
        raise DataError(pattern, found=count, expected="at least one .rec", fix="check the pattern")
    return _readable(base, matches)


def _report(folder: str, passed_over: PassedOver) -> None:
    for line in passed_over.lines():
        logger.warning("%s: %s", folder, line)


def _readable(folder: str, names: list[str]) -> tuple[str, ...]:
    """Return the paths of `.rec` files, none of which may be a link that leads nowhere: faces would be missing."""
    for name in names:
        require_text(folder, name)
        require_no_dead_link(filesystem.join(folder, name))
    return tuple(filesystem.join(folder, name) for name in names)
