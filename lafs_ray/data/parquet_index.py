"""Parquet files with encoded images: the columns of images and labels, and the row groups.

An image is Hugging Face's struct (`bytes`, `path`), or a binary column. A row group is the least that can be read.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lafs_ray.data.io import reading
from lafs_ray.data.io.image_columns import image_columns
from lafs_ray.data.io.json_text import parse_json
from lafs_ray.data.io.parquet_table import read_parquet
from lafs_ray.data.io.reading import record_file_state
from lafs_ray.data.io.text_table import DAMAGE
from lafs_ray.data.set_labels import LABEL_KEYS, FoundLabels
from lafs_ray.data.shard import Shard
from lafs_ray.data.shard_layout import RowGroups
from lafs_ray.errors import DataError

logger = logging.getLogger(__name__)

_FIRST_ROWS = 16
_EXPECTED = "Parquet with a column of encoded images: binary, or a struct with bytes, as Hugging Face writes them"
_FIX = "give a file with the images in it; for a table of paths: lafs pack"


def index_parquet(uri: str) -> tuple[Shard, FoundLabels]:
    """Index the rows of a file by its footer, and read its labels.

    Raises:
        DataError: it is damaged, encrypted or no Parquet; it has no images, or only their paths.
    """
    size_bytes, version = record_file_state(uri)
    try:
        with reading.open_input(uri) as file:
            if not size_bytes:
                raise ValueError("an empty file (0 bytes)")
            parquet = pq.ParquetFile(file)
            schema, metadata = parquet.schema_arrow, parquet.metadata
            columns = _leaves(uri, schema)
            layout = _row_groups(metadata, columns)
            # Each row takes a byte at least; a false footer may claim more of them than there is memory for.
            if not 0 <= (rows := int(layout.starts[-1])) <= size_bytes:
                raise ValueError(f"{rows:,} rows in {size_bytes:,} bytes")
            _require_bytes(uri, file, columns)
            labels = _labels(uri, file, schema)
    except DAMAGE as error:
        found = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(uri, found=found, expected=_EXPECTED, fix="copy the file again") from error
    if not rows:
        raise DataError(uri, found="no rows", expected="images", fix="check the path")
    if labels.column is not None and len(labels.column) != rows:
        found = f"{len(labels.column)} labels for {rows} rows"
        raise DataError(uri, found=found, expected="a label in each row", fix="write the file again")
    numbers = np.arange(rows, dtype=np.int64)
    counts = np.diff(layout.starts)
    sizes = np.repeat(layout.group_bytes // np.maximum(counts, 1), counts)
    return Shard(uri, size_bytes, numbers, numbers, sizes, version=version, layout=layout), labels


def _leaves(uri: str, schema: pa.Schema) -> tuple[str, ...]:
    names = image_columns(schema)
    if len(names) != 1:
        found = f"columns {', '.join(schema.names[:12])}" if not names else f"several with images: {', '.join(names)}"
        fix = _FIX if not names else "keep one of them, or name it image"
        raise DataError(uri, found=found, expected=_EXPECTED, fix=fix)
    kind = schema.field(names[0]).type
    if not pa.types.is_struct(kind):
        return (names[0],)
    index = kind.get_field_index("path")
    path = kind.field(index).type if index >= 0 else pa.null()
    has_path = pa.types.is_string(path) or pa.types.is_large_string(path)
    return (f"{names[0]}.bytes", *([f"{names[0]}.path"] if has_path else []))


def _row_groups(metadata: Any, columns: Sequence[str]) -> RowGroups:
    # Not by column: pyarrow ends the process where the footer of a column is damaged.
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    rows = [group.num_rows for group in groups]
    if any(count < 0 for count in rows):
        raise ValueError("a negative number of rows")
    group_bytes = np.array([max(group.total_byte_size, 0) for group in groups], np.int64)
    return RowGroups(tuple(columns), np.cumsum([0, *rows], dtype=np.int64), group_bytes)


def _require_bytes(uri: str, file: Any, columns: Sequence[str]) -> None:
    """Refuse a file of paths alone, as `datasets` writes one unless images are embedded; its first rows tell."""
    batch = None
    with contextlib.suppress(*DAMAGE):  # Left to the reader.
        batches = pq.ParquetFile(file).iter_batches(_FIRST_ROWS, columns=list(columns), use_threads=False)
        batch = next(batches, None)
    if batch is None or not pa.types.is_struct(batch.column(0).type):
        return
    images = batch.column(0)
    if images.field("bytes").null_count < batch.num_rows:
        return
    first = images.field("path")[0].as_py() if len(columns) > 1 else None
    raise DataError(
        uri,
        found=f"no bytes in the first {batch.num_rows} rows" + (f", only paths such as {first}" if first else ""),
        expected=_EXPECTED,
        fix="embed the images when writing (datasets: embed_table_storage), or pack a list of the paths: lafs pack",
    )


def _labels(uri: str, file: Any, schema: pa.Schema) -> FoundLabels:
    place = f"a column {', '.join(LABEL_KEYS[:-1])} or {LABEL_KEYS[-1]}"
    name = next((name for name in LABEL_KEYS if name in schema.names), None)
    if name is None:
        return FoundLabels(None, place)
    kind = schema.field(name).type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    plain = (pa.types.is_integer, pa.types.is_floating, pa.types.is_string, pa.types.is_large_string, pa.types.is_null)
    if not (any(is_kind(value) for is_kind in plain) or pa.types.is_string_view(value)):
        raise DataError(
            uri, found=f"a column {name} of type {kind}", expected="integers or names as labels", fix="convert it"
        )
    column = read_parquet(file, [name])[name]
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_null(column.type) or column.null_count == len(column):
        return FoundLabels(None, place)
    if pa.types.is_integer(column.type) and not pa.types.is_uint64(column.type):
        return FoundLabels(_joined(column.cast(pa.int64())), place, _class_names(schema, name))
    if pa.types.is_floating(column.type):
        whole = column.cast(pa.float64()).combine_chunks()
        column = pa.chunked_array([pa.array([_number_text(one) for one in whole.to_pylist()], pa.large_string())])
    return FoundLabels(_joined(column.cast(pa.large_string())), place)


def _number_text(value: float | None) -> str | None:
    if value is None or value != value:
        return None
    return str(int(value)) if value.is_integer() else str(value)


def _joined(column: pa.ChunkedArray) -> pa.Array:
    column.validate(full=True)  # Texts that are not UTF-8.
    joined = column.combine_chunks()
    return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined


def _class_names(schema: pa.Schema, column: str) -> tuple[str, ...] | None:
    """Return the names of a Hugging Face ClassLabel; None: the file has none."""
    try:
        info = parse_json((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = info["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else None
