"""Few-shot subsets: a seeded choice of the images of a labeled set.

Every image has a fixed random number, a hash of (seed, file name, key); the images with the smallest ones are chosen. A
subset thus depends only on the seed and the set, and subsets of one seed are nested (k = 1 is part of k = 2), so that
runs for different k are comparable.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lafs_ray.data.face_set import FaceSet
from lafs_ray.data.io import filesystem
from lafs_ray.errors import DataError

ShortIdentities = Literal["error", "take_all", "drop"]

_MAX_NAMED = 5


def images_per_identity(
    faces: FaceSet, labels: NDArray[np.int64], count: int, seed: int, short: ShortIdentities
) -> NDArray[np.int64]:
    """Choose `count` images of every identity.

    Args:
        faces: the full set.
        labels: of its images, int64 [num_images]; negative: unlabeled, never chosen.
        count: k.
        seed: of the choice.
        short: error, use all images of (take_all) or drop identities with fewer than k.

    Returns:
        Image numbers, ascending, int64.

    Raises:
        DataError: `short` is `error` and there are such identities, or nothing is left.
    """
    labeled = np.flatnonzero(labels >= 0)
    order = labeled[np.lexsort((hash_keys(faces, seed)[labeled], labels[labeled]))]
    identities, first, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    is_short = sizes < count
    if is_short.any() and short == "error":
        raise _too_few(faces, identities[is_short], sizes[is_short], len(identities), count)
    rank = np.arange(len(order)) - np.repeat(first, sizes)
    is_kept = rank < count
    if short == "drop":
        is_kept &= np.repeat(~is_short, sizes)
    if not is_kept.any():
        raise _too_few(faces, identities[is_short], sizes[is_short], len(identities), count)
    return np.sort(order[is_kept])


def fraction_of_images(
    faces: FaceSet, fraction: float, seed: int, order: Literal["random", "head"]
) -> NDArray[np.int64]:
    """Choose a fraction of all images, at least one.

    Args:
        faces: the full set.
        fraction: in 0…1.
        seed: of the choice; `head` needs none.
        order: `random`, or `head` for the first records of the set, as in the released code.

    Returns:
        Image numbers, ascending, int64.
    """
    count = max(round(fraction * faces.num_images), 1)
    if order == "head":
        return np.arange(count)
    return np.sort(np.argsort(hash_keys(faces, seed), kind="stable")[:count])


def hash_keys(faces: FaceSet, seed: int) -> NDArray[np.uint64]:
    """Hash (seed, file name, key) of every image to a random number, uint64 [num_images].

    Two rounds of splitmix64 take 40 ns per image; a generator for each would take 20 µs.
    """
    columns = []
    for shard, uri in enumerate(faces.shard_uris):
        first, stop = faces.shard_starts[shard : shard + 2]
        name = filesystem.file_name(uri)
        digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
        start = np.uint64(int.from_bytes(digest, "little"))
        columns.append(splitmix64(splitmix64(faces.keys[first:stop].astype(np.uint64)) ^ start))
    return np.concatenate(columns)


def _too_few(
    faces: FaceSet, identities: NDArray[np.int64], sizes: NDArray[np.int64], total: int, count: int
) -> DataError:
    named = [f"{label} has {size}" for label, size in zip(identities, sizes, strict=True)]
    more = f", … and {len(sizes) - _MAX_NAMED} more" if len(sizes) > _MAX_NAMED else ""
    folder = faces.shard_uris[0] if len(faces.shard_uris) == 1 else f"{len(faces.shard_uris)} files"
    return DataError(
        f"data.subset of {folder}",
        found=f"{len(sizes)} of {total} identities with too few images: identity "
        + ", ".join(named[:_MAX_NAMED])
        + more,
        expected=f"at least {count} images of each (data.subset.images_per_identity)",
        fix="reduce data.subset.images_per_identity, or set data.subset.short_identities to "
        "take_all (use all their images) or drop (leave those identities out)",
    )


def write_subset(uri: str, sets: Sequence[FaceSet]) -> None:
    """Write the images of a subset to Parquet: columns file, key and label.

    Args:
        uri: the file, written atomically.
        sets: the subset, of one set or several; files of several are named with their paths.
    """
    tables = []
    for faces in sets:
        names = [filesystem.file_name(shard) if len(sets) == 1 else shard for shard in faces.shard_uris]
        shards = np.repeat(np.arange(len(names), dtype=np.int32), np.diff(faces.shard_starts))
        file_column = pa.DictionaryArray.from_arrays(pa.array(shards), pa.array(names))
        tables.append(pa.table({"file": file_column, "key": faces.keys, "label": faces.labels()}))
    table = pa.concat_tables(tables).unify_dictionaries() if len(sets) > 1 else tables[0]
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    with filesystem.atomic_write(uri) as file:
        file.write(buffer.getvalue())


def splitmix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply one round of splitmix64, which relies on the wrap-around of unsigned products."""
    mixing = values + np.uint64(0x9E3779B97F4A7C15)
    mixing = (mixing ^ (mixing >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixing = (mixing ^ (mixing >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixing ^ (mixing >> np.uint64(31)), dtype=np.uint64)
