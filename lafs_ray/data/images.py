"""Decode encoded images to RGB arrays."""

from __future__ import annotations

import contextlib
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.image_header import stated_size
from lafs_ray.errors import DataError

# 400 MB once decoded; a file of a few bytes may state ten times as much.
_MAX_PIXELS = 1 << 27


def decode_image(
    data: bytes, *, color_order: Literal["rgb", "bgr"], size: int | None = 112
) -> NDArray[np.uint8]:
    """The pixels of an encoded face, RGB, uint8 [size, size, 3]; gray becomes three channels.

    Args:
        data: a JPEG or PNG.
        color_order: what decoding the *file* gives: `rgb` for insightface's, `bgr` for those whose
            channels were swapped before encoding (METHOD.md, "Color order").
        size: side in pixels that the face must have; None takes any picture.

    Raises:
        DataError: the data is no image, is cut short, or has another size.
    """
    expected = "a JPEG or PNG" if size is None else f"a JPEG or PNG of {size}x{size}"
    # OpenCV 4 fills the missing part of a JPEG with gray; a scan cannot contain the end marker.
    cut_short = data[:2] == b"\xff\xd8" and b"\xff\xd9" not in data
    if cut_short or not data:
        found = f"{len(data)} bytes of a JPEG that is cut short" if data else "0 bytes"
        fix = "pack the image anew from its source"
        raise DataError("image", found=found, expected=expected, fix=fix)
    stated = stated_size(data)
    if stated and (stated[0] * stated[1] > _MAX_PIXELS if size is None else stated != (size, size)):
        raise _wrong_size(stated, size, expected)
    pixels = None
    if stated:
        # An exception, for instance where a second header contradicts the first.
        with contextlib.suppress(cv2.error):
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        found = f"{len(data)} bytes that begin with 0x{data[:4].hex()} and do not decode"
        fix = "pack the image anew from its source"
        raise DataError("image", found=found, expected=expected, fix=fix)
    if size is not None and pixels.shape[:2] != (size, size):
        raise _wrong_size((pixels.shape[1], pixels.shape[0]), size, expected)
    # OpenCV decodes to BGR, which undoes the swap of a `bgr` file by itself.
    assert color_order in ("rgb", "bgr"), color_order
    rgb: NDArray[np.uint8] = (
        pixels if color_order == "bgr" else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    )
    return rgb


def _wrong_size(found: tuple[int, int], size: int | None, expected: str) -> DataError:
    fix = f"align the faces and resize them to {size}x{size} before packing"
    if size is None:
        expected, fix = f"{expected} of at most {_MAX_PIXELS} pixels", "resize the picture first"
    return DataError("image", found=f"{found[0]}x{found[1]}", expected=expected, fix=fix)
