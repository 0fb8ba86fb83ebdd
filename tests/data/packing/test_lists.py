"""Lists as spreadsheets, pandas, polars and clusterings write them."""

from __future__ import annotations

import logging
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lafs_ray.data.label_names import label_names, numbered
from lafs_ray.data.packing.lists import read_list
from lafs_ray.data.packing.source_factory import open_source
from lafs_ray.errors import DataError
from tests.data.packing.sets import write_folder

TEXTS = ["zoe", "-1", "al", "", "zoe", "-1.0", " -7 "]


def bad(row: int | None, found: str) -> DataError:
    return DataError(f"row {row}", found=found, expected="", fix="")


def names_of(values: Any, kind: pa.DataType | None = None) -> list[str | None]:
    return label_names(pa.chunked_array([pa.array(values, kind)]), bad).to_pylist()


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.string(), pa.large_string(), pa.string_view()),
        *(pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.large_string())),
    ],
)
def test_labels__of_every_type_of_text(kind: pa.DataType) -> None:
    """-1 is no label among names too, whatever holds the text."""
    plain = pa.array(TEXTS)
    column = plain.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else plain.cast(kind)
    names = label_names(pa.chunked_array([column, column]), bad).to_pylist()
    assert names == ["zoe", None, "al", None, "zoe", None, None] * 2


@pytest.mark.parametrize(
    ("values", "kind", "names"),
    [
        ([7, -1, None, 70], pa.int8(), ["7", None, None, "70"]),
        ([7, 1 << 63], pa.uint64(), ["7", str(1 << 63)]),
        ([7.0, float("nan"), -1.0, None], pa.float64(), ["7", None, None, None]),
        ([7.0, -1.0], pa.float32(), ["7", None]),
        ([Decimal(7), Decimal(-1)], pa.decimal128(5, 2), ["7", None]),
        ([None, None], pa.null(), [None, None]),
        (["7.0", "-1.0", "", "nan"], None, ["7", None, None, None]),
        (["7", "7.0", "07"], None, ["7", "7", "07"]),
        (["NA", "7"], None, [None, "7"]),
        (["NA", "zoe", "7.0"], None, ["NA", "zoe", "7.0"]),
    ],
)
def test_labels__of_every_type_of_number(values: list[Any], kind: pa.DataType | None, names: list[str | None]) -> None:
    """Integers are names of identities; negative ones, nan and null are no label; integral fractions are integers."""
    assert names_of(values, kind) == names


@pytest.mark.parametrize(
    ("values", "row"), [([1.0, 2.5], 1), (["1", "2.5"], 1), ([1e300], 0), (["1e300"], 0), ([True], None), ([[1]], None)]
)
def test_labels__that_are_neither_names_nor_integers(values: list[Any], row: int | None) -> None:
    """A fraction is a score, not an identity: its row is named."""
    with pytest.raises(DataError, match=f"row {row}"):
        names_of(values)


def test_numbered__leading_zeros_are_two_identities() -> None:
    """001 and 1 are two; integers sort as numbers only where they are written as such."""
    numbers, names = numbered(pa.array(["1", "001", "10", None, "9"]), by_number=True)
    assert names == ["001", "1", "10", "9"]
    assert numbers.tolist() == [1, 0, 2, -1, 3]
    assert numbered(pa.array(["10", "9"]), by_number=True)[1] == ["9", "10"]
    assert numbered(pa.array(["10", "9"]))[1] == ["10", "9"]


@pytest.mark.parametrize("tail", [",\n", ",\n,\n,\n", '"",""\n', "\n\n", " ,\n"[1:]])
def test_read_list__empty_rows_of_a_spreadsheet(tmp_path: Path, caplog: pytest.LogCaptureFixture, tail: str) -> None:
    """Rows without any value are passed over aloud; one that lacks only its path is named."""
    path = tmp_path / "a.csv"
    path.write_text("path,label\na.jpg,zoe\n" + tail + "b.jpg,al\n")
    with caplog.at_level(logging.WARNING):
        assert read_list(str(path)).paths.to_pylist() == ["a.jpg", "b.jpg"]
    assert ("empty row" in caplog.text and "the first is row 3" in caplog.text) == ("," in tail)
    path.write_text("path,label\na.jpg,zoe\n,\n,al\n")
    with pytest.raises(DataError, match=r"row 4\n.*no path"):
        read_list(str(path))


def test_read_list__encodings(tmp_path: Path) -> None:
    """A list in Latin-1 or UTF-16 is refused with the way to save it; a bad row has its number."""
    path = tmp_path / "a.csv"
    text = "path,label\na.jpg,al\nb.jpg,Jos\u00e9\n"
    path.write_bytes(text.encode("utf-8-sig"))
    assert read_list(str(path)).labels.to_pylist() == ["al", "Jos\u00e9"]
    for encoding in ("latin-1", "utf-16"):
        path.write_bytes(text.encode(encoding))
        with pytest.raises(DataError, match="CSV UTF-8") as raised:
            read_list(str(path))
        assert encoding == "utf-16" or "Row #3" in raised.value.found


def test_read_list__other_columns_do_no_harm(tmp_path: Path) -> None:
    """Unused columns may be repeated, unnamed, or change their type a megabyte into the list."""
    path = tmp_path / "a.csv"
    rows = [f"{number}.jpg,1,{number},," for number in range(60_000)]
    path.write_text("path,label,score,,\n" + "\n".join([*rows, "last.jpg,2,none,,"]))
    assert len(read_list(str(path)).paths) == 60_001
    path.write_text("path,label,label\na.jpg,1,2\n")
    with pytest.raises(DataError, match="the column label twice"):
        read_list(str(path))


@pytest.mark.parametrize("kind", [pa.string_view(), pa.dictionary(pa.int32(), pa.string()), pa.large_string()])
def test_open_source__list_of_polars(tmp_path: Path, kind: pa.DataType) -> None:
    """Paths and labels of any type of text, as polars and categories of pandas are written."""
    write_folder(tmp_path, {"a": 1, "b": 1})
    paths, labels = pa.array(["b/0.jpg", "a/0.jpg"]), pa.array(["-1", "al"])
    if pa.types.is_dictionary(kind):
        paths, labels = paths.dictionary_encode(), labels.dictionary_encode()
    pq.write_table(pa.table({"path": paths.cast(kind), "label": labels.cast(kind)}), tmp_path / "a.parquet")
    rows = list(open_source(str(tmp_path / "a.parquet")).read(0, 2))
    assert [(row.label, row.error) for row in rows] == [(-1, ""), (0, "")]


def test_open_source__categories_of_numbers(tmp_path: Path) -> None:
    """Categories of integers, as pandas writes them, are integers."""
    labels = pa.array([7, 10, 7]).dictionary_encode()
    pq.write_table(pa.table({"path": ["a.jpg", "b.jpg", "c.jpg"], "label": labels}), tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"))
    assert (source.names, source.num_records) == (["7", "10"], 3)


def test_open_source__list_counts_real_bytes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The size of a list is that of its files; repeated paths are counted."""
    write_folder(tmp_path, {"a": 2})
    (tmp_path / "a.csv").write_text("a/0.jpg,1\na/1.jpg,1\ngone.jpg,1\na/1.jpg,2\n")
    sizes = [(tmp_path / "a" / f"{number}.jpg").stat().st_size for number in (0, 1, 1)]
    with caplog.at_level(logging.WARNING):
        assert open_source(str(tmp_path / "a.csv")).size_bytes == sum(sizes)
    assert "1 row of an image that an earlier row has" in caplog.text


def points_csv(path: Path, names: list[str]) -> Path:
    columns = ",".join(f"{axis}{number}" for number in range(1, 6) for axis in "xy")
    values = ",".join(map(str, np.arange(10, 110, 10)))
    path.write_text(f"path,{columns}\n" + "".join(f"{name},{values}\n" for name in names))
    return path


def test_landmarks__twice_or_of_no_image(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A path twice is refused, as one face would be dropped; rows of no image are counted aloud."""
    write_folder(tmp_path / "images", {"a": 2})
    points = points_csv(tmp_path / "points.csv", ["./a/0.jpg", "a/1.jpg", "b/gone.jpg"])
    with caplog.at_level(logging.WARNING):
        source = open_source(str(tmp_path / "images"), str(points))
    assert "1 of 3 rows are of no image, such as b/gone.jpg" in caplog.text
    assert [row.error for row in source.read(0, 2)] == ["", ""]
    points_csv(points, ["a/0.jpg", "a/1.jpg", "a/1.jpg"])
    with pytest.raises(DataError, match="1 path more than once, such as a/1.jpg"):
        open_source(str(tmp_path / "images"), str(points))
