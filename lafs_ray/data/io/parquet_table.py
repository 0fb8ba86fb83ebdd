"""Parquet tables read within bounds: a few bytes may stand for millions of rows, or for the same long text in each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

# Tables may take ten times their file, and this much more. Encodings of runs have no upper limit of their own.
_FREE_BYTES = 128 << 20
_MOST_FACTOR = 8
_BATCH_ROWS = 4096


def read_parquet(file: Any, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a table.

    Args:
        file: opened for reading, seekable.
        columns: those to read; None: all.

    Raises:
        pa.ArrowException, OSError, ValueError, LookupError: the file is damaged (`DAMAGE` of `text_table`), or would
            take far more memory than it has bytes.
    """
    limit = _FREE_BYTES + _MOST_FACTOR * file.seek(0, 2)
    file.seek(0)
    schema = pq.read_schema(file)
    file.seek(0)
    # As codes into their different values, so that repeated text is counted before it is repeated.
    text = [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
    parquet = pq.ParquetFile(file, read_dictionary=text)
    metadata = parquet.metadata
    claimed = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    if claimed > limit:
        raise _too_large(claimed, limit)
    batches, total = [], 0
    for batch in parquet.iter_batches(_BATCH_ROWS, columns=None if columns is None else list(columns)):
        total += sum(_plain_bytes(column) for column in batch.columns) + batch.num_rows
        if total > limit:
            raise _too_large(total, limit)
        batches.append(pa.record_batch([_plain(column) for column in batch.columns], names=batch.schema.names))
    if not batches:
        return pa.schema([schema.field(name) for name in columns or schema.names], schema.metadata).empty_table()
    return pa.Table.from_batches(batches).replace_schema_metadata(schema.metadata)


def metadata_text(schema: pa.Schema) -> dict[str, str]:
    """Return the metadata of a schema as text; what is no UTF-8 is replaced, as any program may have written it."""
    return {k.decode("utf-8", "replace"): v.decode("utf-8", "replace") for k, v in (schema.metadata or {}).items()}


def _too_large(size: int, limit: int) -> ValueError:
    return ValueError(f"{size:,} bytes or more of values in a file for at most {limit:,}")


def _plain_bytes(column: pa.Array) -> int:
    """Return the memory that a column takes without a dictionary."""
    if not pa.types.is_dictionary(column.type):
        return int(column.nbytes)
    if pa.types.is_primitive(column.type.value_type):
        return 8 * len(column)
    lengths = pc.take(pc.binary_length(column.dictionary), column.indices)
    return int(pc.sum(lengths).as_py() or 0) + 8 * len(column)


def _plain(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
