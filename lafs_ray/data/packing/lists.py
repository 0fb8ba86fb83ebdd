"""Lists of images as CSV or Parquet: path, optional label, and optional five landmarks (x, y).

The columns of a Parquet file, and of a CSV with a header (`path,label,x1,y1,…,x5,y5`), are found by name. A CSV without
a header has 1 column (path), 2 (path, label), 11 (path, landmarks) or 12 (all). Other columns are ignored, but a likely
misspelling of `label` is an error.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv

from lafs_ray.data.io import filesystem, reading
from lafs_ray.data.io.parquet_table import read_parquet
from lafs_ray.data.io.text_table import DAMAGE
from lafs_ray.errors import DataError

LIST_SUFFIXES = (".csv", ".parquet")
_POINTS = [f"{axis}{number}" for number in range(1, 6) for axis in "xy"]
_HEADERS = {1: ["path"], 2: ["path", "label"]}
_HEADERS |= {11: ["path", *_POINTS], 12: ["path", "label", *_POINTS]}
# Landmarks that are all below it are fractions of the image's sides, not pixels.
_MAX_FRACTION = 2.0
_FIX = "write comma-separated columns path, label (and x1, y1 … x5, y5 for landmarks)"


@dataclass(frozen=True, eq=False)
class ImageList:
    """Columns of a list of images.

    Args:
        paths: strings [n].
        labels: integers ≥ 0 or strings, null where an image has none; None: the list has none.
        landmarks: float32 [n, 5, 2]; None: the list has none.
    """

    paths: pa.Array
    labels: pa.Array | None
    landmarks: NDArray[np.float32] | None


def read_list(uri: str) -> ImageList:
    """Read a list.

    Raises:
        DataError: the file is missing or empty, has other columns, a row without a path, or landmarks that are not
            numbers of pixels.
    """
    with reading.open_input(uri) as file:
        if file.size() == 0:
            raise DataError(uri, found="an empty file", expected="one image per line", fix=_FIX)
        is_parquet = filesystem.file_name(uri).endswith(".parquet")
        try:
            return _columns(uri, read_parquet(file) if is_parquet else _read_csv(file))
        except DAMAGE as error:
            raise _bad(uri, str(error).strip()) from error


def _columns(uri: str, table: pa.Table) -> ImageList:
    """Check the columns of a list."""
    if table.num_rows == 0:
        raise _bad(uri, "no rows")
    if "path" not in table.column_names:
        raise _bad(uri, f"columns {', '.join(table.column_names[:12])}")
    _reject_misspelling(uri, table.column_names)
    if table["path"].null_count:
        row = table["path"].is_null().index(value=True).as_py()
        raise _bad(f"{uri}, row {row + 1}", "no path")
    has_points = [name for name in _POINTS if name in table.column_names]
    if has_points and len(has_points) < len(_POINTS):
        raise _bad(uri, f"{len(has_points)} of 10 landmark columns: {', '.join(has_points)}")
    return ImageList(
        table["path"].cast(pa.large_string()).combine_chunks(),
        _labels(uri, table) if "label" in table.column_names else None,
        _landmarks(uri, table) if has_points else None,
    )


def _bad(uri: str, found: str) -> DataError:
    return DataError(uri, found=found, expected="a list of images", fix=_FIX)


def _reject_misspelling(uri: str, names: list[str]) -> None:
    """Reject a column such as `lable` without a `label`: all images would lose their labels."""
    for name in names if "label" not in names else ():
        if difflib.get_close_matches(name.lower(), ["label"], cutoff=0.75):
            raise _bad(uri, f"a column {name!r}: did you mean 'label'?")


def _read_csv(file: object) -> pa.Table:
    # Paths may look like numbers or times: only the types of other columns are inferred.
    lines = file.read_at(1 << 16, 0).decode("utf-8-sig", "replace").splitlines()  # type: ignore[attr-defined]
    head = lines[0] if lines else ""
    fields = [field.strip().strip('"') for field in head.split(",")]
    lowered = [field.lower() for field in fields]
    names = lowered if "path" in lowered else _HEADERS.get(len(fields))
    if len(fields) == 1 and (other := next((c for c in ";\t|" if c in head), None)):
        raise pa.ArrowInvalid(f"columns separated by {other!r} in the first line: {head[:80]!r}")
    if names is None:
        raise pa.ArrowInvalid(f"{len(fields)} columns in the first line: {head[:80]!r}")
    if names is not lowered and not set(fields[0]) & set("./\\"):
        # A header with other names, which would be read as an image and its identity.
        raise pa.ArrowInvalid(f"a first line without an image path: {head[:80]!r}")
    file.seek(0)  # type: ignore[attr-defined]
    return csv.read_csv(
        file,
        read_options=csv.ReadOptions(column_names=names, skip_rows=int(names is lowered)),
        convert_options=csv.ConvertOptions(
            column_types={"path": pa.large_string()} | dict.fromkeys(_POINTS, pa.float32()), strings_can_be_null=False
        ),
    )


def _labels(uri: str, table: pa.Table) -> pa.Array:
    """Return integers ≥ 0 or strings; null for an empty cell, or -1 among numbers."""
    column = table["label"].combine_chunks()
    if pa.types.is_integer(column.type):
        numbers = column.cast(pa.int64())
        return pc.if_else(pc.less(numbers, 0), pa.scalar(None, pa.int64()), numbers)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        text = column.cast(pa.large_string())
        return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.large_string()), text)
    if pa.types.is_null(column.type):
        return column.cast(pa.int64())
    raise _bad(uri, f"labels of type {column.type} (expected integers or names)")


def _landmarks(uri: str, table: pa.Table) -> NDArray[np.float32]:
    columns = [table[name].cast(pa.float32()).to_numpy() for name in _POINTS]
    points = np.stack(columns, axis=1).astype(np.float32).reshape(-1, 5, 2)
    largest = float(np.nanmax(np.abs(points), initial=0))
    if 0 < largest <= _MAX_FRACTION:
        found = f"landmarks up to {largest:g}: fractions of the image's sides (expected pixels)"
        raise _bad(uri, found)
    return points


def numbered(labels: pa.Array) -> tuple[NDArray[np.int32], list[str]]:
    """Number the labels 0… in sorted order; return the numbers and the name of each.

    Integers sort as numbers, names by code points. A null becomes -1: no label.
    """
    names = pc.unique(labels).drop_null()
    names = names.take(pc.sort_indices(names))
    numbers = pc.index_in(labels, value_set=names).fill_null(-1)
    return numbers.to_numpy(zero_copy_only=False).astype(np.int32), [str(n) for n in names.to_pylist()]
