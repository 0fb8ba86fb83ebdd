"""Lists of an aligning: what became of every photo, or the points of the faces that were found.

Both are written part by part, as Parquet or CSV by their ending.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from lafs_ray.data.aligning.parts import POINTS, AlignJob, FinishedPart, read_part
from lafs_ray.data.io import filesystem, reading
from lafs_ray.data.packing.lists import LIST_SUFFIXES
from lafs_ray.data.packing.sources import ImageSource
from lafs_ray.errors import ConfigError

_REPORT = ("path", "label", "status", "faces", "score", "eye_px", *POINTS, "orientation", "second_search", "reason")
_METADATA = b"lafs_ray.aligned"


def require_list(name: str, uri: str) -> None:
    """Check the ending of a list to write.

    Raises:
        ConfigError: it is neither CSV nor Parquet.
    """
    if not filesystem.file_name(uri).endswith(LIST_SUFFIXES):
        expected = f"a file that ends in {' or '.join(LIST_SUFFIXES)}"
        raise ConfigError(name, found=uri, expected=expected, fix="choose another name")


def write_report(uri: str, job: AlignJob, finished: Sequence[FinishedPart], request: bytes = b"") -> None:
    """Write a row for each face that is kept, and one for each photo without.

    Column `record` numbers the kept faces as the packed set does (id2 of a record's header); null for the others.

    Args:
        uri: a `.parquet` or `.csv` file.
        job: the aligning.
        finished: all of its parts, in order.
        request: stored in the metadata of a Parquet file.
    """
    with _writer(uri, request) as write:
        records = 0
        for one in finished:
            rows = read_part(job.folder, one.part, _REPORT)
            is_kept = pc.equal(rows["status"], "aligned").to_numpy()
            numbers = records + np.cumsum(is_kept) - 1
            records += int(is_kept.sum())
            rows = _with_names(rows, job.sources[one.part.source])
            write(rows.append_column("record", pa.array(numbers, pa.int64(), mask=~is_kept)))


def write_points(uri: str, job: AlignJob, finished: Sequence[FinishedPart]) -> None:
    """Write path, label and points of the faces that are kept.

    Paths are relative to the folder of the photos, or complete where the photos come from a list.

    Args:
        uri: a `.parquet` or `.csv` file.
        job: the aligning of one source.
        finished: all of its parts, in order.
    """
    (source,) = job.sources
    prefix = source.uri.rstrip("/") + "/"
    with _writer(uri) as write:
        for one in finished:
            rows = read_part(job.folder, one.part, ("path", "label", "status", *POINTS))
            rows = _with_names(rows.filter(pc.equal(rows["status"], "aligned")), source).drop_columns(["status"])
            if source.kind == "folder":
                paths = [path.removeprefix(prefix) for path in rows["path"].to_pylist()]
                rows = rows.set_column(0, "path", pa.array(paths, pa.large_string()))
            write(rows)


def read_request(uri: str) -> bytes | None:
    """Return the request in a report's metadata; None: there is no such file."""
    if not filesystem.exists(uri):
        return None
    with reading.open_input(uri) as file, contextlib.suppress(pa.ArrowException, OSError, ValueError):
        return bytes((pq.read_schema(file).metadata or {}).get(_METADATA, b""))
    return b""


def _with_names(rows: pa.Table, source: ImageSource) -> pa.Table:
    """Replace numbers of labels by their names, -1 by null."""
    numbers = rows["label"].combine_chunks()
    known = pc.if_else(pc.less(numbers, 0), pa.scalar(None, pa.int32()), numbers)
    names = pc.cast(known, pa.string()) if source.names is None else pc.take(pa.array(source.names, pa.string()), known)
    return rows.set_column(rows.column_names.index("label"), "label", names)


@contextlib.contextmanager
def _writer(uri: str, request: bytes = b"") -> Iterator[Any]:
    """Yield a function that appends a table; all have the same columns."""
    with filesystem.atomic_write(uri) as file, contextlib.ExitStack() as stack:
        writer: Any = None

        def write(rows: pa.Table) -> None:
            nonlocal writer
            rows = rows.replace_schema_metadata({_METADATA: request} if request else None)
            if writer is None:
                writer = stack.enter_context(_open(uri, file, rows.schema))
            writer.write_table(rows)

        yield write


def _open(uri: str, file: BinaryIO, schema: pa.Schema) -> Any:
    is_parquet = filesystem.file_name(uri).endswith(".parquet")
    return pq.ParquetWriter(file, schema) if is_parquet else csv.CSVWriter(file, schema)
