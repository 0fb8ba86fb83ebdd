"""Identification protocols in their three layouts."""

from __future__ import annotations

from pathlib import Path

import pytest

from lafs_ray.data.identification import open_identification
from lafs_ray.errors import DataError
from tests.data.test_ijb import write_protocol
from tests.training.faces import face_jpegs


def write_ijb(folder: Path) -> None:
    """The 1:1 protocol of test_ijb with two galleries and queries; template 30 has no mate in G1."""
    write_protocol(folder)
    head = "TEMPLATE_ID,SUBJECT_ID,FILENAME"
    lists = {
        "1N_gallery_G1": ["0,7,img/0.png", "0,7,img/1.png"],
        "1N_gallery_G2": ["10,8,img/2.png"],
        "1N_probe_mixed": ["20,7,frames/1.png", "30,8,frames/2.png", "30,8,frames/3.png"],
    }
    for name, lines in lists.items():
        (folder / "meta" / f"ijbx_{name}.csv").write_text("\n".join([head, *lines]) + "\n")


def write_images(folder: Path, *names: str) -> None:
    for name, jpeg in zip(names, face_jpegs(len(names)), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg)


def refusal(folder: Path) -> DataError:
    with pytest.raises(DataError) as raised:
        open_identification(str(folder))
    return raised.value


def test_open_identification__ijb(tmp_path: Path) -> None:
    """Each template comes once, with its subject; images, media and scores are those of the 1:1 lists."""
    write_ijb(tmp_path)
    found = open_identification(str(tmp_path))
    assert [one.name for one in found.galleries] == ["ijbx_1N_gallery_G1", "ijbx_1N_gallery_G2"]
    assert [(*one.templates, *one.identities) for one in found.galleries] == [(0, 7), (10, 8)]
    assert found.queries.templates.tolist() == [20, 30]
    assert found.queries.identities.tolist() == [7, 8]
    assert found.images.templates.tolist() == [0, 0, 10, 10, 20, 20, 30, 30]


@pytest.mark.parametrize("inner", ["", "Testing_Set"])
def test_open_identification__tinyface(tmp_path: Path, inner: str) -> None:
    """The identity is the number before the first _; distractors have none, also in subfolders."""
    names = ["Gallery_Match/3_1.jpg", "Gallery_Match/12_2.jpg", "Gallery_Distractor/a/77_1.jpg", "Probe/12_1.jpg"]
    write_images(tmp_path / inner, *names)
    found = open_identification(str(tmp_path))
    (gallery,) = found.galleries
    assert gallery.identities.tolist() == [12, 3, -1]
    assert found.queries.identities.tolist() == [12]
    assert found.images.faces.source.names[3] == "Probe/12_1.jpg"
    assert found.images.faces.read(0, 4).shape == (4, 112, 112, 3)


def test_open_identification__lists(tmp_path: Path) -> None:
    """Several galleries, in the order of their names; negative identities have no mate."""
    write_images(tmp_path, "a.jpg", "b.jpg", "sub/c.jpg")
    (tmp_path / "gallery_2.txt").write_text("b.jpg 5\n")
    (tmp_path / "gallery_1.txt").write_text("a.jpg 4\nb.jpg\t-1\n")
    (tmp_path / "probe.txt").write_text("sub/c.jpg 4\na.jpg -1\n")
    found = open_identification(str(tmp_path))
    assert [one.identities.tolist() for one in found.galleries] == [[4, -1], [5]]
    assert found.images.faces.source.names == ["a.jpg", "b.jpg", "b.jpg", "sub/c.jpg", "a.jpg"]
    assert found.queries.templates.tolist() == [3, 4]


def test_open_identification__contradictions(tmp_path: Path) -> None:
    """A template of two subjects, one without images, and columns that are no numbers are named by file."""
    write_ijb(tmp_path)
    path = tmp_path / "meta" / "ijbx_1N_gallery_G1.csv"
    path.write_text("TEMPLATE_ID,SUBJECT_ID\n0,7\n0,8\n")
    assert (refusal(tmp_path).subject, refusal(tmp_path).found[:10]) == (str(path), "template 0")
    path.write_text("TEMPLATE_ID,SUBJECT_ID\n5,7\n")
    assert "template 5, which has no image" in refusal(tmp_path).found
    path.write_text("TEMPLATE_ID,SUBJECT_ID\n0,seven\n")
    assert refusal(tmp_path).expected.startswith("a CSV file whose first two columns")
    path.write_text("TEMPLATE_ID,SUBJECT_ID\n")
    assert refusal(tmp_path).subject == str(path)
    (tmp_path / "meta" / "ijbx_1N_probe_mixed.csv").unlink()
    assert refusal(tmp_path).found == "0 files *_1N_probe_mixed.csv"


def test_open_identification__other_folders(tmp_path: Path) -> None:
    """No layout, names without a number, images that do not exist: the message says what is expected."""
    assert refusal(tmp_path / "nowhere").found == "no file"
    write_images(tmp_path, "Gallery_Match/anna.jpg", "Probe/1_1.jpg")
    assert refusal(tmp_path).subject.endswith("Gallery_Match/anna.jpg")
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "probe.txt").write_text("a.jpg 1\n")
    assert refusal(lists).found == "probe.txt without gallery.txt"
    (lists / "gallery.txt").write_text("b.jpg 1\n")
    assert refusal(lists).found == "images that do not exist: b.jpg, a.jpg"
