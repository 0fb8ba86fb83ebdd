"""Lists of images as CSV or Parquet: path, optional label, and optional five landmarks (x, y).

The columns of a Parquet file, and of a CSV with a header (`path,label,x1,y1,…,x5,y5`), are found by name. A CSV without
a header has 1 column (path), 2 (path, label), 11 (path, landmarks) or 12 (all). Other columns are ignored, but a likely
misspelling of `label` is an error. Labels are texts, whatever the type of the column (`labels.py`).
"""

from __future__ import annotations

import difflib
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv

from lafs_ray.data.io import filesystem, reading
from lafs_ray.data.io.parquet_table import read_parquet
from lafs_ray.data.io.text_table import DAMAGE
from lafs_ray.data.label_names import as_text, label_names
from lafs_ray.errors import DataError

logger = logging.getLogger(__name__)

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
        labels: strings, null where an image has none; None: the list has none.
        landmarks: float32 [n, 5, 2]; None: the list has none.
    """

    paths: pa.Array
    labels: pa.Array | None
    landmarks: NDArray[np.float32] | None


def read_list(uri: str) -> ImageList:
    """Read a list.

    Raises:
        DataError: the file is missing or empty, has other columns, a row without a path, a label that is a fraction, or
            landmarks that are not numbers of pixels.
    """
    with reading.open_input(uri) as file:
        if file.size() == 0:
            raise DataError(uri, found="an empty file", expected="one image per line", fix=_FIX)
        is_parquet = filesystem.file_name(uri).endswith(".parquet")
        try:
            if is_parquet:
                table = read_parquet(file)
                return _columns(uri, table, table.column_names, first_row=1)
            return _columns(uri, *_read_csv(file))
        except DAMAGE as error:
            raise _bad(uri, str(error).strip()) from error


def _columns(uri: str, table: pa.Table, names: list[str], first_row: int) -> ImageList:
    """Check the columns of a list.

    Args:
        uri: of the list.
        table: its columns.
        names: of all columns, those not in the table included.
        first_row: number of the first row, for messages.
    """
    if table.num_rows == 0:
        raise _bad(uri, "no rows")
    if "path" not in names:
        raise _bad(uri, f"columns {', '.join(names[:12])}")
    _reject_misspelling(uri, names)
    has_points = [name for name in _POINTS if name in names]
    if has_points and len(has_points) < len(_POINTS):
        raise _bad(uri, f"{len(has_points)} of 10 landmark columns: {', '.join(has_points)}")
    table = table.select([name for name in ("path", "label", *has_points) if name in names])
    paths = as_text(table["path"])
    if paths is None:
        raise _bad(uri, f"paths of type {table['path'].type}")
    has_path = pc.not_equal(pc.fill_null(paths, ""), "").to_numpy(zero_copy_only=False)
    if not has_path.all():
        _reject_rows_without_path(uri, table, np.flatnonzero(~has_path), first_row)
        table, paths = table.filter(pa.array(has_path)), paths.filter(pa.array(has_path))
        if not len(paths):
            raise _bad(uri, "no rows")
    labels = None
    if "label" in names:
        labels = label_names(table["label"], lambda row, found: _bad(_at(uri, row, has_path, first_row), found))
    return ImageList(paths, labels, _landmarks(uri, table) if has_points else None)


def _at(uri: str, row: int | None, has_path: NDArray[np.bool_], first_row: int) -> str:
    """Return the list, or its row that is the row-th with a path."""
    return uri if row is None else f"{uri}, row {int(np.flatnonzero(has_path)[row]) + first_row}"


def _reject_rows_without_path(uri: str, table: pa.Table, rows: NDArray[np.int64], first_row: int) -> None:
    """Count rows without any value, as spreadsheets leave them; raise for one that lacks only its path."""
    for row in rows.tolist():
        values = [table[name][row].as_py() for name in table.column_names]
        if any(value is not None and str(value).strip() for value in values):
            raise _bad(f"{uri}, row {row + first_row}", "no path")
    first = f"the first is row {rows[0] + first_row}"
    logger.warning("%s: %d empty row%s passed over; %s", uri, len(rows), "s" * (len(rows) > 1), first)


def _bad(uri: str, found: str) -> DataError:
    fix = "save the list as UTF-8 (in Excel: CSV UTF-8)" if "UTF8" in found or "UTF-16" in found else _FIX
    return DataError(uri, found=found, expected="a list of images", fix=fix)


def _reject_misspelling(uri: str, names: list[str]) -> None:
    """Reject a column such as `lable` without a `label`: all images would lose their labels."""
    for name in names if "label" not in names else ():
        if difflib.get_close_matches(name.lower(), ["label"], cutoff=0.75):
            raise _bad(uri, f"a column {name!r}: did you mean 'label'?")


def _read_csv(file: Any) -> tuple[pa.Table, list[str], int]:
    """Return the columns that a list has, the names of all columns, and the number of the first row."""
    start = bytes(file.read_at(1 << 16, 0))
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise pa.ArrowInvalid("text in UTF-16")
    lines = start.decode("utf-8-sig", "replace").splitlines()
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
    used = [name for name in ("path", "label", *_POINTS) if name in names]
    if repeated := [name for name in used if names.count(name) > 1]:
        raise pa.ArrowInvalid(f"the column {repeated[0]} twice in the first line: {head[:80]!r}")

    def read(*, use_threads: bool) -> pa.Table:
        file.seek(0)
        return csv.read_csv(
            file,
            csv.ReadOptions(column_names=names, skip_rows=int(names is lowered), use_threads=use_threads),
            convert_options=csv.ConvertOptions(
                # Paths and labels may look like numbers or times.
                column_types={"path": pa.large_string(), "label": pa.large_string()}
                | dict.fromkeys(_POINTS, pa.float32()),
                include_columns=used,
                strings_can_be_null=False,
            ),
        )

    try:
        table = read(use_threads=True)
    except DAMAGE:
        table = read(use_threads=False)  # Only the serial reader numbers rows.
    return table, names, 1 + int(names is lowered)


def _landmarks(uri: str, table: pa.Table) -> NDArray[np.float32]:
    columns = [table[name].cast(pa.float32()).to_numpy() for name in _POINTS]
    points = np.stack(columns, axis=1).astype(np.float32).reshape(-1, 5, 2)
    largest = float(np.nanmax(np.abs(points), initial=0))
    if 0 < largest <= _MAX_FRACTION:
        found = f"landmarks up to {largest:g}: fractions of the image's sides (expected pixels)"
        raise _bad(uri, found)
    return points
