from __future__ import annotations

from pathlib import Path

import pytest

from lafs_ray.data.face_set import open_faces
from tests.data.record_sets import all_rows, refusal, write_insightface, write_plain


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
def test_open_faces__index_that_does_not_match(tmp_path: Path, lines: list[str], subject: str, found: str) -> None:
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


def test_open_faces__fewer_keys_than_the_header_states(copied: Path) -> None:
    """Fewer keys than record 0 states (half an index, a truncated file) are an error."""
    expected = "10 images (keys 1 to 10) and 4 identities (keys 11 to 14), as record 0 says"
    lines = copied.with_suffix(".idx").read_text().splitlines()
    lines[14] = "99\t" + lines[14].split("\t")[1]
    copied.with_suffix(".idx").write_text("\n".join(lines))
    error = refusal(copied)
    assert (error.found, error.expected) == ("15 records; key 14 is missing", expected)
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
    tmp_path: Path, ranges: list[tuple[float, ...]], header: tuple[float, float] | None, found: str
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
