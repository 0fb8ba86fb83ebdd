"""One photo: decode it, find its faces, align them."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lafs_ray.data.align import align_photo
from lafs_ray.data.detection.attempts import FaceRules, Found, find_faces
from lafs_ray.data.detection.base import Detector
from lafs_ray.data.images import ColorOrder, decode_image, encode_jpeg
from lafs_ray.errors import DataError

Status = Literal["aligned", "no face", "too small", "low score", "unreadable"]

STATUSES: tuple[Status, ...] = ("aligned", "no face", "too small", "low score", "unreadable")

_ORIENTATION = 274
_EXIF_MARKS = (b"Exif", b"eXIf", b"EXIF")
# Metadata comes before the pixels, except in WebP.
_HEAD_BYTES = 1 << 16


@dataclass(frozen=True)
class PhotoRules:
    """How photos become faces.

    Args:
        faces: which to keep.
        color_order: of the photos.
        quality: of the JPEGs; None: only points are kept.
    """

    faces: FaceRules
    color_order: ColorOrder = "rgb"
    quality: int | None = 95


@dataclass(frozen=True, eq=False)
class PhotoResult:
    """What became of a photo.

    Args:
        status: "aligned" if a face is kept, else why none is.
        reason: what is wrong with an unreadable one.
        orientation: of its EXIF metadata, applied before the search; 1: upright.
        found: its faces.
        images: the aligned faces as JPEG of RGB; empty if only points are kept.
    """

    status: Status
    reason: str = ""
    orientation: int = 1
    found: Found | None = None
    images: tuple[bytes, ...] = ()


def align_faces(detector: Detector, data: bytes, rules: PhotoRules) -> PhotoResult:
    """Find and align the faces of an encoded photo."""
    try:
        photo = decode_image(data, color_order=rules.color_order, size=None)
    except DataError as error:
        return PhotoResult("unreadable", f"found {error.found}; expected {error.expected}")
    orientation = exif_orientation(data)
    found = find_faces(detector, photo, rules.faces)
    if not len(found.faces):
        return PhotoResult(_miss(found), "", orientation, found)
    images = () if rules.quality is None else _encoded(photo, found.faces.points, rules.quality)
    return PhotoResult("aligned", "", orientation, found, images)


def _miss(found: Found) -> Status:
    if found.num_low:
        return "low score"
    return "too small" if found.num_small else "no face"


def _encoded(photo: NDArray[np.uint8], points: NDArray[np.float64], quality: int) -> tuple[bytes, ...]:
    # Rounded as in a list of points, so that both ways to a set give the same faces.
    rounded = points.astype(np.float32)
    return tuple(encode_jpeg(align_photo(photo, face)[..., ::-1], quality) for face in rounded)


def exif_orientation(data: bytes) -> int:
    """Return the EXIF orientation of an encoded photo, 1 to 8; 1 where it has none.

    The decoder turns the photo accordingly.
    """
    head = data if data.startswith(b"RIFF") else data[:_HEAD_BYTES]
    if not any(mark in head for mark in _EXIF_MARKS):
        return 1
    with contextlib.suppress(OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError):
        with Image.open(io.BytesIO(data)) as image:
            value = image.getexif().get(_ORIENTATION, 1)
        return value if isinstance(value, int) and 1 <= value <= 8 else 1
    return 1
