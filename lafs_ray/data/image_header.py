"""Width and height that an encoded image states, read before a decoder believes them.

A file of a hundred bytes may state 30000×30000 pixels, and a decoder then takes gigabytes. JPEG and
PNG headers are read here in microseconds; Pillow answers for BMP and WebP, and nothing else passes.
"""

from __future__ import annotations

import io
import struct

from PIL import Image

_PNG = b"\x89PNG\r\n\x1a\n"
# Start of frame: every 0xFFCx but DHT (C4), JPG (C8) and DAC (CC).
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Markers without a segment: TEM, RST0-7, SOI.
_BARE = frozenset([0x01, *range(0xD0, 0xD9)])


def stated_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) in pixels; None where the data is no JPEG, PNG, BMP or WebP, or is cut."""
    if data[:2] == b"\xff\xd8":
        return _jpeg_size(data)
    if data[:8] == _PNG:
        return _png_size(data)
    if data[:2] == b"BM" or (data[:4] == b"RIFF" and data[8:12] == b"WEBP"):
        try:
            with Image.open(io.BytesIO(data), formats=("BMP", "WEBP")) as image:
                width, height = image.size
                return width, height
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return None
    return None


def _png_size(data: bytes) -> tuple[int, int] | None:
    """From chunk to chunk: OpenCV allocates what a chunk says, up to 2 GiB, before it reads it."""
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
    """From segment to segment, as libjpeg goes: what is no marker is skipped."""
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
