"""All records of a buffer, for tests; the package reads records one by one."""

from __future__ import annotations

from collections.abc import Iterator

from lafs_ray.data.recordio import Body, decode_record


def parse_records(buffer: memoryview, base_offset: int, source: str) -> Iterator[tuple[int, Body]]:
    """Yield offset in the file and body of each record of a buffer that holds whole records."""
    position = 0
    while position < len(buffer):
        body, after = decode_record(buffer, position, base_offset=base_offset, source=source)
        yield base_offset + position, body
        position = after
