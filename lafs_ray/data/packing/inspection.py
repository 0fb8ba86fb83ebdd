"""What is in these `.rec` files? A page of text and a contact sheet.

Counts, labels and record sizes are exact, from indexes and identity lists (a plain file's labels
have to be read). Pictures are judged by 2000 of them, evenly spread, or by all.

Color order: skin of every tone reflects more red than green, and more green than blue. Each
picture votes by its middle: are there more pixels with red > green > blue or with blue > green >
red, by 8 levels each and at least 5 % of the pixels? The share of votes is the confidence. Gray
pictures do not vote; blue light and painted faces may err.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.face_set import FaceRows, FaceSet, open_faces
from lafs_ray.data.images import decode_image
from lafs_ray.data.io import filesystem
from lafs_ray.data.packed_set import ColorOrder, PackedLabels
from lafs_ray.data.packing.images import PNG, image_size
from lafs_ray.data.record_index import Identities, spread
from lafs_ray.errors import DataError

_SAMPLE = 2000
_VOTERS = 500
_ROWS_PER_READ = 512
_FAULTS_SHOWN = 5
_COLUMNS, _SHEET_ROWS, _TILE = 12, 10, 112
_QUANTILES = (0, 5, 25, 50, 75, 95, 100)


@dataclass
class _Pictures:
    """What was seen of the pictures."""

    seen: int = 0
    sizes: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    votes: list[int] = field(default_factory=list)


def inspect_faces(
    path: str, *, sheet: str | None, every: bool, say: Callable[[str], object]
) -> None:
    """Say what a set holds, and write a contact sheet.

    Args:
        path: a `.rec`, a folder of them, or a pattern.
        sheet: where the contact sheet goes; None: `contact_sheet.png` in the working folder.
        every: look at every picture instead of 2000.
        say: told line by line.

    Raises:
        DataError: see `lafs_ray.data.face_set.open_faces`.
    """
    faces = open_faces(path)
    for line in _describe_files(path, faces):
        say(line)
    if any(table is None for table in faces.identities):
        say("  (identities are not listed: reading every record for its label)")
    labels = faces.labels()
    for line in _describe_labels(faces, labels):
        say(line)
    pictures = _look(
        faces, np.arange(faces.num_images) if every else spread(faces.num_images, _SAMPLE)
    )
    for line in _describe_pictures(pictures, faces.num_images):
        say(line)
    order, line = _color_order(pictures.votes)
    say(line)
    if faces.color_order is not None:
        say(f"  manifest         {faces.color_order}")
    where = sheet or "contact_sheet.png"
    picture = contact_sheet(faces, labels, faces.color_order or order or "rgb")
    with filesystem.atomic_write(where) as file:
        file.write(cv2.imencode(".png", picture[..., ::-1])[1].tobytes())
    say(f"contact sheet      {where}")


def _describe_files(path: str, faces: FaceSet) -> Iterator[str]:
    kinds = {Identities: "insightface", PackedLabels: "packed", type(None): "plain"}
    layouts = Counter(kinds[type(table)] for table in faces.identities)
    yield path
    yield f"files              {len(faces.shard_uris)}, {sum(faces.shard_sizes) / 1e9:.3f} GB"
    yield f"layout             {', '.join(f'{name} ({n})' for name, n in layouts.items())}"
    yield f"images             {faces.num_images}"
    yield f"bytes a record     {_quantiles(faces.sizes)}"


def _quantiles(values: NDArray[Any]) -> str:
    found = np.percentile(values, _QUANTILES, method="nearest").astype(np.int64)
    names = ["min", *(f"{q} %" for q in _QUANTILES[1:-1]), "max"]
    return ", ".join(f"{name} {value}" for name, value in zip(names, found.tolist(), strict=True))


def _describe_labels(faces: FaceSet, labels: NDArray[np.int64]) -> Iterator[str]:
    known = labels[labels >= 0]
    listed = "not listed" if faces.num_identities is None else f"{faces.num_identities} listed"
    yield f"identities         {len(np.unique(known))} with images, {listed}"
    yield f"without label      {len(labels) - len(known)}"
    if not len(known):
        return
    counts = np.bincount(known)
    yield f"labels             {known.min()} to {known.max()}"
    yield f"images an identity {_quantiles(counts[counts > 0])}"
    same = float((labels[1:] == labels[:-1]).mean()) if len(labels) > 1 else 0.0
    chance = float(((counts / len(known)) ** 2).sum())
    # Ordered: all but the last image of every identity are followed by one of their own.
    ordered = max((len(known) - np.count_nonzero(counts)) / max(len(labels) - 1, 1), 1e-9)
    if same >= 0.9 * ordered and ordered > 2 * chance:
        verdict = "ordered by identity: pack it"
    else:
        verdict = "shuffled" if same < 2 * chance + 0.01 else "partly ordered"
    yield (
        f"order              {verdict} ({same:.1%} of neighbors share their identity; "
        f"ordered {ordered:.1%}, shuffled {chance:.1%})"
    )


def _look(faces: FaceSet, index: NDArray[np.int64]) -> _Pictures:
    pictures, voters = _Pictures(), set(index[spread(len(index), _VOTERS)].tolist())
    for begin in range(0, len(index), _ROWS_PER_READ):
        wanted = index[begin : begin + _ROWS_PER_READ]
        rows = faces.read(wanted)
        for row, number in enumerate(wanted.tolist()):
            _look_at(pictures, faces, rows, row, votes=number in voters)
    return pictures


def _look_at(pictures: _Pictures, faces: FaceSet, rows: FaceRows, row: int, *, votes: bool) -> None:
    pictures.seen += 1
    data, error = rows.images[row], rows.errors[row]
    where = f"{faces.shard_uris[rows.shard[row]]}, key {rows.key[row]}"
    if not error:
        try:
            pixels = decode_image(data, color_order="rgb", size=None)
        except DataError as problem:
            error = f"{where}: found {problem.found}"
    if error:
        pictures.faults.append(error)
        return
    pictures.formats[
        "PNG" if data.startswith(PNG) else "JPEG" if image_size(data) else "other"
    ] += 1
    pictures.sizes[f"{pixels.shape[1]}x{pixels.shape[0]}"] += 1
    if votes:
        pictures.votes.append(color_vote(pixels))


def color_vote(pixels: NDArray[np.uint8]) -> int:
    """1: the middle of an RGB picture has colors of skin; -1: it has with red and blue swapped.

    0: neither, or it is gray.
    """
    height, width = pixels.shape[:2]
    middle = pixels[height // 4 : -height // 4, width // 4 : -width // 4].astype(np.int16)
    red_over, green_over = middle[..., 0] - middle[..., 1], middle[..., 1] - middle[..., 2]
    warm = float(((red_over > 8) & (green_over > 8)).mean()) if middle.size else 0.0
    cold = float(((red_over < -8) & (green_over < -8)).mean()) if middle.size else 0.0
    if abs(warm - cold) < 0.05:
        return 0
    return 1 if warm > cold else -1


def _color_order(votes: list[int]) -> tuple[ColorOrder | None, str]:
    warm, cold = votes.count(1), votes.count(-1)
    if warm + cold < 10:
        return None, f"color order        unknown: {warm + cold} of {len(votes)} pictures show skin"
    order: ColorOrder = "rgb" if warm >= cold else "bgr"
    share = max(warm, cold) / (warm + cold)
    sure = "" if share >= 0.8 else " (unsure: look at the contact sheet)"
    text = f"likely {order}, confidence {share:.0%} of {warm + cold} pictures that show skin{sure}"
    return order, f"color order        {text}"


def _describe_pictures(pictures: _Pictures, total: int) -> Iterator[str]:
    seen = "all" if pictures.seen == total else f"{pictures.seen} of {total}"
    for what, counts in (("sizes", pictures.sizes), ("formats", pictures.formats)):
        shown = ", ".join(f"{name} ({n})" for name, n in counts.most_common(8))
        yield f"{what:<19}{shown or 'none'} in {seen}"
    yield f"bad records        {len(pictures.faults)} in {seen}"
    for line in pictures.faults[:_FAULTS_SHOWN]:
        yield f"  {line}"


def contact_sheet(
    faces: FaceSet, labels: NDArray[np.int64], color_order: ColorOrder
) -> NDArray[np.uint8]:
    """Pictures of ten identities, one a row; of a set without labels, pictures from everywhere.

    Returns:
        RGB uint8 [rows * 112, 12 * 112, 3]; black where there is no picture.
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
