"""Landmarks of another tool, as a cache of a set."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from lafs_ray.data.external_landmarks import ExternalOptions, import_landmarks, open_external
from lafs_ray.data.face_set import FaceSet, open_faces
from lafs_ray.data.landmark_cache import CacheKey, open_landmarks
from lafs_ray.data.points_table import PointsTable
from lafs_ray.errors import ConfigError, DataError
from tests.training.faces import face_jpegs, write_face_set

TOOL = {"landmarks_tool": "tool", "landmarks_tool_version": "1.2"}
N = 4


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> FaceSet:
    """20 faces in one file; keys 1 to 20."""
    path = tmp_path_factory.mktemp("one") / "train.rec"
    write_face_set(path, num_identities=4, images_each=5)
    return open_faces(str(path))


def points(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(0, 111, (count, N, 2)).astype(np.float32)


def table(file: Path, landmarks: Any, metadata: dict[str, str] | None = None, **columns: Any) -> PointsTable:
    """Write columns and open them; landmarks: an array, or anything that pyarrow takes."""
    rows = landmarks.tolist() if isinstance(landmarks, np.ndarray) else landmarks
    content = pa.table({"landmarks": rows, **columns})
    pq.write_table(content.replace_schema_metadata(TOOL if metadata is None else metadata), file)
    return PointsTable(str(file))


def stored(faces: FaceSet, folder: Path) -> NDArray[np.float16]:
    key = CacheKey(open_external(str(folder)).weights, faces.fingerprint, "rgb", N, faces.num_images)
    return open_landmarks(str(folder), key, "").read(np.arange(faces.num_images))


def bring(faces: FaceSet, points_table: PointsTable, folder: Path, **options: Any) -> tuple[int, int]:
    return import_landmarks(faces, "rgb", points_table, str(folder), ExternalOptions(**options))


def test_import__in_any_order_and_form(tmp_path: Path, faces: FaceSet) -> None:
    """Nested or flat lists, of any width and in any order of rows, become the same cache, byte for byte."""
    expected, order = points(20), np.random.default_rng(1).permutation(20)
    flat = pa.array(expected[order].reshape(20, -1).tolist(), pa.list_(pa.float64(), 2 * N))
    nested = pa.array(expected.tolist(), pa.large_list(pa.list_(pa.float32(), 2)))
    forms = {
        "nested": (nested, faces.keys),
        "flat": (flat, faces.keys[order]),
        "lists": (expected[order], faces.keys[order].astype(np.int32)),
    }
    contents = []
    for name, (landmarks, keys) in forms.items():
        folder = tmp_path / name
        assert bring(faces, table(tmp_path / f"{name}.parquet", landmarks, key=keys), folder) == (N, 0)
        assert np.array_equal(stored(faces, folder), expected.astype(np.float16))
        contents.append((folder / "part-00000-of-00001.safetensors").read_bytes())
    assert contents[0] == contents[1] == contents[2]
    external = open_external(str(tmp_path / "flat"))
    assert external.source == "tool 1.2"
    assert external.mean == pytest.approx(expected.mean(axis=0), abs=1e-4)  # float32 sums


def test_import__of_several_files(tmp_path: Path) -> None:
    """Records of equal keys in several files are distinguished by the file's name."""
    for name in "ab":
        write_face_set(tmp_path / f"{name}.rec", num_identities=2, images_each=3)
    faces, expected = open_faces(str(tmp_path)), points(12)
    shard = ["b.rec"] * 6 + ["sub/a.rec"] * 6
    rows, keys = np.concatenate([expected[6:], expected[:6]]), np.tile(np.arange(1, 7), 2)
    bring(faces, table(tmp_path / "points.parquet", rows, key=keys, shard=shard), tmp_path / "out")
    assert np.array_equal(stored(faces, tmp_path / "out"), expected.astype(np.float16))
    with pytest.raises(DataError, match="no column shard, and a set of 2 files"):
        bring(faces, table(tmp_path / "less.parquet", rows, key=keys), tmp_path / "less")


def test_import__by_path(tmp_path: Path, faces: FaceSet) -> None:
    """Image files are recognized among the records by their content, equal ones one by one."""
    jpegs = face_jpegs(20)
    jpegs[7] = jpegs[3]
    write_face_set(tmp_path / "train.rec", num_identities=4, images_each=5, replaced={7: jpegs[3]})
    faces = open_faces(str(tmp_path / "train.rec"))
    (tmp_path / "photos").mkdir()
    for number, jpeg in enumerate(jpegs):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(jpeg)
    order = np.random.default_rng(2).permutation(20)
    order = np.concatenate([order[order != 7], [7]])
    expected = points(20)
    points_table = table(tmp_path / "p.parquet", expected[order], path=[f"{n}.jpg" for n in order])
    bring(faces, points_table, tmp_path / "out", images=str(tmp_path / "photos"))
    assert np.array_equal(stored(faces, tmp_path / "out"), expected.astype(np.float16))
    with pytest.raises(ConfigError, match="--images"):
        bring(faces, points_table, tmp_path / "out")
    (tmp_path / "photos" / "5.jpg").write_bytes(face_jpegs(1, seed=9)[0])
    with pytest.raises(DataError, match=r"1 of 20 rows are of no record of the set: row \d+ \(path 5.jpg\)"):
        bring(faces, points_table, tmp_path / "new", images=str(tmp_path / "photos"))


def test_import__misses(tmp_path: Path, faces: FaceSet) -> None:
    """Records without landmarks are refused with their number; tolerated ones get the mean of the others."""
    expected = points(20)
    rows: list[Any] = expected[:19].tolist()
    rows[4] = None
    misses = table(tmp_path / "p.parquet", rows, key=faces.keys[:19])
    with pytest.raises(DataError, match="no landmarks for 2 of 20 records: train.rec, record 5; train.rec, record 20"):
        bring(faces, misses, tmp_path / "out", max_missing=1)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    assert bring(faces, misses, tmp_path / "out", max_missing=2) == (N, 2)
    mean = np.delete(expected, [4, 19], axis=0).mean(axis=0)
    assert stored(faces, tmp_path / "out")[[4, 19]] == pytest.approx(np.stack([mean, mean]), abs=0.04)  # float16


def refused(faces: FaceSet, folder: Path, landmarks: Any, **columns: Any) -> str:
    with pytest.raises((DataError, ConfigError)) as error:
        bring(faces, table(folder / "p.parquet", landmarks, **columns), folder / "out")
    assert not (folder / "out" / "landmarks.json").exists()
    return str(error.value)


def test_import__rows_that_do_not_fit(tmp_path: Path, faces: FaceSet) -> None:
    """Repeated rows, rows of no record, other counts, shares, NaN and far values are named with counts and rows."""
    good, keys = points(20), faces.keys
    twice, unknown = keys.copy(), keys.copy()
    twice[[3, 4]], unknown[[0, 9]] = twice[0], (0, 77)
    assert "2 of 20 rows are of a record that an earlier row has: row 3 (key 1), row 4 (key 1)" in refused(
        faces, tmp_path, good, key=twice
    )
    assert "2 of 20 rows are of no record of the set: row 0 (key 0), row 9 (key 77)" in refused(
        faces, tmp_path, good, key=unknown
    )
    null_first = [None, *good.tolist()]
    assert "1 of 21 rows are of a record" in refused(faces, tmp_path, null_first, key=[1, *keys])
    ragged = good.tolist()
    ragged[6] = ragged[6][:3]
    assert "3 landmarks in row 6; 4 before it" in refused(faces, tmp_path, ragged, key=keys)
    triples = [[[x, y, 0.0] for x, y in row] for row in good.tolist()]
    assert "not pairs x, y" in refused(faces, tmp_path, triples, key=keys)
    assert "not shares of the image" in refused(faces, tmp_path, good / 112, key=keys)
    for value, words in ((np.nan, "(nan, "), (4000.0, "(4000, ")):
        wrong = good.copy()
        wrong[11, 2, 0] = value
        text = refused(faces, tmp_path, wrong, key=keys)
        assert "row 11" in text
        assert words in text
    assert "no name of the tool" in refused(faces, tmp_path, good, metadata={}, key=keys)
    assert "landmarks of type string" in refused(faces, tmp_path, ["a"] * 20, key=keys)


def test_import__of_another_set(tmp_path: Path, faces: FaceSet) -> None:
    """A set with the same keys and other images is refused by the images' checksums."""
    crc = pa.array([zlib.crc32(image) for image in faces.read(np.arange(20)).images], pa.uint32())
    points_table = table(tmp_path / "p.parquet", points(20), key=faces.keys, image_crc32=crc)
    assert bring(faces, points_table, tmp_path / "out") == (N, 0)
    other = face_jpegs(1, seed=5)[0]
    write_face_set(tmp_path / "train.rec", num_identities=4, images_each=5, replaced={2: other, 8: other})
    with pytest.raises(DataError, match="2 of 20 compared checksums differ, first that of record 3"):
        bring(open_faces(str(tmp_path / "train.rec")), points_table, tmp_path / "other")


def test_import__into_a_folder_of_other_landmarks(tmp_path: Path, faces: FaceSet) -> None:
    """Landmarks are not replaced by others; the same ones are left as they are."""
    one, two = points(20), points(20, seed=3)
    bring(faces, table(tmp_path / "one.parquet", one, key=faces.keys), tmp_path / "out")
    bring(faces, table(tmp_path / "one.parquet", one, key=faces.keys), tmp_path / "out")
    with pytest.raises(DataError, match="choose another --out"):
        bring(faces, table(tmp_path / "two.parquet", two, key=faces.keys), tmp_path / "out")
    assert np.array_equal(stored(faces, tmp_path / "out"), one.astype(np.float16))


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no such file"), (b"PAR1 damaged PAR1", "a Parquet file with columns"), (b"", "a Parquet file with")],
)
def test_points_table__that_is_none(tmp_path: Path, content: bytes | None, words: str) -> None:
    """A missing or damaged file is named."""
    if content is not None:
        (tmp_path / "p.parquet").write_bytes(content)
    with pytest.raises(DataError, match=words):
        PointsTable(str(tmp_path / "p.parquet"))


def test_points_table__other_columns(tmp_path: Path) -> None:
    """A table without points or names, or without rows, is refused with its columns."""
    with pytest.raises(DataError, match="columns landmarks, name"):
        table(tmp_path / "p.parquet", points(2), name=["a", "b"])
    with pytest.raises(DataError, match="no rows"):
        table(tmp_path / "p.parquet", pa.array([], pa.list_(pa.float32())), key=pa.array([], pa.int64()))


def test_open_external__of_a_landmark_cnn(tmp_path: Path) -> None:
    """A folder without such landmarks is refused."""
    with pytest.raises(DataError, match="no landmarks of another tool"):
        open_external(str(tmp_path))
