"""Decode encoded images to RGB arrays; their size is read from the header first.

A file of a hundred bytes may claim 30000×30000 pixels, and a decoder then takes gigabytes. JPEG and PNG headers are
parsed here in microseconds, BMP and WebP by Pillow; other formats are refused.
"""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Iterator
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lafs_ray.config import IMAGE_SIZE
from lafs_ray.errors import DataError

ColorOrder = Literal["rgb", "bgr"]

# 400 MB once decoded; a header of a few bytes may claim ten times as much.
_MAX_PIXELS = 1 << 27
_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
# Start of frame: every 0xFFCx but DHT (C4), JPG (C8) and DAC (CC).
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN = 0xDA
# Markers without a segment: TEM, RST0-7, SOI.
_BARE = frozenset([0x01, *range(0xD0, 0xD9)])


def decode_image(data: bytes, *, color_order: ColorOrder, size: int | None = IMAGE_SIZE) -> NDArray[np.uint8]:
    """Decode a face to RGB, uint8 [size, size, 3]; gray becomes three channels.

    Args:
        data: a JPEG or PNG.
        color_order: what decoding the *file* gives: `rgb` for insightface's, `bgr` for those whose channels were
            swapped before encoding (docs/data.md).
        size: expected side in pixels; None accepts any picture.

    Raises:
        DataError: the data is no image, is truncated, or has another size.
    """
    expected = "a JPEG or PNG" if size is None else f"a JPEG or PNG of {size}x{size}"
    damage = jpeg_damage(data)
    if damage or not data:
        found = f"{len(data)} bytes of a {damage}" if damage else "0 bytes"
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
    rgb: NDArray[np.uint8] = pixels if color_order == "bgr" else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    return rgb


def decode_resized(
    data: bytes, *, color_order: ColorOrder, size: int, always_bicubic: bool = False
) -> NDArray[np.uint8]:
    """Decode a square picture of any size and scale it to uint8 [size, size, 3].

    Args:
        data: encoded image.
        color_order: see `decode_image`.
        size: side in pixels.
        always_bicubic: interpolate when shrinking too, as the released evaluation does; otherwise areas are averaged.

    Raises:
        DataError: it does not decode, or is not square.
    """
    pixels = decode_image(data, color_order=color_order, size=None)
    height, width = pixels.shape[:2]
    if height != width:
        raise DataError(
            "image",
            found=f"{width}x{height}, not square",
            expected="a square: resizing scales faces, it does not align them",
            fix="align the faces first",
        )
    if height == size:
        return pixels
    interpolation = cv2.INTER_AREA if height > size and not always_bicubic else cv2.INTER_CUBIC
    scaled: NDArray[np.uint8] = cv2.resize(pixels, (size, size), interpolation=interpolation)
    return scaled


def encode_jpeg(pixels: NDArray[Any], quality: int) -> bytes:
    """Encode pixels [H, W, 3] as a JPEG of BGR channels, OpenCV's order."""
    encoded, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert encoded, "OpenCV was built without JPEG"
    return bytes(data.tobytes())


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


def image_format(data: bytes) -> str:
    """Return "JPEG", "PNG", "BMP", "WEBP" or "other", from the first bytes."""
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    formats = {_JPEG: "JPEG", _PNG: "PNG", b"BM": "BMP"}
    return next((name for start, name in formats.items() if data.startswith(start)), "other")


def jpeg_damage(data: bytes) -> str:
    """Return "truncated JPEG" or "JPEG with zeroed data", which OpenCV decodes to gray; "" for others.

    The end marker counts only after the start of the scan: an embedded thumbnail has one of its own. A flat block is
    two Huffman codes; even where both are zeros, the blocks of an image take less than 16 bits for 8×8 pixels. A longer
    run of zero bytes is a lost disk block or page.
    """
    if not data.startswith(_JPEG):
        return ""
    scan, size = _jpeg_scan(data), image_size(data)
    if data.find(b"\xff\xd9", max(scan, 0)) < 0:
        return "truncated JPEG"
    if scan < 0 or size is None or size[0] * size[1] > _MAX_PIXELS:
        return ""
    zeros = bytes(max(size[0] * size[1] // 32, 64))
    return "JPEG with zeroed data" if data.find(zeros, scan) >= 0 else ""


def image_size(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) in pixels; None: no JPEG, PNG, BMP or WebP, or truncated."""
    kind = image_format(data)
    if kind == "JPEG":
        return _jpeg_size(data)
    if kind == "PNG":
        return _png_size(data)
    if kind == "other":
        return None
    try:
        with Image.open(io.BytesIO(data), formats=(kind,)) as image:
            width, height = image.size
            return width, height
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def _png_size(data: bytes) -> tuple[int, int] | None:
    """Walk the chunks to IEND: OpenCV allocates the length a chunk claims, up to 2 GiB."""
    if len(data) < 24 or data[12:16] != b"IHDR":
        return None
    position = len(_PNG)
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        if position + 12 + length > len(data):
            return None
        if data[position + 4 : position + 8] == b"IEND":
            width, height = struct.unpack_from(">II", data, 16)
            return width, height
        position += 12 + length
    return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Read the frame header."""
    for marker, position in _jpeg_segments(data):
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, position + 3)
            return width, height
    return None


def _jpeg_scan(data: bytes) -> int:
    """Return where the first scan starts; -1: none does."""
    return next((position for marker, position in _jpeg_segments(data) if marker == _START_OF_SCAN), -1)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield marker and position of each segment as libjpeg finds them, skipping bytes between markers."""
    position = 2
    while True:
        position = data.find(b"\xff", position)
        if position < 0 or position + 9 > len(data):
            return
        marker = data[position + 1]
        if marker in (0x00, 0xFF):  # A stuffed byte, or padding before the marker.
            position += 1 if marker else 2
            continue
        position += 2
        if marker in _BARE:
            continue
        yield marker, position
        (length,) = struct.unpack_from(">H", data, position)
        position += max(length, 2)
