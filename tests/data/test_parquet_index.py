"""Parquet files with images as face sets."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lafs_ray.data import row_reader
from lafs_ray.data.face_set import open_faces
from lafs_ray.data.io.reading import ByteRanges
from lafs_ray.data.set_sample import row_group_note
from lafs_ray.data.shard_layout import RowGroups
from lafs_ray.errors import DataError
from tests.data.record_sets import all_rows, refusal
from tests.data.shards import write_parquet

IMAGES = [b"one", b"two", b"three", b"four", b"five"]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(IMAGES, pa.binary()),
        pa.array(IMAGES, pa.large_binary()),
        pa.array(IMAGES, pa.binary_view()),
        pa.array(IMAGES, pa.binary()).dictionary_encode(),
        pa.array([{"path": "x", "bytes": image, "more": 1} for image in IMAGES]),
    ],
)
def test_images__in_columns_of_every_type(tmp_path: Path, column: pa.Array) -> None:
    """Any order with repeats, over row groups of two."""
    faces = open_faces(str(write_parquet(tmp_path / "x.parquet", 2, image=column)))
    index = np.array([4, 0, 0, 3, 1])
    rows = faces.read(index)
    assert rows.images == [IMAGES[n] for n in index]
    assert rows.key.tolist() == index.tolist()
    assert rows.label.tolist() == [-1] * 5
    assert faces.num_identities is None
    assert not any(rows.errors)


@pytest.mark.parametrize(
    ("labels", "numbers", "identities"),
    [
        (pa.array([3, None, 3, -1, 900]), [3, -1, 3, -1, 900], 2),
        (pa.array(["b", "a", None, "b", ""]), [1, 0, -1, 1, -1], 2),
        (pa.array(["b", "a", "a", "b", "c"]).dictionary_encode(), [1, 0, 0, 1, 2], 3),
        (pa.array([1.0, float("nan"), 2.0, 1.0, -1.0]), [1, -1, 2, 1, -1], 2),
        (pa.array([1 << 63, 5, 5, 5, 5], pa.uint64()), [1, 0, 0, 0, 0], 2),
        (pa.nulls(5), [-1] * 5, None),
    ],
)
def test_labels__of_every_type(tmp_path: Path, labels: pa.Array, numbers: list[int], identities: int | None) -> None:
    """Integers stay, names are numbered, nulls and negative numbers are no labels."""
    faces = open_faces(str(write_parquet(tmp_path / "x.parquet", 2, image=IMAGES, label=labels)))
    assert faces.labels().tolist() == all_rows(faces).label.tolist() == numbers
    assert faces.num_identities == identities


def test_labels__names_of_a_class_label(tmp_path: Path) -> None:
    """Hugging Face's ClassLabel: integers with names in the schema's metadata."""
    info = {"info": {"features": {"label": {"names": ["ann", "bob"], "_type": "ClassLabel"}}}}
    table = pa.table({"jpg": IMAGES, "label": [1, 0, 1, 0, 1]}).replace_schema_metadata(
        {"huggingface": json.dumps(info)}
    )
    pq.write_table(table, tmp_path / "x.parquet")
    faces = open_faces(str(tmp_path / "x.parquet"))
    assert faces.label_names == ("ann", "bob")
    assert faces.labels().tolist() == [1, 0, 1, 0, 1]


def test_errors__stay_in_their_row(tmp_path: Path) -> None:
    """A null, no bytes, and a path alone, which is named."""
    images = [b"one", None, {"bytes": b"", "path": None}, {"bytes": None, "path": "a.jpg"}]
    faces = open_faces(str(write_parquet(tmp_path / "x.parquet", image=images, label=[1, 2, 3, 4])))
    rows = all_rows(faces)
    assert rows.images == [b"one", b"", b"", b""]
    assert rows.label.tolist() == [1, -1, -1, -1]
    for row, words in enumerate(("no image (null)", "0 bytes", "no bytes, only the path 'a.jpg'"), 1):
        assert rows.errors[row] == f"{tmp_path}/x.parquet, row {row}: found {words}; expected an encoded image"


def test_errors__damaged_pages_are_those_of_their_row_group(tmp_path: Path) -> None:
    """Zeros where a row group was: its rows are errors, the others are read."""
    path = write_parquet(tmp_path / "x.parquet", 2, image=[image * 100 for image in IMAGES])
    faces = open_faces(str(path))
    content = bytearray(path.read_bytes())
    place = content.index(b"threethree") - 60
    content[place : place + 400] = bytes(400)
    path.write_bytes(content)
    rows = all_rows(open_faces(str(path)))
    assert [bool(error) for error in rows.errors] == [False, False, True, True, False]
    assert f"{path}, row 2: found a row group that cannot be read" in rows.errors[2]
    assert rows.images[4] == b"five" * 100
    assert faces.num_images == 5


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"path": ["a.jpg"], "label": [1]}, "columns path, label"),
        ({"image": [{"bytes": None, "path": "a.jpg"}] * 3}, "no bytes in the first 3 rows, only paths such as a.jpg"),
        ({"image": []}, "no rows"),
        ({"a": pa.array([{"bytes": b"1"}]), "b": pa.array([{"bytes": b"1"}])}, "several with images: a, b"),
        ({"image": [b"1"], "label": pa.array([[1]])}, "a column label of type list"),
        ({"image": [b"1", b"2"], "label": ["a" * 2000, "b"]}, "a label of 2000 characters"),
    ],
)
def test_open__refused(tmp_path: Path, columns: dict[str, Any], words: str) -> None:
    """Tables without images, or with paths alone, are no sets of shards."""
    assert words in refusal(write_parquet(tmp_path / "x.parquet", **columns)).found


@pytest.mark.parametrize(
    "content", [b"", b"PAR1", b"PARE" + bytes(100) + b"PARE", b"PAR1" + bytes(100) + b"PAR1"], ids=len
)
def test_open__no_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    """Empty, cut, encrypted and other files."""
    (tmp_path / "x.parquet").write_bytes(content)
    error = refusal(tmp_path / "x.parquet")
    assert error.subject == str(tmp_path / "x.parquet")
    assert error.found


def test_read__a_file_that_changed_or_went(tmp_path: Path) -> None:
    """It stops the read by name, also where the row group is still in memory."""
    path = write_parquet(tmp_path / "x.parquet", image=IMAGES)
    faces = open_faces(str(path))
    all_rows(faces)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"three", b"THREE"))
    with pytest.raises(DataError, match=r"a file modified since"):
        all_rows(faces)
    assert all_rows(open_faces(str(path))).images[2] == b"THREE"
    path.unlink()
    with pytest.raises(DataError, match="no such file"):
        all_rows(faces)


def test_read__each_row_group_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call reads the row groups that it needs once each; from front to back, a file is read once."""
    faces = open_faces(str(write_parquet(tmp_path / "x.parquet", 10, image=[b"%d" % n for n in range(50)])))
    reads = []
    batches = row_reader._batches
    monkeypatch.setattr(row_reader, "_batches", lambda *args: reads.append(args[2]) or batches(*args))
    row_reader._whole_group.cache_clear()
    faces.read(np.array([49, 0, 3, 41, 5, 0]))
    assert reads == [0, 4]
    row_reader._whole_group.cache_clear()
    reads.clear()
    assert [faces.read(np.arange(n, n + 5)).images[0] for n in range(0, 50, 5)] == [b"%d" % n for n in range(0, 50, 5)]
    assert reads == [0, 1, 2, 3, 4]


def test_read_rows__of_a_store_with_no_thread_between_two_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row groups are read at once, but no thread is there that a generator left behind would wait for."""
    images = [b"%d" % n for n in range(50)]
    faces = open_faces(str(write_parquet(tmp_path / "x.parquet", 10, image=images)))
    (uri,), (layout,) = faces.shard_uris, faces.layouts
    assert isinstance(layout, RowGroups)
    monkeypatch.setattr(row_reader, "local_path", lambda uri: None)
    before = threading.active_count()
    rows = row_reader.read_rows([(ByteRanges(uri, np.arange(50), np.ones(50, np.int64)), layout)])
    assert next(rows) == (b"0", "")
    assert threading.active_count() == before
    assert [image for image, _ in rows] == images[1:]


def test_read__large_row_groups_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups too large to keep are read up to the last row needed."""
    monkeypatch.setattr(row_reader, "_KEPT_BYTES", 10)
    monkeypatch.setattr(row_reader, "_BATCH_ROWS", 7)
    images = [b"%d" % n for n in range(50)]
    faces = open_faces(str(write_parquet(tmp_path / "x.parquet", 25, image=images)))
    index = np.random.default_rng(0).permutation(50)
    assert faces.read(index).images == [images[n] for n in index]


def test_sample__few_row_groups(tmp_path: Path) -> None:
    """A sample of a set of many row groups reads eight of them, also of a subset."""
    faces = open_faces(str(write_parquet(tmp_path / "x.parquet", 10, image=[b"x"] * 1000)))
    for one in (faces, faces.subset(np.arange(0, 1000, 3))):
        sample = one.sample(64)
        rows = one.read(sample).key
        assert len(np.unique(rows // 10)) <= 8
        assert rows.min() == 0
        assert rows.max() >= 990
    assert len(faces.sample(64)) == 64


def test_row_group_note__chunks_much_smaller(tmp_path: Path) -> None:
    """The note names both numbers; chunks as large as row groups need none, nor do other sets."""
    faces = open_faces(str(write_parquet(tmp_path / "x.parquet", 100, image=[b"x"] * 1000)))
    note = row_group_note(faces.layouts, 4)
    assert note is not None
    assert note.startswith("row groups of 100 images, each of which is read whole for every 4 of them: set data.chunk")
    assert row_group_note(faces.layouts, 100) is None
    assert row_group_note((), 4) is None
    paired = row_group_note(faces.layouts, 100, has_pairs=True)
    assert paired is not None
    assert "pack the set" in paired
    assert row_group_note((), 4, has_pairs=True) is None
