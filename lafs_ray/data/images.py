"""Decode encoded images to RGB arrays."""

from __future__ import annotations

import contextlib
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.image_header import image_size, is_truncated_jpeg
from lafs_ray.errors import DataError

ColorOrder = Literal["rgb", "bgr"]

# 400 MB once decoded; a header of a few bytes may claim ten times as much.
_MAX_PIXELS = 1 << 27


def decode_image(
    data: bytes, *, color_order: ColorOrder, size: int | None = 112
) -> NDArray[np.uint8]:
    """Decode a face to RGB, uint8 [size, size, 3]; gray becomes three channels.

    Args:
        data: a JPEG or PNG.
        color_order: what decoding the *file* gives: `rgb` for insightface's, `bgr` for those whose
            channels were swapped before encoding (docs/data.md).
        size: expected side in pixels; None accepts any picture.

    Raises:
        DataError: the data is no image, is truncated, or has another size.
    """
    expected = "a JPEG or PNG" if size is None else f"a JPEG or PNG of {size}x{size}"
    truncated = is_truncated_jpeg(data)
    if truncated or not data:
        found = f"{len(data)} bytes of a truncated JPEG" if truncated else "0 bytes"
        raise DataError("image", found=found, expected=expected, fix=_FIX)
    claimed = image_size(data)
    if claimed:
        _check_size(claimed, size, expected)
    pixels = None
    if claimed:
        # An exception, for instance where a second header contradicts the first.
        with contextlib.suppress(cv2.error):
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        found = f"{len(data)} bytes that begin with 0x{data[:4].hex()} and do not decode"
        raise DataError("image", found=found, expected=expected, fix=_FIX)
    _check_size((pixels.shape[1], pixels.shape[0]), size, expected)
    # OpenCV decodes to BGR, which undoes the swap of a `bgr` file by itself.
    assert color_order in ("rgb", "bgr"), color_order
    rgb: NDArray[np.uint8] = (
        pixels if color_order == "bgr" else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    )
    return rgb


_FIX = "pack the image again from its source"


def _check_size(found: tuple[int, int], size: int | None, expected: str) -> None:
    """Raise if (width, height) is not the expected side, or too large to decode."""
    if size is not None and found == (size, size):
        return
    fix = f"align the faces and resize them to {size}x{size} before packing"
    if size is None:
        if found[0] * found[1] <= _MAX_PIXELS:
            return
        expected, fix = f"{expected} of at most {_MAX_PIXELS} pixels", "resize the picture first"
    raise DataError("image", found=f"{found[0]}x{found[1]}", expected=expected, fix=fix)
