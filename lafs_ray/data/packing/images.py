"""Image checks, alignment and resizing during packing.

The bytes of a JPEG or PNG of the right size are kept; its size is read from the header in microseconds. With `check`,
every image is also decoded. An image to be aligned or resized, and one in another format (BMP, WebP), which readers of
`.rec` need not know, is re-encoded as JPEG in the same color order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.align import align_photo
from lafs_ray.data.images import decode_image, decode_resized, encode_jpeg, image_format, image_size, jpeg_damage
from lafs_ray.errors import DataError

# Extent of the landmarks; alignment enlarges a smaller face more than tenfold.
_MIN_FACE_PX = 4.0


@dataclass(frozen=True)
class ImageRules:
    """Required image size, and how images are checked and converted.

    Args:
        size: side in pixels.
        resize: resize square images of another size; otherwise they are bad records.
        quality: JPEG quality of re-encoded images, 1 to 100.
        check: decode every image to find damage behind the header.
    """

    size: int = 112
    resize: bool = False
    quality: int = 95
    check: bool = False


def fit_image(data: bytes, rules: ImageRules, landmarks: NDArray[np.floating[Any]] | None) -> tuple[bytes, bool]:
    """Return the image as stored in the set, and whether it was re-encoded.

    Args:
        data: encoded image.
        rules: required size, and allowed conversions.
        landmarks: five points (x, y) in pixels to align by, [5, 2]; None: aligned already.

    Raises:
        DataError: it is no image, does not decode, or has a size that the rules forbid.
    """
    side = rules.size
    if landmarks is not None:
        # OpenCV's channel order on both ways keeps the file's own.
        pixels = decode_image(data, color_order="bgr", size=None)
        _check_landmarks(pixels, landmarks)
        return encode_jpeg(align_photo(pixels, landmarks), rules.quality), True
    size = image_size(data)
    if size is None or jpeg_damage(data):
        # Raises with the reason, except for formats that only OpenCV reads.
        decode_image(data, color_order="bgr", size=None)
        raise _bad_image(f"{len(data)} bytes that begin with 0x{data[:4].hex()}", side)
    if size == (side, side):
        if image_format(data) not in ("JPEG", "PNG"):
            return encode_jpeg(decode_image(data, color_order="bgr", size=side), rules.quality), True
        if rules.check:
            decode_image(data, color_order="rgb", size=side)
        return data, False
    if not rules.resize:
        raise _bad_image(f"{size[0]}x{size[1]}", side)
    return encode_jpeg(decode_resized(data, color_order="bgr", size=side), rules.quality), True


def _check_landmarks(pixels: NDArray[np.uint8], landmarks: NDArray[np.floating[Any]]) -> None:
    """Reject landmarks that cannot be pixels of a face in the image.

    The landmarks of a face cut by the border may lie outside, by at most half a side.
    """
    height, width = pixels.shape[:2]
    sides = np.array([width, height])
    extent = float(np.ptp(landmarks, axis=0).max())
    is_near = ((landmarks > -sides / 2) & (landmarks < 1.5 * sides)).all()
    if not is_near or extent < _MIN_FACE_PX:
        raise DataError(
            "image",
            found=f"landmarks {landmarks.round(1).tolist()} of an image of {width}x{height}",
            expected="five points (x, y) in pixels of the image: eyes, nose, mouth corners",
            fix="detect the landmarks of this face again, or remove it from the list",
        )


def _bad_image(found: str, side: int) -> DataError:
    fix = "use --landmarks to align, --resize, or images of that size"
    return DataError("image", found=found, expected=f"a JPEG or PNG of {side}x{side}", fix=fix)
