"""Open the shards of a set, whatever their kind: RecordIO with its manifest, tars of WebDataset, or Parquet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from lafs_ray.data.images import ColorOrder
from lafs_ray.data.io import filesystem
from lafs_ray.data.packed_set import PackedLabels, find_packed
from lafs_ray.data.parquet_index import index_parquet
from lafs_ray.data.record_index import open_shard
from lafs_ray.data.set_files import find_set_files
from lafs_ray.data.set_labels import FoundLabels, number_set
from lafs_ray.data.shard import Identities, Shard
from lafs_ray.data.shard_layout import ShardLabels
from lafs_ray.data.tar_index import index_tar
from lafs_ray.errors import DataError

_CONCURRENT_SHARDS = 16

_INDEX: dict[str, Callable[[str], tuple[Shard, FoundLabels]]] = {"tar": index_tar, "parquet": index_parquet}


@dataclass(frozen=True, eq=False)
class OpenedShards:
    """The shards of a set.

    Args:
        shards: with their index.
        labels: table of each; None: the records have their own.
        color_order: of the images, from a manifest; None: not known.
    """

    shards: Sequence[Shard]
    labels: tuple[Identities | PackedLabels | ShardLabels | None, ...]
    color_order: ColorOrder | None = None


def open_shards(path: str, color_order: ColorOrder | None, image_size: int | None) -> OpenedShards:
    """Open the shards of a path; arguments and errors as `lafs_ray.data.face_set.open_faces`."""
    files = find_set_files(path)
    # Opening a shard takes about 40 requests to an object store, nearly all of it latency.
    with ThreadPoolExecutor(_CONCURRENT_SHARDS) as pool:
        if files.kind == "rec":
            return _open_records(path, files.uris, color_order, image_size, pool)
        indexed = list(pool.map(_INDEX[files.kind], files.uris))
    shards = [shard for shard, _ in indexed]
    labels = number_set(path, [len(shard.keys) for shard in shards], [found for _, found in indexed])
    return OpenedShards(shards, tuple(labels))


def _open_records(
    path: str, uris: Sequence[str], color_order: ColorOrder | None, image_size: int | None, pool: ThreadPoolExecutor
) -> OpenedShards:
    packed = find_packed(path, uris, list(pool.map(filesystem.file_size, uris)))
    if color_order and packed.color_order not in (None, color_order):
        raise DataError(
            path,
            found=f"images packed as {packed.color_order}, according to the manifest",
            expected=f"data.color_order: {color_order}",
            fix=f"set data.color_order={packed.color_order}, or pack again with --color-order",
        )
    if image_size and (others := packed.image_sizes - {image_size}):
        sides = ", ".join(f"{side}x{side}" for side in sorted(others))
        raise DataError(
            path,
            found=f"images of {sides}, according to the manifest",
            expected=f"images of {image_size}x{image_size}",
            fix=f"pack them again with --resize and without --size (default {image_size})",
        )
    shards = list(pool.map(open_shard, uris))
    labels = tuple(labels or shard.identities for shard, labels in zip(shards, packed.labels, strict=True))
    return OpenedShards(shards, labels, packed.color_order)
