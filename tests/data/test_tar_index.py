"""WebDataset shards as face sets: samples, labels, and tars as they should not be."""

from __future__ import annotations

import io
import json
import logging
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lafs_ray.data.face_set import open_faces
from lafs_ray.errors import DataError
from tests.data.record_sets import all_rows, refusal
from tests.data.shards import samples, tar_bytes, write_tar


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    """Return a ustar header with these fields and a right checksum."""
    block = bytearray(512)
    block[: len(name)] = name
    block[124 : 124 + len(size)] = size
    block[148:156], block[156:157], block[257:265] = b" " * 8, kind, b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


END = bytes(1024)


def test_samples__group_by_name_up_to_the_first_dot(tmp_path: Path) -> None:
    """Image, label and other members in any order; folders, capitals and captions do not matter."""
    members: list[tuple[str, Any]] = [
        *(("a/1.cls", "7"), ("a/1.JPG", b"one")),
        *(("a/2.png", b"two"), ("a/2.txt", "caption"), ("a/2.json", json.dumps({"x": 1, "identity": 3}))),
        *(("b.c/1.webp", b"three"), ("b.c/1.jpg.txt", "no image")),
        ("README.md", "no sample"),
    ]
    faces = open_faces(str(write_tar(tmp_path / "x.tar", members)))
    rows = all_rows(faces)
    assert rows.images == [b"one", b"two", b"three"]
    assert rows.key.tolist() == [0, 1, 2]
    assert rows.label.tolist() == faces.labels().tolist() == [7, 3, -1]
    assert rows.errors == [""] * 3
    assert faces.num_identities == 2


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members__are_those_of_tarfile(tmp_path: Path, form: int) -> None:
    """Long names, folders and absolute paths in all three formats; a read of any order gives the data."""
    long = "/".join(["f" * 90] * (2 if form == tarfile.USTAR_FORMAT else 9))
    images = {f"{folder}{n}.jpg": os.urandom(400 * n) for folder in (f"{long}/", "/abs/", "./", "") for n in (1, 2, 3)}
    if form != tarfile.USTAR_FORMAT:
        images["naïve/" + "é" * 150 + ".jpg"] = b"text"
    faces = open_faces(str(write_tar(tmp_path / "x.tar", images.items(), form)))
    order = np.random.default_rng(0).permutation(faces.num_images)
    assert faces.read(order).images == [list(images.values())[n] for n in order]


def test_labels__names_are_numbered_over_all_shards_in_sorted_order(tmp_path: Path) -> None:
    """Shards know each other's names; what is written counts, but for white space, a BOM and -1."""
    write_tar(tmp_path / "b.tar", samples([b"1", b"2", b"3"], ["\ufeffZoë\r\n", "-1", " adam "]))
    write_tar(tmp_path / "a.tar", samples([b"4", b"5"], ["mia", "adam"]))
    faces = open_faces(str(tmp_path))
    assert all_rows(faces).images == [b"4", b"5", b"1", b"2", b"3"]
    assert faces.labels().tolist() == [2, 1, 0, -1, 1]
    assert faces.label_names == ("Zoë", "adam", "mia")
    assert faces.num_identities == 3
    one = faces.subset(np.array([1, 4]))
    assert one.read(np.array([0, 1])).label.tolist() == one.labels().tolist()


def test_labels__integers_stay_and_leading_zeros_are_names(tmp_path: Path) -> None:
    """Ids of a catalogue are kept as in a .rec; too large ones are numbered; 001 and 1 are two identities."""
    write_tar(tmp_path / "ids.tar", samples([b"1", b"2", b"3"], [900, 7, 900]))
    assert open_faces(str(tmp_path / "ids.tar")).labels().tolist() == [900, 7, 900]
    write_tar(tmp_path / "large.tar", samples([b"1", b"2", b"3"], [1 << 40, 7, 10**30]))
    assert open_faces(str(tmp_path / "large.tar")).labels().tolist() == [1, 0, 2]
    write_tar(tmp_path / "zeros.tar", samples([b"1", b"2", b"3"], ["001", 1, "01"]))
    assert open_faces(str(tmp_path / "zeros.tar")).num_identities == 3


@pytest.mark.parametrize(
    "content",
    [
        *("[1]", "7", '{"label": true}', '{"label": [3]}', "{", "", '{"label": {}}', '{"label": 1.5}'),
        *("[" * 1_000_000, '{"label": ' + "9" * 5000 + "}", '{"label": ' + "[" * 100_000),
    ],
    ids=lambda value: value[:20],
)
def test_labels__json_that_holds_none_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    """The image stays, without a label, and is named."""
    members = [("1.jpg", b"one"), ("1.json", content), ("2.jpg", b"two"), ("2.json", '{"label": 4.0}')]
    faces = open_faces(str(write_tar(tmp_path / "x.tar", members)))
    assert faces.labels().tolist() == [-1, 4]
    assert all_rows(faces).images == [b"one", b"two"]
    assert "labels that cannot be read: 1, such as 1.json" in caplog.text


def test_errors__stay_in_their_row(tmp_path: Path) -> None:
    """No data, a link, a hard link, and two images of one name are damaged records; folders are no samples."""
    content = b"".join(
        [
            header(b"folder.jpg", b"0", b"5"),
            header(b"0.jpg", b"00000000000"),
            header(b"1.jpg", b"77777777777", b"2"),
            header(b"2.jpg", b"00000000005", b"1"),
            *(header(b"3.jpg", b"00000000003") + padded(b"one"), header(b"3.jpg", b"00000000003") + padded(b"two")),
            header(b"fifo", b"0", b"6"),
            header(b"4.jpg", b"\x80" + (4).to_bytes(11, "big")) + padded(b"good"),
            END,
        ]
    )
    (tmp_path / "x.tar").write_bytes(content)
    rows = all_rows(open_faces(str(tmp_path / "x.tar")))
    assert rows.images == [b"", b"", b"", b"", b"good"]
    words = ["0 bytes", "a link", "a hard link", "two images of this name"]
    for row, word in enumerate(words):
        assert rows.errors[row].startswith(f"{tmp_path}/x.tar, key {row} ({row}): found {word}; expected")
    assert rows.label.tolist() == [-1] * 5


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (b"\xff\xd8\xff\xe0" * 400, "0xffd8ffe0, which begins no header"),
        (b"\x1f\x8b" + bytes(2000), "a compressed file"),
        (bytes(10240), "no image"),
        (header(b"1.jpg", b"00000777777") + b"short", "1.jpg of 262143 bytes, and 5 bytes to the end of the file"),
        (header(b"1.jpg", b"\x80" + b"\x7f" * 11) + END, "bytes to the end of the file"),
        (header(b"1.jpg", b"\xff" * 12) + END, "the size 0xffffffff"),
        (header(b"1.jpg", b"-0000000001") + END, "the size 0x2d"),
        (header(b"x", b"00000000013", b"x") + padded(b"11 size=-1\n") + header(b"1.jpg", b"0") + END, "the size "),
        (header(b"x", b"00000000016", b"x") + padded(b"14 size=99999\n") + header(b"1.jpg", b"0") + END, "99999 bytes"),
        (header(b"x", b"00000000012", b"x") + padded(b"99 path=a\n") + END, "a damaged extended header"),
        (header(b"x", b"00077777777", b"x") + bytes(1 << 24), "an extended header of 16777215 bytes"),
        (header(b"1.jpg", b"00000000003", b"S") + END, "a sparse member"),
        (header(b"1.jpg", b"00000000003") + padded(b"one") + b"\1" * 512, "a damaged header"),
        (header(b"1.jpg", b"00000000003") + padded(b"one") + b"\1" * 100, "100 bytes to the end of the file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_open__broken_tar_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    """What follows damage in the headers cannot be found, so the file is refused by name."""
    (tmp_path / "x.tar").write_bytes(content)
    error = refusal(tmp_path / "x.tar")
    assert error.subject.startswith(str(tmp_path / "x.tar"))
    assert words in error.found


def test_open__cut_at_every_block(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A truncated tar is refused, or ends at a member and is said to lack its end."""
    whole = tar_bytes(samples([b"a" * 700, b"b" * 10], ["x", "y"]))
    end = whole.index(b"\0" * 1024)
    path = tmp_path / "x.tar"
    for size in range(512, len(whole), 256):
        caplog.clear()
        path.write_bytes(whole[:size])
        try:
            count = open_faces(str(path)).num_images
        except DataError:
            continue
        assert count == 2 or "ends without the mark of a complete tar" in caplog.text, (size, end)


def test_open__warnings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Members of other programs, data after the end and labels without images are named, not taken."""
    members = [*samples([b"1"], ["a"]), ("._000000.jpg", b"mac"), ("__MACOSX/1.jpg", b"mac"), ("9.cls", "b")]
    content = tar_bytes(members)
    (tmp_path / "x.tar").write_bytes(content + content)
    with caplog.at_level(logging.WARNING):
        assert open_faces(str(tmp_path / "x.tar")).num_images == 1
    for words in (
        "passed over, hidden or of other programs: 2, such as ._000000.jpg",
        " bytes after the end mark are not read",
        "labels without an image: 1, such as 9",
    ):
        assert words in caplog.text


def test_open__images_apart_from_their_labels(tmp_path: Path) -> None:
    """A tar of all images and then all labels would lose every label."""
    members = [("1.jpg", b"1"), ("2.jpg", b"2"), ("1.cls", "1"), ("2.cls", "2")]
    error = refusal(write_tar(tmp_path / "x.tar", members))
    assert error.found == "image and label of 1 apart from each other; such samples: 2"


def test_open__names_that_are_not_utf_8(tmp_path: Path) -> None:
    """They are read; messages escape them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        for content in (b"", b"data"):
            info = tarfile.TarInfo(f"Jos\xe9{len(content)}.jpg")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    (tmp_path / "x.tar").write_bytes(buffer.getvalue())
    rows = all_rows(open_faces(str(tmp_path / "x.tar")))
    assert rows.images == [b"", b"data"]
    assert r"(Jos\xe90)" in rows.errors[0]


def test_fingerprint__changes_with_labels(tmp_path: Path) -> None:
    """Labels of the same length in a file of the same size make another set."""
    prints = {
        open_faces(str(write_tar(tmp_path / "x.tar", samples([b"1", b"2"], labels)))).fingerprint
        for labels in (["a", "b"], ["b", "a"], ["a", "a"])
    }
    assert len(prints) == 2 + 1
