"""Image size from the header of an encoded image, checked before it is decoded.

A file of a hundred bytes may claim 30000×30000 pixels, and a decoder then takes gigabytes. JPEG and
PNG headers are parsed here in microseconds, BMP and WebP by Pillow; other formats are refused.
"""

from __future__ import annotations

import io
import struct

from PIL import Image

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
# Start of frame: every 0xFFCx but DHT (C4), JPG (C8) and DAC (CC).
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Markers without a segment: TEM, RST0-7, SOI.
_BARE = frozenset([0x01, *range(0xD0, 0xD9)])


def image_format(data: bytes) -> str:
    """Return "JPEG", "PNG", "BMP", "WEBP" or "other", from the first bytes."""
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    formats = {_JPEG: "JPEG", _PNG: "PNG", b"BM": "BMP"}
    return next((name for start, name in formats.items() if data.startswith(start)), "other")


def is_truncated_jpeg(data: bytes) -> bool:
    """Return whether a JPEG lacks the end marker, which its compressed data cannot contain.

    OpenCV 4 fills the missing part with gray instead of failing.
    """
    return data.startswith(_JPEG) and b"\xff\xd9" not in data


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
    """Walk the segments to the frame header as libjpeg does, skipping bytes between markers."""
    position = 2
    while True:
        position = data.find(b"\xff", position)
        if position < 0 or position + 9 > len(data):
            return None
        marker = data[position + 1]
        if marker in (0x00, 0xFF):  # A stuffed byte, or padding before the marker.
            position += 1 if marker else 2
            continue
        position += 2
        if marker in _BARE:
            continue
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, position + 3)
            return width, height
        (length,) = struct.unpack_from(">H", data, position)
        position += max(length, 2)
