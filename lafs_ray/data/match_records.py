"""The record of a set that a row of a table of points belongs to: by key, or by the content of an image file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lafs_ray.data.face_set import FaceSet
from lafs_ray.data.io import filesystem
from lafs_ray.data.io.listing import read_files
from lafs_ray.data.points_table import PointRows, PointsTable
from lafs_ray.errors import ConfigError, DataError

_ROWS_PER_READ = 4096

Find = Callable[[PointRows], NDArray[np.int64]]
"""Return the image number of each row; -1: it is of no record."""


def record_finder(faces: FaceSet, table: PointsTable, images: str | None) -> Find:
    """Return what finds the image number of each row.

    Args:
        faces: the set.
        table: of the rows; by its column key, else by path.
        images: folder of the files that `path` names; they are compared with all records of the set.

    Raises:
        ConfigError: it is needed, and not named.
        DataError: a column shard is missing.
    """
    if "key" in table.columns:
        if len(faces.shard_uris) > 1 and "shard" not in table.columns:
            raise DataError(
                table.uri,
                found=f"no column shard, and a set of {len(faces.shard_uris)} files, each with keys of its own",
                expected="the file name of each record's shard",
                fix=f"add a column shard with names such as {filesystem.file_name(faces.shard_uris[0])}",
            )
        return _by_key(faces, table)
    if images is None:
        raise ConfigError(
            "--images",
            found=f"nothing, and {table.uri} names records by path",
            expected="the folder of these image files: records are recognized by their content",
            fix="pass --images FOLDER, or write a column key",
        )
    return _by_content(faces, filesystem.absolute(images))


def _by_key(faces: FaceSet, table: PointsTable) -> Find:
    names = {filesystem.file_name(uri): number for number, uri in enumerate(faces.shard_uris)}
    orders = [
        np.argsort(faces.keys[first:stop], kind="stable")
        for first, stop in zip(faces.shard_starts[:-1].tolist(), faces.shard_starts[1:].tolist(), strict=True)
    ]

    def find(rows: PointRows) -> NDArray[np.int64]:
        keys = rows.names["key"].cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
        shards = np.zeros(len(keys), np.int64)
        if "shard" in table.columns:
            texts = rows.names["shard"].cast(pa.string()).to_pylist()
            shards = np.array([names.get(filesystem.file_name(text or ""), -1) for text in texts], np.int64)
        numbers = np.full(len(keys), -1, np.int64)
        for shard in np.unique(shards[shards >= 0]).tolist():
            first, order = int(faces.shard_starts[shard]), orders[shard]
            if len(order) == 0:
                continue
            own = faces.keys[first : first + len(order)]
            at = np.flatnonzero(shards == shard)
            places = np.searchsorted(own, keys[at], sorter=order).clip(max=len(order) - 1)
            found = order[places]
            numbers[at] = np.where(own[found] == keys[at], first + found, -1)
        return numbers

    return find


def _by_content(faces: FaceSet, folder: str) -> Find:
    """Match image files with records of the same bytes; the nth of equal files with the nth of such records."""
    digests = np.empty(faces.num_images, np.uint64)
    for first in range(0, faces.num_images, _ROWS_PER_READ):
        stop = min(first + _ROWS_PER_READ, faces.num_images)
        digests[first:stop] = [_hash(image) for image in faces.read(np.arange(first, stop)).images]
    order = np.argsort(digests, kind="stable")
    values, counts = np.unique(digests, return_counts=True)
    taken = dict.fromkeys(values[counts > 1].tolist(), 0)

    def find(rows: PointRows) -> NDArray[np.int64]:
        paths = [path or "" for path in rows.names["path"].cast(pa.string()).to_pylist()]
        contents = read_files(folder, paths)
        wanted = np.array([_hash(c) if isinstance(c, bytes) else 0 for c in contents], np.uint64)
        places = np.searchsorted(digests, wanted, sorter=order).clip(max=len(order) - 1)
        found = order[places]
        for row in np.flatnonzero(np.isin(wanted, list(taken))).tolist() if taken else ():
            digest = int(wanted[row])
            later = min(int(places[row]) + taken[digest], len(order) - 1)
            # After the last of them its own number again, which is then a repeated row.
            found[row] = order[later] if digests[order[later]] == digest else found[row]
            taken[digest] += 1
        return np.where((digests[found] == wanted) & (wanted != 0), found, -1)

    return find


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") if content else 0
