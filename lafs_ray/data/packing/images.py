"""What happens to an image on its way into a set: as a rule, nothing.

The bytes of a JPEG or PNG of the right size are kept. Its size is read from the file's header,
which takes microseconds; decoding every image is `check`. Only an image that has to be aligned or
resized is decoded and encoded anew, as JPEG, in the color order that it had.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.align import align_face
from lafs_ray.data.images import decode_image
from lafs_ray.errors import DataError

PNG = b"\x89PNG\r\n\x1a\n"
# Start-of-frame markers; C4, C8 and CC among them mean other things.
_JPEG_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}

# From eyes to mouth: a smaller face would be enlarged ten times and more.
_SMALLEST_FACE_PX = 4.0


@dataclass(frozen=True)
class ImageRules:
    """What images have to be, and what may be done to make them so.

    Args:
        size: side in pixels.
        resize: whether square images of another size are resized; otherwise they are bad records.
        quality: of JPEGs encoded anew, 1 to 100.
        check: decode every image to see that it can be.
    """

    size: int = 112
    resize: bool = False
    quality: int = 95
    check: bool = False


def image_size(data: bytes) -> tuple[int, int] | None:
    """Width and height from the header of a JPEG or PNG; None: it is neither, or cut short."""
    if data.startswith(PNG):
        return struct.unpack_from(">II", data, 16) if len(data) >= 24 else None
    if not data.startswith(b"\xff\xd8"):
        return None
    position = 2
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, position + 5)
            return width, height
        # Fill bytes and markers without length; everything else says how long it is.
        alone = marker in (0x01, 0xFF) or 0xD0 <= marker <= 0xD7
        length = struct.unpack_from(">H", data, position + 2)[0]
        position += 1 if marker == 0xFF else 2 if alone else 2 + length
    return None


def fit_image(
    data: bytes, rules: ImageRules, landmarks: NDArray[np.floating[Any]] | None
) -> tuple[bytes, bool]:
    """The image as it goes into the set, and whether it was encoded anew.

    Args:
        data: an encoded image.
        rules: what it has to be.
        landmarks: five points (x, y) in pixels to align by, [5, 2].

    Raises:
        DataError: it is no JPEG or PNG, does not decode, or has a size that the rules forbid.
    """
    side = rules.size
    if landmarks is not None:
        picture = _pixels(data)
        _check_landmarks(picture, landmarks)
        return _encoded(align_face(picture, landmarks), rules.quality), True
    size = image_size(data)
    if size is None or (data[:2] == b"\xff\xd8" and b"\xff\xd9" not in data):
        _pixels(data)  # Says what is wrong, unless OpenCV knows more than we do.
        raise _bad(f"{len(data)} bytes that begin with 0x{data[:4].hex()}", side)
    if size == (side, side):
        if rules.check:
            decode_image(data, color_order="rgb", size=side)
        return data, False
    found = f"{size[0]}x{size[1]}"
    if not rules.resize:
        raise _bad(found, side)
    pixels = _pixels(data)
    if pixels.shape[0] != pixels.shape[1]:
        raise _bad(f"{found}, not square: resizing would distort the face", side)
    shrinks = pixels.shape[0] > side
    how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return _encoded(cv2.resize(pixels, (side, side), interpolation=how), rules.quality), True


def _check_landmarks(picture: NDArray[np.uint8], landmarks: NDArray[np.floating[Any]]) -> None:
    """Refuse points that no face in the picture can have: they would align nothing, or a blur.

    A face that the picture's edge cuts may have points outside, by half a side at most.
    """
    height, width = picture.shape[:2]
    sides = np.array([width, height])
    spread = float(np.ptp(landmarks, axis=0).max())
    is_near = ((landmarks > -sides / 2) & (landmarks < 1.5 * sides)).all()
    if not is_near or spread < _SMALLEST_FACE_PX:
        raise DataError(
            "image",
            found=f"landmarks {landmarks.round(1).tolist()} of a picture of {width}x{height}",
            expected="five points in pixels of the picture (x, y), of eyes, nose and mouth",
            fix="detect the face's landmarks anew, or remove it from the list",
        )


def _pixels(data: bytes) -> NDArray[np.uint8]:
    # The channels come and go in OpenCV's order, so the file keeps its own.
    return decode_image(data, color_order="bgr", size=None)


def _encoded(pixels: Any, quality: int) -> bytes:
    encoded, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert encoded, "OpenCV was built without JPEG"
    return bytes(data.tobytes())


def _bad(found: str, side: int) -> DataError:
    fix = "give landmarks to align by, --resize, or images of that size"
    return DataError("image", found=found, expected=f"a JPEG or PNG of {side}x{side}", fix=fix)
