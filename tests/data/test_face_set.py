from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from lafs_ray.data import recordio
from lafs_ray.data.face_set import FaceRows, FaceSet, open_faces
from lafs_ray.data.images import decode_image
from lafs_ray.data.io import ranged_reads
from lafs_ray.errors import DataError

GOLDEN = Path(__file__).parent.parent / "golden"
INSIGHTFACE = GOLDEN / "h3_insightface_rec"
PLAIN = GOLDEN / "h5_plain_rec" / "data.rec"


def write_plain(path: Path, num_records: int, payload_bytes: int = 64) -> list[int]:
    """Write a plain file with an index; record k's payload repeats k. Return the offsets."""
    with recordio.RecordWriter(str(path)) as writer:
        return [
            writer.write(
                key,
                recordio.pack(recordio.Header(0, float(key), key), bytes([key]) * payload_bytes),
            )
            for key in range(num_records)
        ]


def write_insightface(
    path: Path,
    image_labels: list[float],
    ranges: list[tuple[float, ...]],
    header: tuple[float, float] | None = None,
) -> None:
    """Write a file in insightface's layout with these image labels and identity ranges."""
    first = len(image_labels) + 1
    ends = header or (first, first + len(ranges))
    with recordio.RecordWriter(str(path)) as writer:
        writer.write(0, recordio.pack(recordio.Header(2, ends, 0), b""))
        for key, label in enumerate(image_labels, 1):
            writer.write(key, recordio.pack(recordio.Header(0, label, key), b"image %d" % key))
        for key, images in enumerate(ranges, first):
            writer.write(key, recordio.pack(recordio.Header(len(images), images, key), b""))


def rewrite(path: Path, offset: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)


def all_rows(faces: FaceSet) -> FaceRows:
    return faces.read(np.arange(faces.num_images))


def refusal(path: Path | str) -> DataError:
    """Return the error that opening the set raises."""
    with pytest.raises(DataError) as error:
        open_faces(str(path))
    return error.value


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    for name in ("train.rec", "train.idx"):
        shutil.copy(INSIGHTFACE / name, tmp_path)
        (tmp_path / name).chmod(0o644)
    return tmp_path / "train.rec"


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
    """Every record is an image; keys count the records; a vector label gives its first element."""
    expected = json.loads((PLAIN.parent / "meta.json").read_text())["records"]
    faces = open_faces(PLAIN.as_uri())
    rows = all_rows(faces)
    labels = [r["label"][0] if isinstance(r["label"], list) else r["label"] for r in expected]
    assert faces.num_identities is None
    assert rows.key.tolist() == list(range(10))
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
        monkeypatch.setattr(ranged_reads, "_MAX_GAP_BYTES", gap)
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
    ranges = ranged_reads.ByteRanges("a.rec", faces.offsets[index], faces.sizes[index])
    assert ranged_reads._coalesce(ranges) == [range(4), range(4, 5)]


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


def test_read__damaged_records_are_told(tmp_path: Path) -> None:
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
    assert "jobs/pack.py" in refusal(tmp_path / "photos").fix


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


@pytest.mark.parametrize("with_index", [True, False])
def test_open_faces__empty_or_foreign_file(tmp_path: Path, with_index: bool) -> None:
    """An empty file and one that is not RecordIO are named as such."""
    path = tmp_path / "a.rec"
    write_plain(path, 2)
    if not with_index:
        path.with_suffix(".idx").unlink()
    path.write_bytes(b"PK\x03\x04 a zip file in disguise")
    assert refusal(path).found == "0x04034b50"
    assert refusal(path).expected == "RecordIO's magic word 0xced7230a"
    path.write_bytes(b"")
    assert refusal(path).found == "an empty file (0 bytes)"


def test_open_faces__truncated_last_record(tmp_path: Path) -> None:
    """A file truncated in its last record is refused, with and without index."""
    path = tmp_path / "a.rec"
    offsets = write_plain(path, 5)
    path.write_bytes(path.read_bytes()[:-10])
    for subject in (f"{path}, key 4 at offset {offsets[4]}", f"{path} at offset {offsets[4]}"):
        error = refusal(path)
        assert (error.subject, error.found) == (subject, "86 bytes to the end of the file")
        assert error.expected == "a record of at least 96 bytes (it is truncated)"
        path.with_suffix(".idx").unlink(missing_ok=True)


def edited_index(tmp_path: Path, lines: list[str]) -> Path:
    path = tmp_path / "a.rec"
    write_plain(path, 5)  # records of 96 bytes, 480 in all
    path.with_suffix(".idx").write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("lines", "subject", "found"),
    [
        (["0\t0", "1\t96", "2\t960"], ".idx, key 2", "offset 960"),
        (["0\t0", "1\t97"], ".idx, key 1", "offset 97"),
        (["0\t0", "1\t96", "2\t96"], ".idx", "keys 1 and 2 at the same offset 96"),
        (["0\t0", "0\t96", "2\t192", "3\t288", "4\t384"], ".idx", "key 0 twice"),
        (["1\t96", "2\t192"], ".idx", "offset 96 as the first"),
        (
            ["0\t0", "1\t96", "2\t200", "3\t288", "4\t384"],
            ".idx, key 1",
            "ends at offset 192, where the next begins; but key 2 is at offset 200 in the index",
        ),
        (
            ["0\t0", "1\t96", "3\t288", "4\t384"],
            ".idx, key 1",
            "ends at offset 192, where the next begins; but key 3 is at offset 288 in the index",
        ),
        (
            ["0\t0", "1\t96", "2\t192"],
            ".idx, key 2",
            "ends at offset 288, where the next begins; but the index ends there",
        ),
    ],
)
def test_open_faces__index_that_does_not_fit(
    tmp_path: Path, lines: list[str], subject: str, found: str
) -> None:
    """Offsets beyond the file, between records, twice, or with records left out are refused."""
    error = refusal(edited_index(tmp_path, lines))
    assert error.subject == str(tmp_path / "a") + subject
    assert found in error.found


def test_open_faces__index_in_another_order(tmp_path: Path) -> None:
    """Lines in any order give the same images, numbered in file order."""
    lines = ["10\t0", "11\t96", "12\t192", "13\t288", "14\t384"]
    faces = open_faces(str(edited_index(tmp_path, lines[::-1])))
    assert faces.keys.tolist() == [10, 11, 12, 13, 14]
    assert all_rows(faces).label.tolist() == [0, 1, 2, 3, 4]


def test_open_faces__header_promises_more_than_there_is(copied: Path) -> None:
    """Fewer keys than record 0 states (half an index, a truncated file) are an error."""
    promise = "10 images (keys 1 to 10) and 4 identities (keys 11 to 14), as record 0 says"
    lines = copied.with_suffix(".idx").read_text().splitlines()
    lines[14] = "99\t" + lines[14].split("\t")[1]
    copied.with_suffix(".idx").write_text("\n".join(lines))
    error = refusal(copied)
    assert (error.found, error.expected) == ("15 records; key 14 is missing", promise)
    end = int(lines[14].split("\t")[1])
    copied.write_bytes(copied.read_bytes()[:end])
    copied.with_suffix(".idx").unlink()
    assert refusal(copied).found == "14 records; key 14 is missing"


@pytest.mark.parametrize(
    ("ranges", "header", "found"),
    [
        ([(1.0, 3.0), (4.0, 5.0)], None, "images [1, 3)"),
        ([(1.0, 3.0), (2.0, 5.0)], None, "images [1, 3)"),
        ([(1.0, 3.0), (3.0, 9.0)], None, "images [3, 9)"),
        ([(1.0, 3.0), (3.0, 4.0, 5.0)], None, "flag 3 and a payload of 0 bytes"),
        ([(1.0, 5.0)], (1.0, 6.0), "record 0 says [1, 6]"),
        ([(1.0, 5.0)], (5.0, 9.0), "6 records; key 6 is missing"),
        ([(1.0, 3.0), (3.0, 5.0)], (5.0, 6.0), "7 records; unexpected key 6"),
    ],
)
def test_open_faces__identities_contradict_the_images(
    tmp_path: Path,
    ranges: list[tuple[float, ...]],
    header: tuple[float, float] | None,
    found: str,
) -> None:
    """Ranges with gaps, overlaps or keys that do not exist are refused with the record's values."""
    write_insightface(tmp_path / "a.rec", [0.0, 0.0, 1.0, 1.0], ranges, header)
    assert refusal(tmp_path / "a.rec").found == found


@pytest.mark.parametrize(
    ("image_labels", "ranges"),
    [
        ([0, 0, 1, 1], [(1.0, 3.0), (3.0, 5.0)]),
        ([70, 70, 71, 71], [(1.0, 3.0), (3.0, 5.0)]),
        ([1, 1, 0, 0], [(3.0, 5.0), (1.0, 3.0)]),
        ([0, 0, 2, 2], [(1.0, 3.0), (3.0, 3.0), (3.0, 5.0)]),
        ([5, 5, 9, 9], [(1.0, 3.0), (3.0, 5.0)]),
    ],
)
def test_labels__agree_with_the_images(
    tmp_path: Path, image_labels: list[int], ranges: list[tuple[float, ...]]
) -> None:
    """Labels are those of the images: consecutive, out of order, with gaps."""
    write_insightface(tmp_path / "a.rec", [float(label) for label in image_labels], ranges)
    faces = open_faces(str(tmp_path / "a.rec"))
    assert faces.labels().tolist() == all_rows(faces).label.tolist() == image_labels
    assert faces.num_identities == len(ranges)


def test_num_identities__shards_of_one_set(tmp_path: Path) -> None:
    """An identity whose images lie in two shards is counted once."""
    write_insightface(tmp_path / "a.rec", [0.0, 1.0], [(1.0, 2.0), (2.0, 3.0)])
    write_insightface(tmp_path / "b.rec", [1.0, 2.0], [(1.0, 2.0), (2.0, 3.0)])
    faces = open_faces(str(tmp_path))
    assert faces.num_identities == 3
    assert faces.labels().tolist() == [0, 1, 1, 2]
    write_plain(tmp_path / "c.rec", 1)
    assert open_faces(str(tmp_path)).num_identities is None
