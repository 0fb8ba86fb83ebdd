from __future__ import annotations

import hashlib
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from lafs_ray.data import recordio
from lafs_ray.data.face_set import open_faces
from lafs_ray.data.images import decode_image
from lafs_ray.data.io import reading
from lafs_ray.errors import DataError
from tests.data.record_sets import INSIGHTFACE, PLAIN, all_rows, refusal, rewrite, write_insightface, write_plain


@pytest.mark.parametrize("with_index", [True, False])
def test_open_faces__insightface_layout(copied: Path, with_index: bool) -> None:
    """Images, identities, labels and pixels are those that insightface's own data set returns."""
    if not with_index:
        copied.with_suffix(".idx").unlink()
    expected = json.loads((INSIGHTFACE / "meta.json").read_text())
    insightface = expected["datasets"]["insightface_MXFaceDataset"]
    faces = open_faces(str(copied))
    rows = all_rows(faces)
    assert (faces.num_images, faces.num_identities) == (10, 4)
    assert rows.key.tolist() == insightface["imgidx"]
    assert rows.label.tolist() == faces.labels().tolist() == insightface["labels"]
    assert rows.errors == [""] * 10
    pixels = [decode_image(image, color_order="rgb") for image in rows.images]
    assert [hashlib.sha256(p.tobytes()).hexdigest() for p in pixels] == insightface["hwc_sha256"]


def test_open_faces__plain_file_without_index() -> None:
    """Every record is an image; keys are the records' ids; a vector label gives its first element."""
    expected = json.loads((PLAIN.parent / "meta.json").read_text())["records"]
    faces = open_faces(PLAIN.as_uri())
    rows = all_rows(faces)
    labels = [r["label"][0] if isinstance(r["label"], list) else r["label"] for r in expected]
    assert faces.num_identities is None
    assert rows.key.tolist() == [10 * number for number in range(10)]
    assert rows.label.tolist() == faces.labels().tolist() == labels
    digests = [hashlib.sha256(image).hexdigest() for image in rows.images]
    assert digests == [r["payload_sha256"] for r in expected]


def test_read__any_order_equals_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch over shards, shuffled and with repeats, equals single reads, however coalesced."""
    for name, count in [("a", 30), ("b", 1), ("c", 20)]:
        write_plain(tmp_path / f"{name}.rec", count)
    faces = open_faces(str(tmp_path / "*.rec"))
    assert faces.shard_uris == tuple(str(tmp_path / f"{name}.rec") for name in "abc")
    index = np.random.default_rng(0).integers(0, 51, 200)
    single = [faces.read(index[i : i + 1]) for i in range(len(index))]
    for gap in (0, 200, 1 << 20):
        monkeypatch.setattr(reading, "_MAX_GAP_BYTES", gap)
        rows = faces.read(index)
        assert rows.images == [row.images[0] for row in single]
        assert rows.key.tolist() == [int(row.key[0]) for row in single]
        assert rows.shard.tolist() == [int(row.shard[0]) for row in single]
        assert rows.label.tolist() == rows.key.tolist()
    assert faces.read(np.empty(0, np.int64)).images == []


def test_read__uses_few_reads_for_neighbors(tmp_path: Path) -> None:
    """Neighboring records are one range; a far one is another."""
    write_plain(tmp_path / "a.rec", 100, payload_bytes=4000)
    faces = open_faces(str(tmp_path / "a.rec"))
    index = np.array([3, 4, 5, 7, 90])
    ranges = reading.ByteRanges("a.rec", faces.offsets[index], faces.sizes[index])
    assert reading._coalesce(ranges) == [range(4), range(4, 5)]


def test_face_set__pickles_small(tmp_path: Path) -> None:
    """An image costs 24 bytes of a pickled set, and the copy reads the same rows."""
    write_plain(tmp_path / "a.rec", 200)
    faces = open_faces(str(tmp_path / "a.rec"))
    data = pickle.dumps(faces, protocol=5)
    assert len(data) < 200 * 24 + 2000
    assert all_rows(pickle.loads(data)).images == all_rows(faces).images


def test_fingerprint__knows_the_set_elsewhere(tmp_path: Path, copied: Path) -> None:
    """The same files in another folder have the same fingerprint; other content has another."""
    faces = open_faces(str(copied))
    assert faces.fingerprint == open_faces(INSIGHTFACE.as_uri()).fingerprint
    write_plain(tmp_path / "more.rec", 2)
    assert faces.fingerprint != open_faces(str(tmp_path)).fingerprint


def test_read__damaged_records_are_reported(tmp_path: Path) -> None:
    """Each kind of damage empties its row, and names file, key, offset and values."""
    path = tmp_path / "a.rec"
    offsets = write_plain(path, 12)
    faces, written_ns = open_faces(str(path)), path.stat().st_mtime_ns
    rewrite(path, offsets[2], b"\xff")  # the magic word
    rewrite(path, offsets[4] + 4, (5000).to_bytes(4, "little"))  # a length beyond the record
    rewrite(path, offsets[6] + 4, (40).to_bytes(4, "little"))  # a length short of the record
    rewrite(path, offsets[8] + 8, (99).to_bytes(4, "little"))  # the flag
    # A bad disk, not a rewritten file, which would stop the run.
    os.utime(path, ns=(written_ns, written_ns))
    rows = all_rows(faces)
    damaged = [2, 4, 6, 8]
    assert [i for i, error in enumerate(rows.errors) if error] == damaged
    assert [rows.images[i] for i in damaged] == [b""] * 4
    assert rows.label[damaged].tolist() == [-1] * 4
    words = ["0xced723ff", "96 bytes", "48 bytes", "flag 99 (99 labels, 420 bytes) in 88 bytes"]
    for i, word in zip(damaged, words, strict=True):
        assert f"{path}, key {i} at offset {offsets[i]}" in rows.errors[i]
        assert word in rows.errors[i]
        assert "expected" in rows.errors[i]
    assert rows.images[11] == bytes([11]) * 64


@pytest.mark.parametrize("damaged", [1, 5, 11])
def test_open_faces__damaged_record_is_left_to_read(tmp_path: Path, damaged: int) -> None:
    """One damaged record does not make the index invalid: the set opens, the row has an error."""
    path = tmp_path / "a.rec"
    offsets = write_plain(path, 12)
    rewrite(path, offsets[damaged], b"\0\0\0\0")
    rows = all_rows(open_faces(str(path)))
    assert [i for i, error in enumerate(rows.errors) if error] == [damaged]


def test_read__record_without_image(tmp_path: Path) -> None:
    """An identity record among the image keys contradicts the layout: its row is damaged."""
    with recordio.RecordWriter(str(tmp_path / "a.rec")) as writer:
        writer.write(5, recordio.pack(recordio.Header(0, 1.0, 5), b"image"))
        writer.write(6, recordio.pack(recordio.Header(2, (1.0, 4.0), 6), b""))
    rows = all_rows(open_faces(str(tmp_path / "a.rec")))
    assert rows.errors[0] == ""
    assert "key 6 at offset 40: found no image (flag 2, 0 bytes)" in rows.errors[1]


@pytest.mark.parametrize("label", [-1.5, 2.5, float("nan"), float("inf")])
def test_read__label_that_is_no_identity(tmp_path: Path, label: float) -> None:
    """Unlabeled pretraining may use such a record; its label is -1."""
    with recordio.RecordWriter(str(tmp_path / "a.rec")) as writer:
        writer.write(1, recordio.pack(recordio.Header(0, label, 1), b"image"))
    rows = all_rows(open_faces(str(tmp_path / "a.rec")))
    assert (rows.label.tolist(), rows.images, rows.errors) == ([-1], [b"image"], [""])


def test_read__file_vanished_or_changed(tmp_path: Path) -> None:
    """A file that is missing or has grown since it was opened is an error about the file."""
    path = tmp_path / "a.rec"
    write_plain(path, 3)
    faces = open_faces(str(path))
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(DataError, match=f"{size + 4} bytes\n.*{size} bytes, as when"):
        all_rows(faces)
    path.unlink()
    with pytest.raises(DataError, match=r"a\.rec\n.*no such file"):
        all_rows(faces)


def test_open_faces__paths_without_records(tmp_path: Path) -> None:
    """A missing path, an empty folder, a folder of other files and an unmatched pattern."""
    assert refusal(tmp_path / "none").found == "no such file or folder"
    assert refusal(tmp_path / "none.rec").found == "no such file"
    assert refusal(tmp_path).found == "an empty folder"
    (tmp_path / "face.jpg").touch()
    assert refusal(tmp_path).found == "1 file, none of them .rec"
    assert refusal(tmp_path / "face.jpg").found == "not a .rec file"
    assert refusal(tmp_path / "*.rec").found == "no match among 1 file"
    assert refusal(f"{tmp_path.as_uri()}/*/x.rec").found == "no match among 1 file"
    (tmp_path / "photos" / "person").mkdir(parents=True)
    (tmp_path / "photos" / "person" / "1.jpg").write_bytes(b"")
    assert refusal(tmp_path / "photos").found == "only subfolders, no .rec"
    assert "lafs pack" in refusal(tmp_path / "photos").fix


def test_open_faces__index_without_records(tmp_path: Path) -> None:
    """An .idx whose .rec is missing is a lost shard, not an empty one."""
    write_plain(tmp_path / "a.rec", 2)
    write_plain(tmp_path / "b.rec", 2)
    (tmp_path / "b.rec").unlink()
    assert refusal(tmp_path).found == ".idx without .rec: b.idx"
    assert refusal(tmp_path / "b.rec").found == "an .idx without its .rec"


def test_open_faces__nested_folders_by_pattern(tmp_path: Path) -> None:
    """A pattern may match folders too, on disk and in a URI."""
    for name in ("x", "y"):
        write_plain(tmp_path / name / "train.rec", 2)
    for pattern in (str(tmp_path / "*" / "train.rec"), f"{tmp_path.as_uri()}/[xy]/*.rec"):
        assert open_faces(pattern).num_images == 4


def test_num_identities__shards_of_one_set(tmp_path: Path) -> None:
    """An identity whose images lie in two shards is counted once."""
    write_insightface(tmp_path / "a.rec", [0.0, 1.0], [(1.0, 2.0), (2.0, 3.0)])
    write_insightface(tmp_path / "b.rec", [1.0, 2.0], [(1.0, 2.0), (2.0, 3.0)])
    faces = open_faces(str(tmp_path))
    assert faces.num_identities == 3
    assert faces.labels().tolist() == [0, 1, 1, 2]
    write_plain(tmp_path / "c.rec", 1)
    assert open_faces(str(tmp_path)).num_identities is None
