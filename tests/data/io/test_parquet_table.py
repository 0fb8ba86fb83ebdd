"""Parquet tables within bounds of memory."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lafs_ray.data.io.parquet_table import metadata_text, read_parquet


def written(table: pa.Table, **options: object) -> io.BytesIO:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer


@pytest.mark.parametrize("rows", [0, 1, 5000])
def test_read_parquet__equals_pyarrow(rows: int) -> None:
    """Values, types, nulls and order are those of pyarrow's own reader."""
    columns = {
        "path": pa.array([f"a/{i % 7}.jpg" if i % 5 else None for i in range(rows)], pa.string()),
        "label": pa.array(range(rows), pa.int64()),
        "x": pa.array([i / 3 for i in range(rows)], pa.float32()),
        "image": pa.array([b"\x00" * (i % 3) for i in range(rows)], pa.binary()),
        "points": pa.array([[1.0, 2.0]] * rows, pa.list_(pa.float32())),
    }
    buffer = written(pa.table(columns), row_group_size=700)
    assert read_parquet(buffer).equals(pq.read_table(buffer))
    assert read_parquet(buffer, ["label", "path"]).equals(pq.read_table(buffer, columns=["label", "path"]))


@pytest.mark.parametrize("value", ["a" * 20_000, 7])
def test_read_parquet__few_bytes_for_many_rows(value: object) -> None:
    """The same value in millions of rows is a file of kilobytes: refused before they take memory."""
    count = 200_000 if isinstance(value, str) else 40_000_000
    codes = pa.array([0], pa.int32()).take(pa.array([0] * 1000, pa.int32()))
    column = pa.chunked_array([pa.DictionaryArray.from_arrays(codes, pa.array([value]))] * (count // 1000))
    buffer = written(pa.table({"path": column}), compression="zstd", row_group_size=count)
    assert buffer.tell() < 2 << 20
    before = pa.total_allocated_bytes()
    with pytest.raises(ValueError, match="bytes or more of values"):
        read_parquet(buffer)
    assert pa.total_allocated_bytes() - before < 300 << 20


def test_metadata_text__of_any_program() -> None:
    """Names and values that are no UTF-8 do not end a reader."""
    schema = pa.schema([("key", pa.int64())], metadata={b"tool \xe5": b"\xff", b"tool": "é".encode()})
    assert metadata_text(schema) == {"tool \ufffd": "\ufffd", "tool": "é"}
    assert metadata_text(schema.remove_metadata()) == {}
