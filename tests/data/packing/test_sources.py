from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lafs_ray.data.packing.lists import read_list
from lafs_ray.data.packing.source_factory import open_source
from lafs_ray.data.packing.sources import ImageFileSource, RecordSource
from lafs_ray.errors import DataError
from tests.data.packing.sets import write_folder
from tests.training.faces import face_jpegs, write_face_set

POINTS = [38.3, 51.7, 73.5, 51.5, 56.0, 71.7, 41.5, 92.4, 70.7, 92.2]


def refusal(path: Path, landmarks: Path | None = None) -> DataError:
    with pytest.raises(DataError) as raised:
        open_source(str(path), None if landmarks is None else str(landmarks))
    return raised.value


def test_folder__labels_are_the_sorted_names_of_its_subfolders(tmp_path: Path) -> None:
    """Classes sort by name, then images; PNG is included, other files are not; folders may nest."""
    write_folder(tmp_path, {"b": 2, "a": 1, "a-b": 1, "c d": 1})
    (tmp_path / "a" / "deep").mkdir()
    (tmp_path / "a" / "deep" / "x.PNG").write_bytes(b"png")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    source = open_source(str(tmp_path))
    assert isinstance(source, ImageFileSource)
    assert source.names == ["a", "a-b", "b", "c d"]
    assert source.files.to_pylist() == [*("a/0.jpg", "a/deep/x.PNG", "a-b/0.jpg", "b/0.jpg", "b/1.jpg", "c d/0.jpg")]
    rows = list(source.read(1, 6))
    assert [row.label for row in rows] == [0, 1, 2, 2, 3]
    assert rows[0].image == b"png"
    assert rows[4].image == (tmp_path / "c d" / "0.jpg").read_bytes()
    assert rows[4].name == str(tmp_path / "c d" / "0.jpg")


def test_folder__without_subfolders_has_no_labels(tmp_path: Path) -> None:
    """Images directly in a folder have no labels, which pretraining does not need."""
    (tmp_path / "0.jpg").write_bytes(b"one")
    source = open_source(str(tmp_path))
    assert [row.label for row in source.read(0, 1)] == [-1]
    assert source.num_identities == 0


def test_folder__refused(tmp_path: Path) -> None:
    """An empty folder, and images both in subfolders and outside, are errors."""
    (tmp_path / "empty").mkdir()
    assert refusal(tmp_path / "empty").found == "none of either"
    write_folder(tmp_path / "mixed", {"a": 1})
    (tmp_path / "mixed" / "stray.jpg").write_bytes(b"")
    found = "1 of 2 images directly in the folder (stray.jpg), the others in subfolders"
    assert refusal(tmp_path / "mixed").found == found
    assert "not a .rec file" in refusal(tmp_path / "mixed" / "stray.jpg").found


def test_folder__image_that_changes_stops(tmp_path: Path) -> None:
    """An image rewritten or deleted after listing stops the packing with its name."""
    write_folder(tmp_path, {"a": 2})
    source = open_source(str(tmp_path))
    os.utime(tmp_path / "a" / "1.jpg", ns=(10**18, 10**18))
    with pytest.raises(DataError, match=r"a/1\.jpg") as raised:
        list(source.read(0, 2))
    assert "modified at 1000000000.000" in raised.value.found
    (tmp_path / "a" / "1.jpg").unlink()
    with pytest.raises(DataError, match=r"a/1\.jpg"):
        list(source.read(0, 2))


def test_list__csv_and_parquet(tmp_path: Path) -> None:
    """With and without a header, with names or numbers as labels; a missing file is an error."""
    write_folder(tmp_path / "images", {"a": 1, "b": 2})
    names = ["images/b/1.jpg", str(tmp_path / "images" / "a" / "0.jpg"), "images/gone.jpg"]
    plain = "".join(f"{name},{label}\n" for name, label in zip(names, [70, 5, 70], strict=True))
    (tmp_path / "plain.csv").write_text(plain)
    (tmp_path / "named.csv").write_text("path,label\n" + plain.replace("70", "zoe").replace(",5", ",al"))
    pq.write_table(pa.table({"label": [70, 5, 70], "path": names}), tmp_path / "list.parquet")
    for name, meaning in (("plain.csv", ["5", "70"]), ("named.csv", ["al", "zoe"]), ("list.parquet", ["5", "70"])):
        source = open_source(str(tmp_path / name))
        rows = list(source.read(0, 3))
        assert source.names == meaning
        assert [row.label for row in rows] == [1, 0, 1]
        assert rows[0].image == (tmp_path / "images" / "b" / "1.jpg").read_bytes()
        assert rows[1].image == (tmp_path / "images" / "a" / "0.jpg").read_bytes()
        assert rows[2].error == "found no such file; expected an image"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("header", ["path,label", "Path,Label", '"path","label"'])
def test_list__header_of_other_programs(tmp_path: Path, encoding: str, header: str) -> None:
    """A header may have capitals, quotes and the byte order mark of Excel."""
    (tmp_path / "a.csv").write_text(f"{header}\nx.jpg,10\ny.jpg,9\n", encoding=encoding)
    source = open_source(str(tmp_path / "a.csv"))
    assert isinstance(source, ImageFileSource)
    assert source.files.to_pylist() == ["x.jpg", "y.jpg"]
    assert source.names == ["9", "10"]


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        (["7", "-1", "", "7"], ["7"], [0, -1, -1, 0]),
        (["zoe", "", "al", "zoe"], ["al", "zoe"], [1, -1, 0, 1]),
        (["7", "NA", "8", "7"], ["7", "8"], [0, -1, 1, 0]),
        (["NA", "zoe", "", "nan"], ["NA", "nan", "zoe"], [0, 2, -1, 1]),
        (["", "", "", ""], [], [-1, -1, -1, -1]),
    ],
)
def test_list__images_without_label(tmp_path: Path, labels: list[str], names: list[str], numbers: list[int]) -> None:
    """An empty cell has no label, nor has -1 or NA among numbers; among names NA is a label."""
    lines = "".join(f"{number}.jpg,{label}\n" for number, label in enumerate(labels))
    (tmp_path / "a.csv").write_text("path,label\n" + lines)
    source = open_source(str(tmp_path / "a.csv"))
    assert isinstance(source, ImageFileSource)
    assert source.names == names
    assert source.labels.tolist() == numbers


def test_list__other_columns_are_ignored(tmp_path: Path) -> None:
    """A list may have other columns, in any order."""
    (tmp_path / "a.csv").write_text("score,label,path\n0.5,3,x.jpg\n0.1,4,y.jpg\n")
    boxes = {"path": ["x.jpg", "y.jpg"], "x": [1, 2], "y": [3, 4], "tables": ["a", "b"]}
    pq.write_table(pa.table(boxes), tmp_path / "a.parquet")
    for name, labels in (("a.csv", [0, 1]), ("a.parquet", [-1, -1])):
        source = open_source(str(tmp_path / name))
        assert isinstance(source, ImageFileSource)
        assert source.files.to_pylist() == ["x.jpg", "y.jpg"]
        assert source.labels.tolist() == labels


def test_list__with_landmarks(tmp_path: Path) -> None:
    """Ten numbers a row are five points; a list may have them with or without labels."""
    numbers = ",".join(map(str, POINTS))
    (tmp_path / "a.csv").write_text(f"x.jpg,3,{numbers}\ny.jpg,4,{numbers}\n")
    (tmp_path / "b.csv").write_text(f"x.jpg,{numbers}\n")
    for name, labels in (("a.csv", [0, 1]), ("b.csv", [-1])):
        source = open_source(str(tmp_path / name))
        assert isinstance(source, ImageFileSource)
        assert source.landmarks is not None
        np.testing.assert_allclose(source.landmarks[0].ravel(), POINTS, rtol=1e-6)
        assert source.labels.tolist() == labels


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "an empty file"),
        ("a.jpg,1,2\n", "3 columns"),
        ("path,label\n", "no rows"),
        ("path,label\na.jpg\n", "Expected 2 columns, got 1"),
        ("a.jpg,1.5\n", "the label '1.5'"),
        ("path,x1,y1\na.jpg,1,2\n", "2 of 10 landmark columns: x1, y1"),
        ("a.jpg,1," + ",".join("abcdefghij") + "\n", "invalid value 'a'"),
        ("a.jpg,1," + ",".join(["0.5"] * 10) + "\n", "landmarks up to 0.5: fractions"),
        ("path,lable\na.jpg,1\n", "a column 'lable': did you mean 'label'?"),
        ("path;label\na.jpg;1\n", "columns separated by ';'"),
        ("a.jpg\t1\n", "columns separated by '\\t'"),
        ("file,person\na.jpg,1\n", "a first line without an image path: 'file,person'"),
    ],
)
def test_list__refused(tmp_path: Path, text: str, found: str) -> None:
    """A list of another form is an error that names the problem."""
    (tmp_path / "list.csv").write_text(text)
    error = refusal(tmp_path / "list.csv")
    assert found in error.found
    assert str(tmp_path / "list.csv") in error.subject


def test_list__damaged_parquet(tmp_path: Path) -> None:
    """A Parquet file with any byte changed, or columns of other types or repeated, is read or refused by name."""
    path, names = tmp_path / "a.parquet", [f"{number}.jpg" for number in range(20)]
    for columns in ([[{"a": 1}]], [[[1]]], [[b"\xff"]], [["a"], ["b"]]):
        pq.write_table(pa.Table.from_arrays([pa.array(one) for one in columns], ["path"] * len(columns)), path)
        with pytest.raises(DataError, match=r"a\.parquet"):
            read_list(str(path))
    pq.write_table(pa.table({"path": names, "label": range(20)}), path)
    sound, num_refused = path.read_bytes(), 0
    for position in range(0, len(sound), 3):
        path.write_bytes(sound[:position] + bytes([sound[position] ^ 0x55]) + sound[position + 1 :])
        try:
            read_list(str(path))
        except DataError as error:
            num_refused += 1
            assert error.subject.startswith(str(path))  # noqa: PT017 - most positions are refused, not all
    assert num_refused > 50


def test_list__that_changes_stops(tmp_path: Path) -> None:
    """The list is checked again before each range of records."""
    (tmp_path / "list.csv").write_text("a.jpg,1\n")
    source = open_source(str(tmp_path / "list.csv"))
    (tmp_path / "list.csv").write_text("a.jpg,1\nb.jpg,1\n")
    with pytest.raises(DataError, match=r"list\.csv"):
        list(source.read(0, 1))


def test_landmarks__of_a_folder(tmp_path: Path) -> None:
    """They are found by path relative to the folder; an image without them is an error."""
    write_folder(tmp_path / "images", {"a": 2})
    numbers = ",".join(map(str, POINTS))
    (tmp_path / "points.csv").write_text(f"a/1.jpg,{numbers}\nother.jpg,{numbers}\n")
    source = open_source(str(tmp_path / "images"), str(tmp_path / "points.csv"))
    first, second = source.read(0, 2)
    assert first.error == "found no landmarks; expected five points"
    assert second.error == ""
    assert second.landmarks is not None
    np.testing.assert_allclose(second.landmarks.ravel(), POINTS, rtol=1e-6)


def test_list__without_any_landmark(tmp_path: Path) -> None:
    """Empty columns are not fractions of a side: each image is reported without landmarks."""
    columns = "path," + ",".join(f"{axis}{number}" for number in range(1, 6) for axis in "xy")
    (tmp_path / "a.csv").write_text(f"{columns}\nx.jpg{',' * 10}\n")
    (tmp_path / "x.jpg").write_bytes(b"one")
    (row,) = open_source(str(tmp_path / "a.csv")).read(0, 1)
    assert row.error == "found no landmarks; expected five points"


def test_landmarks__that_match_nothing(tmp_path: Path) -> None:
    """Paths that match no image, and landmarks for .rec files, are errors."""
    write_folder(tmp_path / "images", {"a": 1})
    (tmp_path / "points.csv").write_text("images/a/0.jpg," + ",".join(map(str, POINTS)) + "\n")
    error = refusal(tmp_path / "images", tmp_path / "points.csv")
    assert error.found == "paths such as images/a/0.jpg"
    assert "a/0.jpg" in error.expected
    write_face_set(tmp_path / "train.rec", 2, 2)
    assert "landmarks for" in refusal(tmp_path / "train.rec", tmp_path / "points.csv").found


def test_records__that_change_stop(tmp_path: Path) -> None:
    """A .rec modified while it is read stops the packing, even with the same size."""
    write_face_set(tmp_path / "train.rec", 2, 4)
    source = open_source(str(tmp_path / "train.rec"))
    assert isinstance(source, RecordSource)
    assert [row.label for row in source.read(2, 6)] == [0, 0, 1, 1]
    rows = source.read(0, 8)
    assert next(rows).image == face_jpegs(8)[0]
    os.utime(tmp_path / "train.rec", ns=(10**18, 10**18))
    with pytest.raises(DataError, match=r"train\.rec") as raised:
        list(rows)
    assert "as at the start" in raised.value.expected
