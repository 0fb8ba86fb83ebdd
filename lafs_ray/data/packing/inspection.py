"""Inspection of `.rec` files: a page of text and a contact sheet.

Counts, labels and record sizes are exact: they come from indexes and identity lists (for a plain
file, labels are read from all records). Images are checked on an evenly spaced sample of 2000, or on all.

Color order: skin of every tone reflects more red than green, and more green than blue. In the
center of each of 500 images, pixels with red > green > blue are compared with pixels with blue > green > red
(differences above 8 levels, at least 5 % of the pixels). The fraction of images that agree is the confidence. Gray
images do not count; blue light or face paint may mislead. Alignment is checked on the same images
(`lafs_ray.data.alignment_check`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.alignment_check import REMEDY, alignment_from, correlations_of
from lafs_ray.data.face_set import FaceRows, FaceSet, open_faces
from lafs_ray.data.images import ColorOrder, decode_image, image_format
from lafs_ray.data.io import filesystem
from lafs_ray.data.packed_set import PackedLabels
from lafs_ray.data.shard import Identities, spread
from lafs_ray.data.shard_layout import RowGroups, TarMembers
from lafs_ray.errors import DataError

_SAMPLE_IMAGES = 2000
_COLOR_SAMPLE_IMAGES = 500
_RECORDS_PER_READ, _BYTES_PER_READ = 512, 64 << 20
_MAX_ERRORS = 5
_COLUMNS, _SHEET_ROWS, _TILE = 12, 10, 112
_QUANTILES = (0, 5, 25, 50, 75, 95, 100)


@dataclass
class _ImageStats:
    """Properties of the images checked."""

    checked: int
    sizes: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    skin_orders: Counter[ColorOrder | None] = field(default_factory=Counter)
    alignments: list[NDArray[np.float64]] = field(default_factory=list)


def inspect_faces(path: str, *, sheet: str | None, check_all: bool, force: bool = False) -> Iterator[str]:
    """Describe a set line by line, and write a contact sheet.

    Args:
        path: a `.rec`, a folder of them, or a pattern.
        sheet: file of the contact sheet; None: `contact_sheet.png` in the working directory.
        check_all: check every image instead of 2000.
        force: whether the contact sheet may replace a file.

    Raises:
        DataError: see `lafs_ray.data.face_set.open_faces` and `filesystem.require_output`.
    """
    sheet = sheet or "contact_sheet.png"
    faces = open_faces(path)
    filesystem.require_output(sheet, force=force, inputs=faces.shard_uris)
    yield from _describe_files(path, faces)
    if any(table is None for table in faces.identities):
        yield "  (no identity list: reading the label of every record)"
    labels = faces.labels()
    yield from _describe_labels(labels, faces.num_identities)
    total = faces.num_images
    stats = _check_images(faces, np.arange(total) if check_all else spread(total, _SAMPLE_IMAGES))
    yield from _describe_images(stats, total)
    alignment = alignment_from(stats.alignments)
    yield f"alignment          {alignment.describe()}"
    if alignment.is_aligned is False:
        yield f"  to do            {REMEDY}"
    order, line = _guess_color_order(stats.skin_orders)
    yield line
    if faces.color_order is not None:
        yield f"  manifest         {faces.color_order}"
    tiles = contact_sheet(faces, labels, faces.color_order or order or "rgb")
    with filesystem.atomic_write(sheet) as file:
        file.write(cv2.imencode(".png", tiles[..., ::-1])[1].tobytes())
    yield f"contact sheet      {sheet}"


def _describe_files(path: str, faces: FaceSet) -> Iterator[str]:
    kinds = {Identities: "insightface", PackedLabels: "packed", type(None): "plain"}
    kinds |= {TarMembers: "WebDataset", RowGroups: "Parquet"}
    layouts = Counter(kinds[type(faces.layout_of(shard) or table)] for shard, table in enumerate(faces.identities))
    yield path
    yield f"files              {len(faces.shard_uris)}, {sum(faces.shard_sizes) / 1e6:,.1f} MB"
    yield f"layout             {', '.join(f'{name} ({n})' for name, n in layouts.items())}"
    yield f"images             {faces.num_images}"
    groups = [np.diff(layout.starts) for layout in faces.layouts if isinstance(layout, RowGroups)]
    if groups:
        yield f"row groups         {sum(map(len, groups))}, of images: {_quantiles(np.concatenate(groups))}"
    yield f"bytes/record       {_quantiles(faces.sizes)}"


def _quantiles(values: NDArray[Any]) -> str:
    found = np.percentile(values, _QUANTILES, method="nearest").astype(np.int64)
    names = ["min", *(f"{q} %" for q in _QUANTILES[1:-1]), "max"]
    return ", ".join(f"{name} {value}" for name, value in zip(names, found.tolist(), strict=True))


def _describe_labels(labels: NDArray[np.int64], num_listed: int | None) -> Iterator[str]:
    known = labels[labels >= 0]
    listed = "not listed" if num_listed is None else f"{num_listed} listed"
    yield f"identities         {len(np.unique(known))} with images, {listed}"
    yield f"without label      {len(labels) - len(known)}"
    if not len(known):
        return
    # Not by bincount: a label may be the id of a catalogue.
    _, counts = np.unique(known, return_counts=True)
    yield f"labels             {known.min()} to {known.max()}"
    yield f"images/identity    {_quantiles(counts[counts > 0])}"
    same = float((labels[1:] == labels[:-1]).mean()) if len(labels) > 1 else 0.0
    chance = float(((counts / len(known)) ** 2).sum())
    # In an ordered set, every image but the last of its identity is followed by the same identity.
    ordered = max((len(known) - np.count_nonzero(counts)) / max(len(labels) - 1, 1), 1e-9)
    if same >= 0.9 * ordered and ordered > 2 * chance:
        verdict = "ordered by identity: pack it"
    else:
        verdict = "shuffled" if same < 2 * chance + 0.01 else "partly ordered"
    yield (
        f"order              {verdict} ({same:.1%} of neighbors share their identity; "
        f"ordered {ordered:.1%}, shuffled {chance:.1%})"
    )


def _check_images(faces: FaceSet, index: NDArray[np.int64]) -> _ImageStats:
    stats = _ImageStats(len(index))
    color_sample = set(index[spread(len(index), _COLOR_SAMPLE_IMAGES)].tolist())
    step = int(np.clip(_BYTES_PER_READ // max(float(faces.sizes.mean()), 1), 1, _RECORDS_PER_READ))
    for begin in range(0, len(index), step):
        numbers = index[begin : begin + step]
        rows = faces.read(numbers)
        for row, number in enumerate(numbers.tolist()):
            pixels = _check_image(stats, faces, rows, row)
            if pixels is not None and number in color_sample:
                stats.skin_orders[skin_color_order(pixels)] += 1
                stats.alignments.append(correlations_of(pixels))
    return stats


def _check_image(stats: _ImageStats, faces: FaceSet, rows: FaceRows, row: int) -> NDArray[np.uint8] | None:
    data, error = rows.images[row], rows.errors[row]
    if not error:
        try:
            pixels = decode_image(data, color_order="rgb", size=None)
        except DataError as problem:
            name = f"{faces.shard_uris[rows.shard[row]]}, key {rows.key[row]}"
            error = f"{name}: found {problem.found}"
    if error:
        stats.errors.append(error)
        return None
    stats.formats[image_format(data)] += 1
    stats.sizes[f"{pixels.shape[1]}x{pixels.shape[0]}"] += 1
    return pixels


def skin_color_order(pixels: NDArray[np.uint8]) -> ColorOrder | None:
    """Guess the channel order of an image from the skin in its center; None: gray, or no skin.

    Args:
        pixels: decoded as RGB, uint8 [H, W, 3].
    """
    height, width = pixels.shape[:2]
    center = pixels[height // 4 : -height // 4, width // 4 : -width // 4].astype(np.int16)
    red_green, green_blue = center[..., 0] - center[..., 1], center[..., 1] - center[..., 2]
    warm = float(((red_green > 8) & (green_blue > 8)).mean()) if center.size else 0.0
    cold = float(((red_green < -8) & (green_blue < -8)).mean()) if center.size else 0.0
    if abs(warm - cold) < 0.05:
        return None
    return "rgb" if warm > cold else "bgr"


def _guess_color_order(orders: Counter[ColorOrder | None]) -> tuple[ColorOrder | None, str]:
    rgb, bgr = orders["rgb"], orders["bgr"]
    if rgb + bgr < 10:
        shown = f"{rgb + bgr} of {orders.total()} images show skin"
        return None, f"color order        unknown: {shown}"
    order: ColorOrder = "rgb" if rgb >= bgr else "bgr"
    confidence = max(rgb, bgr) / (rgb + bgr)
    text = f"likely {order}, confidence {confidence:.0%} of {rgb + bgr} images that show skin"
    unsure = "" if confidence >= 0.8 else " (unsure: look at the contact sheet)"
    return order, f"color order        {text}{unsure}"


def _describe_images(stats: _ImageStats, total: int) -> Iterator[str]:
    checked = "all" if stats.checked == total else f"{stats.checked} of {total}"
    for what, counts in (("sizes", stats.sizes), ("formats", stats.formats)):
        listed = ", ".join(f"{name} ({n})" for name, n in counts.most_common(8))
        yield f"{what:<19}{listed or 'none'} in {checked}"
    yield f"bad records        {len(stats.errors)} in {checked}"
    for line in stats.errors[:_MAX_ERRORS]:
        yield f"  {line}"


def contact_sheet(faces: FaceSet, labels: NDArray[np.int64], color_order: ColorOrder) -> NDArray[np.uint8]:
    """Return images of ten identities, one per row; without labels, an evenly spaced sample.

    Returns:
        RGB uint8 [rows * 112, 12 * 112, 3]; black where there is no image.
    """
    rows = _sheet_rows(labels)
    sheet = np.zeros((len(rows) * _TILE, _COLUMNS * _TILE, 3), np.uint8)
    for row, index in enumerate(rows):
        for column, data in enumerate(faces.read(index).images):
            try:
                pixels = decode_image(data, color_order=color_order, size=None)
            except DataError:
                continue
            tile = cv2.resize(pixels, (_TILE, _TILE), interpolation=cv2.INTER_AREA)
            top, left = row * _TILE, column * _TILE
            sheet[top : top + _TILE, left : left + _TILE] = tile
    return sheet


def _sheet_rows(labels: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    identities = np.unique(labels[labels >= 0])
    if not len(identities):
        index = spread(len(labels), _COLUMNS * _SHEET_ROWS)
        return [index[n : n + _COLUMNS] for n in range(0, len(index), _COLUMNS)]
    some = identities[spread(len(identities), _SHEET_ROWS)]
    return [np.flatnonzero(labels == label)[:_COLUMNS] for label in some]
