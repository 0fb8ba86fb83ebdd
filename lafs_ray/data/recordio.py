"""Read and write MXNet's RecordIO, byte for byte, without mxnet (retired in 2023).

A record is `magic, flag << 29 | length, body, zeros up to a multiple of 4`. A reader may search for the magic word at
multiples of 4, so a body never contains it there: the writer drops it and splits the record into parts. A body is a
header (number of labels, a label, two ids) and a payload. The index of `x.rec` is `x.idx`: a line `key <tab> offset`
for every record.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lafs_ray.data.io import filesystem, reading
from lafs_ray.data.io.text_table import read_text_table
from lafs_ray.errors import DataError

MAGIC = 0xCED7230A
_MAGIC_BYTES = struct.pack("<I", MAGIC)
_FRAME = struct.Struct("<II")
_IR_HEADER = struct.Struct("<IfQQ")
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
_LENGTH_BITS = 29
_MAX_LENGTH = (1 << _LENGTH_BITS) - 1

_SCAN_BYTES = 8 << 20

Body = bytes | memoryview


@dataclass(frozen=True)
class Header:
    """Header of a record's body.

    Args:
        flag: number of labels after the header; 0: the label is the one in it.
        label: one number, or a tuple of `flag` numbers (float32 in the file).
        id: the first id, by convention the record's key.
        id2: the second id.
    """

    flag: int
    label: float | tuple[float, ...]
    id: int
    id2: int = 0

    @property
    def first_label(self) -> float:
        """Return the label, or the first of several."""
        return self.label[0] if isinstance(self.label, tuple) else self.label


def pack(header: Header, payload: Body) -> bytes:
    """Encode the body of a record: header, labels if there are several, payload."""
    if not isinstance(header.label, tuple):
        assert header.flag == 0, "a header with one label has flag 0"
        return _IR_HEADER.pack(0, header.label, header.id, header.id2) + payload
    assert header.flag == len(header.label) > 0, "flag counts the labels"
    labels = struct.pack(f"<{header.flag}f", *header.label)
    return _IR_HEADER.pack(header.flag, 0.0, header.id, header.id2) + labels + payload


def unpack(body: Body, where: str = "record") -> tuple[Header, Body]:
    """Decode a record's body to header and payload; the payload of a memoryview is a view.

    Raises:
        DataError: the body is shorter than its header says; `where` names the record.
    """
    if len(body) < _IR_HEADER.size:
        raise _damaged(where, f"{len(body)} bytes", f"a header of {_IR_HEADER.size} bytes")
    flag, label, id_, id2 = _IR_HEADER.unpack_from(body)
    if flag == 0:
        return Header(0, label, id_, id2), body[_IR_HEADER.size :]
    start = _IR_HEADER.size + 4 * flag
    if len(body) < start:
        found = f"flag {flag} ({flag} labels, {start} bytes) in {len(body)} bytes"
        raise _damaged(where, found, "a flag that counts the labels in the record")
    labels = struct.unpack_from(f"<{flag}f", body, _IR_HEADER.size)
    return Header(flag, labels, id_, id2), body[start:]


def encode_record(body: bytes) -> bytes:
    """Frame and pad a body as in the file, split where the magic word occurs."""
    splits, position = [], body.find(_MAGIC_BYTES)
    while position >= 0:
        aligned = position % 4 == 0
        if aligned:
            splits.append(position)
        position = body.find(_MAGIC_BYTES, position + (4 if aligned else 1))
    starts, stops = [0, *(split + 4 for split in splits)], [*splits, len(body)]
    framed = []
    for i, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        part = _FIRST if i == 0 else _LAST if i == len(splits) else _MIDDLE
        length = stop - start
        if length > _MAX_LENGTH:
            raise _damaged("record", f"{length} bytes", f"at most {_MAX_LENGTH} bytes (29 bits)")
        word = (part if splits else _WHOLE) << _LENGTH_BITS | length
        framed += [_FRAME.pack(MAGIC, word), body[start:stop], bytes(-length % 4)]
    return b"".join(framed)


def decode_record(buffer: memoryview, start: int, *, base_offset: int = 0, source: str = "record") -> tuple[Body, int]:
    """Return the body of the record at `start`, and the position after its padding.

    The body is a view into `buffer`, or bytes where parts had to be joined. Messages name `source` and the offset in
    the file: `base_offset` plus the position in `buffer`.

    Raises:
        DataError: the magic word is missing, the parts are out of order, or the buffer ends.
    """
    where = f"{source} at offset {base_offset + start}"
    parts: list[memoryview] = []
    position = start
    while True:
        begin = position + _FRAME.size
        if begin > len(buffer):
            raise _truncated(where, begin - start, len(buffer) - start)
        magic, word = _FRAME.unpack_from(buffer, position)
        if magic != MAGIC:
            raise _damaged(where, f"0x{magic:08x}", f"RecordIO's magic word 0x{MAGIC:08x}")
        part, length = word >> _LENGTH_BITS, word & _MAX_LENGTH
        if part not in ((_MIDDLE, _LAST) if parts else (_WHOLE, _FIRST)):
            expected = "2 or 3 (a further part)" if parts else "0 or 1 (a record's beginning)"
            raise _damaged(where, f"continuation flag {part}", expected)
        position = begin + length + -length % 4
        if position > len(buffer):
            raise _truncated(where, position - start, len(buffer) - start)
        parts.append(buffer[begin : begin + length])
        if part == _WHOLE:
            return parts[0], position
        if part == _LAST:
            return _MAGIC_BYTES.join(parts), position


def starts_record(file: Any, offset: int) -> bool:
    """Return whether the magic word is at `offset`: a record, or a part of one, begins there."""
    return bool(file.read_at(4, offset) == _MAGIC_BYTES)


def record_end(file: Any, offset: int, file_size: int, source: str) -> int:
    """Return the offset after the record at `offset`, read from its length fields alone.

    Raises:
        DataError: no record begins there, or the file ends before the record does.
    """
    where, position = f"{source} at offset {offset}", offset
    while True:
        frame = file.read_at(min(_FRAME.size, max(file_size - position, 0)), position)
        if len(frame) >= 4 and frame[:4] != _MAGIC_BYTES:
            (magic,) = struct.unpack_from("<I", frame)
            raise _damaged(where, f"0x{magic:08x}", f"RecordIO's magic word 0x{MAGIC:08x}")
        if len(frame) < _FRAME.size:
            raise _truncated(where, position + _FRAME.size - offset, file_size - offset)
        word: int = _FRAME.unpack(frame)[1]
        part, length = word >> _LENGTH_BITS, word & _MAX_LENGTH
        position += _FRAME.size + length + -length % 4
        if position > file_size:
            raise _truncated(where, position - offset, file_size - offset)
        if part in (_WHOLE, _LAST):
            return position


def _damaged(where: str, found: str, expected: str) -> DataError:
    fix = "copy the file again, with its .idx (one of another file points between records)"
    return DataError(where, found=found, expected=expected, fix=f"{fix}, or pack the images again")


def _truncated(where: str, needed: int, have: int) -> DataError:
    found = f"{have} bytes to the end of the file"
    return _damaged(where, found, f"a record of at least {needed} bytes (it is truncated)")


def index_uri(record_uri: str) -> str:
    """Return the path or URI of the index of a `.rec` file."""
    return filesystem.replace_suffix(record_uri, ".rec", ".idx")


def checksum() -> Any:
    """Return a new hash for the checksums of `.rec` and `.idx` files (BLAKE2b, 16 bytes)."""
    return hashlib.blake2b(digest_size=16)


class RecordWriter:
    """Writer of `x.rec` and `x.idx`; both appear when the `with` block ends without an exception.

    `digest` and `index_digest` are hashes of what has been written so far; `size_bytes` is the length of the `.rec`.

    Args:
        uri: path or URI of the `.rec` file.

    Raises:
        DataError: the files cannot be written.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self.size_bytes = 0
        self.digest, self.index_digest = checksum(), checksum()

    def __enter__(self) -> RecordWriter:
        with ExitStack() as stack:
            # Closed in reverse order: the index never exists without its file.
            self._index = stack.enter_context(filesystem.atomic_write(index_uri(self._uri)))
            self._records = stack.enter_context(filesystem.atomic_write(self._uri))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def write(self, key: int, body: bytes) -> int:
        """Append a record (a body made by `pack`); return its offset."""
        framed, offset = encode_record(body), self.size_bytes
        line = b"%d\t%d\n" % (key, offset)
        self._records.write(framed)
        self._index.write(line)
        self.digest.update(framed)
        self.index_digest.update(line)
        self.size_bytes += len(framed)
        return offset


def read_index(uri: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Read keys and offsets of an `.idx` file, int64 [n] each, in the file's order.

    Raises:
        DataError: the file is empty, or a row is not `key <tab> offset`; it is named.
    """
    columns = {"key": pa.int64(), "offset": pa.int64()}
    with reading.open_input(uri) as file:
        table = read_text_table(uri, file, columns, delimiter="\t", fix=_INDEX_FIX)
        _refuse_hexadecimal(uri, file)
    # Arrow would keep the parsed blocks for later: 180 MB for an index of 5 M rows.
    pa.default_memory_pool().release_unused()
    return table["key"], table["offset"]


def _refuse_hexadecimal(uri: str, file: pa.NativeFile) -> None:
    """Arrow reads 0x100 as 256; no writer of indexes writes that."""
    file.seek(0)
    row = 1
    while chunk := file.read(_SCAN_BYTES):
        at = chunk.lower().find(b"x")
        if at >= 0:
            row += chunk.count(b"\n", 0, at)
            raise DataError(f"{uri}, row {row}", found="a hexadecimal number", expected="decimal ones", fix=_INDEX_FIX)
        row += chunk.count(b"\n")


_INDEX_FIX = "copy .rec and .idx again from one place"


def scan_records(uri: str) -> Iterator[tuple[int, int, Header, int]]:
    """Find every record of a file without an index, reading 8 MiB at a time.

    Yields:
        Offset, size in bytes with framing and padding, header, and payload size in bytes of each record.

    Raises:
        DataError: a record is damaged or truncated; those after it cannot be found.
    """
    with reading.open_input(uri) as file:
        file_size, offset = file.size(), 0
        while offset < file_size:
            # The length fields give the end of a record longer than one read.
            size = max(_SCAN_BYTES, record_end(file, offset, file_size, uri) - offset)
            buffer = memoryview(file.read_at(min(size, file_size - offset), offset))
            position, base = 0, offset
            while position < len(buffer):
                try:
                    body, after = decode_record(buffer, position, base_offset=base, source=uri)
                except DataError:
                    if position == 0 or base + len(buffer) == file_size:
                        raise
                    break  # Truncated by the read: the next one begins with it.
                header, payload = unpack(body, f"{uri} at offset {offset}")
                yield offset, after - position, header, len(payload)
                offset, position = base + after, after
