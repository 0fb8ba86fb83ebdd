"""Contact sheet of an aligning: some photos of each kind, with the points that were found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lafs_ray.data.align import align_photo
from lafs_ray.data.aligning.parts import POINTS, AlignJob, FinishedPart, read_part
from lafs_ray.data.aligning.photos import STATUSES
from lafs_ray.data.images import decode_image
from lafs_ray.data.io import filesystem
from lafs_ray.data.subset import splitmix64
from lafs_ray.errors import DataError

_COLUMNS, _TILE, _TITLE = 12, 112, 18
_GREEN = (0, 255, 0)
_SEVERAL = "several faces"


@dataclass(frozen=True, eq=False)
class _Tile:
    source: int
    number: int
    points: NDArray[np.float64] | None


def write_sheet(uri: str, job: AlignJob, finished: Sequence[FinishedPart]) -> None:
    """Write a PNG: aligned faces, then photos by status.

    Args:
        uri: of the picture.
        job: the aligning.
        finished: all of its parts.
    """
    rows = _sample(job, finished)
    bands = [_band("aligned faces", [_aligned(job, tile) for tile in rows["aligned"]])]
    bands += [_band(name, [_photo(job, tile) for tile in tiles]) for name, tiles in rows.items() if tiles]
    with filesystem.atomic_write(uri) as file:
        file.write(cv2.imencode(".png", np.concatenate(bands)[..., ::-1])[1].tobytes())


def _sample(job: AlignJob, finished: Sequence[FinishedPart]) -> dict[str, list[_Tile]]:
    """Return up to a row of photos of each kind, chosen by a hash of their numbers."""
    best: dict[str, list[tuple[int, int, _Tile]]] = {name: [] for name in (*STATUSES, _SEVERAL)}
    for one in finished:
        rows = read_part(job.folder, one.part, ("number", "status", "faces", *POINTS))
        for name, tiles in best.items():
            is_kind = pc.greater(rows["faces"], 1) if name == _SEVERAL else pc.equal(rows["status"], name)
            tiles += _candidates(one.part.source, rows.filter(is_kind))
            tiles.sort(key=lambda tile: tile[:2])
            del tiles[_COLUMNS:]
    return {name: [tile for _, _, tile in tiles] for name, tiles in best.items()}


def _candidates(source: int, rows: pa.Table) -> list[tuple[int, int, _Tile]]:
    numbers = rows["number"].to_numpy()
    # The same photos whatever the parts, spread over the set.
    hashes = splitmix64(numbers.astype(np.uint64))
    order = np.argsort(hashes, kind="stable")[:_COLUMNS]
    rows = rows.take(order)
    points = np.stack([rows[name].to_numpy() for name in POINTS], axis=1).reshape(-1, 5, 2).astype(np.float64)
    return [
        (int(hashes[index]), source, _Tile(source, int(numbers[index]), found if np.isfinite(found).all() else None))
        for index, found in zip(order.tolist(), points, strict=True)
    ]


def _read(job: AlignJob, tile: _Tile) -> NDArray[np.uint8] | None:
    (row,) = job.sources[tile.source].read(tile.number, tile.number + 1)
    if row.error:
        return None
    try:
        return decode_image(row.image, color_order=job.rules.color_order, size=None)
    except DataError:
        return None


def _aligned(job: AlignJob, tile: _Tile) -> NDArray[np.uint8] | None:
    photo = _read(job, tile)
    return None if photo is None or tile.points is None else align_photo(photo, tile.points)


def _photo(job: AlignJob, tile: _Tile) -> NDArray[np.uint8] | None:
    """Return the photo, reduced to a tile, with its points."""
    photo = _read(job, tile)
    if photo is None:
        return None
    height, width = photo.shape[:2]
    scale = _TILE / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    small = cv2.resize(photo, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    if tile.points is not None:
        for x, y in np.rint(tile.points * scale).astype(int).tolist():
            cv2.circle(small, (x, y), 1, _GREEN, -1)
    result = np.zeros((_TILE, _TILE, 3), np.uint8)
    result[: size[1], : size[0]] = small
    return result


def _band(title: str, tiles: Sequence[NDArray[np.uint8] | None]) -> NDArray[np.uint8]:
    """Return a title above a row of tiles; black where a photo cannot be read."""
    band = np.zeros((_TITLE + _TILE, _COLUMNS * _TILE, 3), np.uint8)
    cv2.putText(band, title, (4, _TITLE - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
    for column, tile in enumerate(tiles):
        if tile is not None:
            band[_TITLE:, column * _TILE : (column + 1) * _TILE] = tile
    return band
