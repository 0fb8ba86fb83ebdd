"""Samples of a set: evenly spaced images, from few row groups, and what they say about the set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.images import image_size
from lafs_ray.data.shard import spread
from lafs_ray.data.shard_layout import Layout, RowGroups
from lafs_ray.errors import DataError

_SAMPLED_GROUPS = 8


def sample_images(
    shard_starts: NDArray[np.int64], offsets: NDArray[np.int64], layouts: Sequence[Layout | None], most: int
) -> NDArray[np.int64]:
    """Return up to `most` image numbers, evenly spaced; in Parquet files, from up to eight row groups in all.

    Args:
        shard_starts: as in `FaceSet`.
        offsets: as in `FaceSet`.
        layouts: as in `FaceSet`.
        most: number of images.
    """
    grouped = np.zeros(len(offsets), bool)
    group = np.zeros(len(offsets), np.int64)
    total = 0
    for shard, layout in enumerate(layouts):
        if isinstance(layout, RowGroups):
            first, stop = shard_starts[shard : shard + 2].tolist()
            grouped[first:stop] = True
            group[first:stop] = total + layout.groups_of(offsets[first:stop])
            total += len(layout.group_bytes)
    if not grouped.any():
        return spread(len(offsets), most)
    present = np.unique(group[grouped])
    chosen = present[spread(len(present), _SAMPLED_GROUPS)]
    candidates = np.flatnonzero(~grouped | np.isin(group, chosen))
    return candidates[spread(len(candidates), most)]


def require_size(path: str, images: Sequence[bytes], side: int) -> None:
    """Check that a sample of encoded images has some of this size; training would only replace damaged ones.

    Args:
        path: of the set, for messages.
        images: some of its images; empty ones and those without a size do not count.
        side: in pixels.

    Raises:
        DataError: none of them has.
    """
    sizes = [size for image in images if image and (size := image_size(image)) is not None]
    if not sizes or (side, side) in sizes:
        return
    raise DataError(
        path,
        found=f"images of {', '.join(sorted({f'{width}x{height}' for width, height in sizes})[:4])}",
        expected=f"aligned faces of {side}x{side}",
        fix="photos: lafs align PHOTOS OUT; aligned faces of another size: lafs pack SET OUT --resize",
    )


def row_group_note(layouts: Sequence[Layout | None], chunk_records: int, *, has_pairs: bool = False) -> str | None:
    """Return a note if chunks of records are much smaller than the row groups that are read for them.

    Args:
        layouts: of a set's shards.
        chunk_records: as in the configuration.
        has_pairs: whether the run draws pairs of neighbors, whose faces are read one by one.
    """
    sizes = [np.diff(layout.starts) for layout in layouts if isinstance(layout, RowGroups)]
    if not sizes:
        return None
    rows = int(np.median(np.concatenate(sizes)))
    if has_pairs and rows > 1:
        return f"row groups of {rows} images, each read whole for a face of a pair: pack the set (docs/data.md)"
    if chunk_records * 2 > rows:
        return None
    return (
        f"row groups of {rows} images, each of which is read whole for every {chunk_records} of them: set "
        f"data.chunk_records={rows} (if the order of the images is random), or pack the set (docs/data.md)"
    )
