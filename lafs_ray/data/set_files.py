"""Find the files of a face set by its path: a file, a folder of them, or a pattern; and their kind.

A folder holds one kind of shards. Tables lie beside others: a Parquet file beside `.rec` is no shard, nor is one beside
a `.tar` of its own name, where img2dataset writes what it knows about the images.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from pyarrow import fs

from lafs_ray.data.io import filesystem, reading
from lafs_ray.data.io.image_columns import has_images
from lafs_ray.data.io.walk import IMAGE_ENDINGS, PassedOver, require_no_dead_link, require_text, walk
from lafs_ray.errors import DataError

logger = logging.getLogger(__name__)

Kind = Literal["rec", "tar", "parquet"]

KINDS: tuple[Kind, ...] = ("rec", "tar", "parquet")

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")
_EXPECTED = "a .rec, .tar or .parquet file, a folder of one kind, or a pattern"
_GUNZIP = "unpack them with gunzip (images hardly shrink): single images of a compressed file cannot be read"
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
_MOST_NAMES = 100_000


@dataclass(frozen=True)
class SetFiles:
    """Files of a set.

    Args:
        kind: of all of them.
        uris: sorted by name.
    """

    kind: Kind
    uris: tuple[str, ...]


def find_set_files(path: str) -> SetFiles:
    """Return the files of a face set.

    Args:
        path: a `.rec`, `.tar` or `.parquet` file, a folder of one kind, or a pattern (`*`, `[…]`; on disk also `?`; or
            WebDataset's `{000..012}`).

    Raises:
        DataError: nothing is there, the `.rec` of an `.idx` is missing, the files are of several kinds, or of another.
    """
    is_file = not reading.is_uri(path) and os.path.exists(path)
    if not is_file and len(names := expand_braces(path)) > 1:
        return _listed(path, names)
    wildcards = "*[" if reading.is_uri(path) else "*?["
    if any(mark in path for mark in wildcards) and not is_file:
        return _matching(path, wildcards)
    info = filesystem.file_info(path)
    if info.type == fs.FileType.Directory:
        return _in_folder(path)
    kind = kind_of(path)
    if kind is None:
        found = "no such file or folder" if info.type == fs.FileType.NotFound else "not a .rec file"
        if bare_name(path).endswith(_COMPRESSED):
            raise DataError(path, found="a compressed tar", expected=_EXPECTED, fix=_GUNZIP)
        raise DataError(path, found=found, expected=f"{_EXPECTED} such as shards/*.rec", fix="check the path")
    require_no_dead_link(path)
    if info.type == fs.FileType.NotFound:
        orphans = kind == "rec" and filesystem.exists(filesystem.replace_suffix(path, ".rec", ".idx"))
        found = "an .idx without its .rec" if orphans else "no such file"
        raise DataError(path, found=found, expected=f"a .{kind} file", fix=f"copy the .{kind} to this path")
    return SetFiles(kind, (path,))


def bare_name(path: str) -> str:
    """Return a path, or a URI without its query."""
    return path.partition("?")[0] if reading.is_uri(path) else path


def kind_of(path: str) -> Kind | None:
    """Return the kind of a shard by its name; None: it is none."""
    return next((kind for kind in KINDS if bare_name(path).endswith(f".{kind}")), None)


def is_set(folder: str) -> bool:
    """Return whether a folder has shards directly in it; image files beside Parquet files are no set, but have a list.

    Raises:
        DataError: the folder cannot be read.
    """
    names = [entry.name for entry in walk(folder, PassedOver(), depth=1)]
    if any(name.endswith((".rec", ".tar", *_COMPRESSED)) for name in names):
        return True
    tables = sorted(name for name in names if name.endswith(".parquet"))
    if not tables or any(name.lower().endswith(IMAGE_ENDINGS) for name in names):
        return False
    return has_images(filesystem.join(folder, tables[0]))


def expand_braces(path: str) -> list[str]:
    """Return the paths that a pattern such as `{000..012}.tar` or `{a,b}.tar` names; itself without braces.

    Raises:
        DataError: they are too many.
    """
    names = [path]
    while match := next(filter(None, map(_BRACES.search, names)), None):
        first, last, some = match.groups()
        if some is None:
            width = len(first) if first.startswith("0") or len(first) == len(last) else 0
            if int(last) - int(first) >= _MOST_NAMES:
                raise DataError(path, found=f"{match[0]}", expected=f"at most {_MOST_NAMES} files", fix="use a pattern")
            choices = [f"{number:0{width}}" for number in range(int(first), int(last) + 1)]
        else:
            choices = some.split(",")
        names = [name.replace(match[0], choice, 1) for name in names for choice in choices]
        if not 0 < len(names) <= _MOST_NAMES:
            raise DataError(
                path, found=f"braces for {len(names)} files", expected=f"1 to {_MOST_NAMES} files", fix="use a pattern"
            )
    return names


def _listed(path: str, names: list[str]) -> SetFiles:
    kinds = {kind_of(name) for name in names}
    kind = kinds.pop()
    if kinds or kind is None:
        raise DataError(
            path, found="names of other files", expected="names of one kind of shards", fix="check the path"
        )
    for name in names:
        require_no_dead_link(name)
        filesystem.file_size(name)
    return SetFiles(kind, tuple(names))


def _choose(folder: str, names: list[str]) -> tuple[Kind | None, list[str]]:
    """Return the kind of the shards among sorted names, and their names.

    Raises:
        DataError: there are several kinds.
    """
    shards = {kind: [name for name in names if name.endswith(f".{kind}")] for kind in KINDS}
    compressed = [name for name in names if name.endswith(_COMPRESSED)]
    if shards["rec"]:
        shards["parquet"] = []
    stems = {name.removesuffix(".tar") for name in shards["tar"]}
    if tables := [name for name in shards["parquet"] if name.removesuffix(".parquet") in stems]:
        count = f"{len(tables)} table{'s' * (len(tables) > 1)} beside the .tar of the same name"
        logger.info("%s: passed over %s (%s)", folder, count, tables[0])
        shards["parquet"] = [name for name in shards["parquet"] if name not in set(tables)]
    found = {f".{kind}": few for kind, few in shards.items() if few}
    if compressed and set(found) <= {".tar", ".parquet"}:
        found["compressed tar"] = compressed
    if len(found) > 1:
        raise DataError(
            folder,
            found=", ".join(f"{len(few)} {kind} ({few[0]})" for kind, few in found.items()),
            expected="shards of one kind",
            fix="give a pattern such as *.tar, or move the others"
            if "compressed tar" not in found
            else f"{_GUNZIP}; or give a pattern such as *.tar",
        )
    if "compressed tar" in found:
        count = f"{len(compressed)} compressed tar{'s' * (len(compressed) > 1)} ({compressed[0]})"
        raise DataError(folder, found=count, expected=".rec, .tar or .parquet files", fix=_GUNZIP)
    kind = next((kind for kind in KINDS if shards[kind]), None)
    return kind, shards[kind] if kind else []


def _in_folder(folder: str) -> SetFiles:
    passed_over = PassedOver((".rec", ".idx", ".tar", ".parquet"))
    entries = {entry.name: entry for entry in walk(folder, passed_over, depth=1)}
    kind, names = _choose(folder, sorted(entries))
    indexes = sorted(name for name in entries if name.endswith(".idx"))
    _report(folder, passed_over)
    # WebDataset's tools leave indexes beside a .tar.
    orphans = [name for name in indexes if name[:-4] + ".rec" not in entries and kind in (None, "rec")]
    if orphans:
        raise DataError(
            folder,
            found=f".idx without .rec: {', '.join(orphans[:5])}",
            expected="a .rec for every .idx",
            fix="copy the missing .rec files, or remove the .idx files",
        )
    if kind is None:
        count = f"{len(entries)} file{'s' * (len(entries) != 1)}"
        found = f"{count}, none of them .rec" if entries else "an empty folder"
        if not entries and next(walk(folder, PassedOver()), None):
            found = "only subfolders, no .rec"
        fix = "give the folder of the .rec, .tar or .parquet; to train on images, run `lafs pack` first"
        raise DataError(folder, found=found, expected="at least one .rec file", fix=fix)
    return SetFiles(kind, _readable(folder, names))


def _matching(pattern: str, wildcards: str) -> SetFiles:
    pattern, mark, query = pattern.partition("?") if reading.is_uri(pattern) else (pattern, "", "")
    parts = pattern.split("/")
    first = next(i for i, part in enumerate(parts) if any(mark in part for mark in wildcards))
    base, rest = "/".join(parts[:first]) or ("/" if first else "."), parts[first:]
    base += mark + query
    passed_over = PassedOver((".rec", ".tar", ".parquet"))
    found = walk(base, passed_over, depth=len(rest)) if filesystem.is_folder(base) else iter(())
    names = sorted(entry.name for entry in found)
    matches = [
        name for name in names if len(name.split("/")) == len(rest) and all(map(fnmatchcase, name.split("/"), rest))
    ]
    kind, matches = _choose(pattern + mark + query, matches)
    _report(base, passed_over)
    if kind is None:
        count = f"no match among {len(names)} file{'s' * (len(names) != 1)}"
        pattern += mark + query
        raise DataError(pattern, found=count, expected="at least one .rec", fix="check the pattern")
    return SetFiles(kind, _readable(base, matches))


def _report(folder: str, passed_over: PassedOver) -> None:
    for line in passed_over.lines():
        logger.warning("%s: %s", folder, line)


def _readable(folder: str, names: list[str]) -> tuple[str, ...]:
    """Return the paths of shards, none of which may be a link that leads nowhere: faces would be missing."""
    for name in names:
        require_text(folder, name)
        require_no_dead_link(filesystem.join(folder, name))
    return tuple(filesystem.join(folder, name) for name in names)
