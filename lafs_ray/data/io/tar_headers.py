"""Members of an uncompressed tar (ustar, pax, GNU), found by reading its headers in turn.

Nothing is extracted. `tarfile` takes several times as long for a header, and believes sizes. Headers are read with
large blocks: one request to an object store gets those of many small members.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from lafs_ray.data.io.reading import Input, local_path
from lafs_ray.data.io.walk import printable
from lafs_ray.errors import DataError

logger = logging.getLogger(__name__)

BLOCK = 512
_LOCAL_READ, _REMOTE_READ = 64 << 10, 1 << 20
# Of members longer than a quarter of a read, headers are read alone.
_SHORT_READ = 4 << 10
_MOST_EXTENDED = 1 << 20
_ADLER = 65521
_ZEROS = bytes(BLOCK)
_GZIP, _ZSTD, _BZIP, _XZ = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ"
_EXPECTED = "an uncompressed tar"
REGULAR = frozenset(b"0\0007")
"""Types of members that have data of their own; others than those below count as regular, as POSIX says."""

_SPECIAL = {ord("1"): "a hard link", ord("2"): "a link", ord("3"): "a device", ord("4"): "a device", ord("6"): "a pipe"}
_FOLDER, _PAX, _GLOBAL, _LONG_NAME, _LONG_LINK = ord("5"), frozenset(b"xX"), ord("g"), ord("L"), ord("K")
_SPARSE = ord("S")


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar.

    Args:
        name: its path there; bytes that are not UTF-8 as surrogates.
        offset: of its data.
        size: of its data in bytes.
        special: what it is instead of a regular file, such as "a link"; empty otherwise.
    """

    name: str
    offset: int
    size: int
    special: str = ""


class TarReader:
    """Reads a tar through a window that moves forward.

    Args:
        uri: for messages.
        file: the tar.
    """

    def __init__(self, uri: str, file: Input) -> None:
        self._uri, self._file, self._size = uri, file, file.size()
        self._step = _REMOTE_READ if local_path(uri) is None else _LOCAL_READ
        self._begin, self._window, self._headers = 0, b"", 0

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes of the file; fewer where it ends."""
        size = max(min(size, self._size - offset), 0)
        start = offset - self._begin
        if start < 0 or start + size > len(self._window):
            step = _SHORT_READ if offset > self._headers * self._step // 4 + self._step else self._step
            self._window = bytes(self._file.read_at(max(min(step, self._size - offset), size), offset))
            self._begin, start = offset, 0
        return self._window[start : start + size]

    def members(self) -> Iterator[Member]:
        """Yield the files of the tar in order; folders are left out.

        Raises:
            DataError: it is compressed, no tar, or truncated; a header is damaged.
        """
        position, long_name, extended = 0, None, dict[str, bytes]()
        while True:
            block = self.read(position, BLOCK)
            self._headers += 1
            if block == _ZEROS or not block:
                self._check_end(position, is_marked=bool(block))
                return
            kind, size = self._parse(block, position)
            data = position + BLOCK
            if size > self._size - data and kind not in _SPECIAL and kind != _FOLDER:
                name = printable(_text(block[:100].split(b"\0", 1)[0]))
                found = f"{name} of {size} bytes, and {max(self._size - data, 0)} bytes to the end of the file"
                raise DataError(self._at(position), found=found, expected="a whole tar", fix="copy the file again")
            position = data + -(-size // BLOCK) * BLOCK
            if kind in _PAX or kind in (_GLOBAL, _LONG_NAME, _LONG_LINK):
                content = self._extended(data, size)
                if kind in _PAX:
                    extended = self._records(content, data)
                elif kind == _LONG_NAME:
                    long_name = content.split(b"\0", 1)[0]
                continue
            if kind == _SPARSE or any(key.startswith("GNU.sparse") for key in extended):
                found, fix = "a sparse member", "write the tar without --sparse"
                raise DataError(self._at(data - BLOCK), found=found, expected=_EXPECTED, fix=fix)
            name_bytes = extended.get("path") or long_name or _name(block)
            if "size" in extended:
                size = self._number(extended["size"], data)
                if size > self._size - data:
                    found = f"a size of {size} bytes in a file of {self._size}"
                    raise DataError(self._at(data), found=found, expected="a whole tar", fix="copy the file again")
                position = data + -(-size // BLOCK) * BLOCK
            long_name, extended = None, {}
            if kind in _SPECIAL:
                # They have no data, whatever size their header claims.
                position = data
                yield Member(_text(name_bytes), data, 0, _SPECIAL[kind])
            elif kind == _FOLDER or name_bytes.endswith(b"/"):
                position = data if kind == _FOLDER else position
            else:
                yield Member(_text(name_bytes), data, size)

    def _at(self, offset: int) -> str:
        return f"{self._uri} at offset {offset}"

    def _parse(self, block: bytes, position: int) -> tuple[int, int]:
        """Return type and size of a header after comparing its checksum."""
        stated = _octal(block[148:156])
        if len(block) < BLOCK or stated is None or not _is_sum(block, stated):
            if position == 0 and block.startswith((_GZIP, _ZSTD, _BZIP, _XZ)):
                fix = "unpack it with gunzip (or unzstd, bunzip2, unxz): images hardly shrink, and single ones of a "
                fix += "compressed file cannot be read"
                raise DataError(self._uri, found="a compressed file", expected=_EXPECTED, fix=fix)
            found = f"0x{block[:4].hex()}, which begins no header" if not position else "a damaged header"
            if len(block) < BLOCK:
                found = f"{len(block)} bytes to the end of the file"
            raise DataError(self._at(position), found=found, expected=_EXPECTED, fix="copy the file again")
        field = block[124:136]
        size = int.from_bytes(field[1:], "big") if field[0] == 0x80 else _octal(field)
        if size is None:
            found = f"the size 0x{field.hex()}"
            raise DataError(self._at(position), found=found, expected="a number ≥ 0", fix="write the tar again")
        return block[156], size

    def _extended(self, offset: int, size: int) -> bytes:
        if size > _MOST_EXTENDED:
            found = f"an extended header of {size} bytes"
            expected = f"at most {_MOST_EXTENDED}"
            raise DataError(self._at(offset - BLOCK), found=found, expected=expected, fix="write the tar again")
        return self.read(offset, size)

    def _records(self, content: bytes, offset: int) -> dict[str, bytes]:
        """Parse the records of a pax header: `length key=value` and a newline."""
        records, start = dict[str, bytes](), 0
        while start < len(content.rstrip(b"\0")):
            digits, _, _ = content[start : start + 20].partition(b" ")
            stop = start + int(digits) if digits.isdigit() else 0
            key, mark, value = content[start + len(digits) + 1 : stop].partition(b"=")
            if not start < stop <= len(content) or not mark or not value.endswith(b"\n"):
                found = "a damaged extended header"
                raise DataError(self._at(offset), found=found, expected=_EXPECTED, fix="write the tar again")
            records[key.decode("latin-1")] = value[:-1]
            start = stop
        return records

    def _number(self, text: bytes, offset: int) -> int:
        if not text.isdigit() or len(text) > 18:
            found = f"the size {ascii(text[:20])[1:]}"
            raise DataError(self._at(offset), found=found, expected="a number ≥ 0", fix="write the tar again")
        return int(text)

    def _check_end(self, position: int, *, is_marked: bool) -> None:
        """Warn of a tar without end marker, and of data behind it, which no reader of tars finds."""
        if position == 0 and not is_marked:
            raise DataError(self._uri, found="an empty file (0 bytes)", expected=_EXPECTED, fix="copy the file again")
        if not is_marked:
            logger.warning("%s ends without the mark of a complete tar: has its writer been stopped?", self._uri)
        elif self.read(position, self._step).strip(b"\0"):
            left = self._size - position
            logger.warning("%s: %d bytes after the end mark are not read: tars joined by cat?", self._uri, left)


def _octal(field: bytes) -> int | None:
    text = field.split(b"\0", 1)[0].strip()
    if not text:
        return 0
    return int(text, 8) if text.isdigit() and not (b"8" in text or b"9" in text) else None


def _is_sum(block: bytes, stated: int) -> bool:
    """Return whether a checksum is the sum of all bytes, with blanks in its own place."""
    # The lower half of Adler-32 is the sum, and takes a tenth of the time of a loop.
    difference = (zlib.adler32(block, 0) & 0xFFFF) - sum(block[148:156]) + 8 * 32 - stated
    if difference % _ADLER == 0:
        return True
    # Some writers add signed bytes.
    high = sum(one >= 128 for one in block[:148]) + sum(one >= 128 for one in block[156:])
    return (difference - 256 * high) % _ADLER == 0


def _name(block: bytes) -> bytes:
    name = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
