from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from lafs_ray.data.align import POSITIONS_PX
from lafs_ray.data.ijb import open_templates
from lafs_ray.errors import DataError
from tests.training.faces import face_jpegs, pixels_of

NUM_IMAGES = 8


def write_protocol(folder: Path, num_images: int = NUM_IMAGES) -> None:
    """A protocol in insightface's layout: image i is of template i // 2 * 10, two media each."""
    (folder / "meta").mkdir(parents=True)
    (folder / "loose_crop").mkdir()
    lists: dict[str, list[str]] = {"name_5pts_score": [], "face_tid_mid": []}
    for number, jpeg in enumerate(face_jpegs(num_images, size=(140, 130))):
        (folder / "loose_crop" / f"{number}.jpg").write_bytes(jpeg)
        points = " ".join(f"{value:.3f}" for value in (POSITIONS_PX + 10).ravel())
        lists["name_5pts_score"].append(f"{number}.jpg {points} 0.{90 + number % 10}")
        lists["face_tid_mid"].append(f"{number}.jpg {number // 2 * 10} {number % 2}")
    templates = [number * 10 for number in range(num_images // 2)]
    lists["template_pair_label"] = [
        f"{one} {two} {int(one % 20 == two % 20)}" for one in templates for two in templates if one < two
    ]
    for name, lines in lists.items():
        (folder / "meta" / f"ijbx_{name}.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_protocol(tmp_path / "IJBX")
    return tmp_path / "IJBX"


def change(folder: Path, name: str, old: str, new: str) -> str:
    """Replace text in a list; returns its path."""
    path = folder / "meta" / f"ijbx_{name}.txt"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return str(path)


def refusal(folder: Path) -> DataError:
    with pytest.raises(DataError) as error:
        open_templates(str(folder))
    return error.value


def test_open_templates__all_columns(folder: Path) -> None:
    """Images, landmarks, scores, templates, media and pairs come as the lists have them."""
    found = open_templates(str(folder))
    assert found.faces.source.names == [f"{number}.jpg" for number in range(NUM_IMAGES)]
    np.testing.assert_allclose(found.faces.source.landmarks[3], POSITIONS_PX + 10, atol=1e-3)
    assert found.scores.tolist() == [float(f"0.{90 + number}") for number in range(NUM_IMAGES)]
    assert found.templates.tolist() == [0, 0, 10, 10, 20, 20, 30, 30]
    assert found.medias.tolist() == [0, 1] * 4
    pairs = list(zip(found.first, found.second, found.same, strict=True))
    assert pairs[:3] == [(0, 10, False), (0, 20, True), (0, 30, False)]


def test_template_faces__aligned(folder: Path) -> None:
    """Landmarks 10 px off insightface's positions: the face is the picture less 10 px, RGB."""
    faces = open_templates(str(folder)).faces
    picture = pixels_of((folder / "loose_crop" / "2.jpg").read_bytes())
    found = faces.read(2, 4)
    assert found.shape == (2, 112, 112, 3)
    # Coordinates were written with three decimals.
    assert np.abs(found[0].astype(int) - picture[10:122, 10:122]).max() <= 1


@pytest.mark.parametrize("white", ["\t", "  "])
def test_open_templates__other_white_space(folder: Path, white: str) -> None:
    """Columns may be separated by tabs or two spaces."""
    expected = open_templates(str(folder))
    for path in (folder / "meta").iterdir():
        path.write_text(path.read_text().replace(" ", white))
    found = open_templates(str(folder))
    assert found.faces.source.names == expected.faces.source.names
    for name in ("scores", "templates", "medias", "first", "second", "same"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize(
    ("name", "old", "new", "line", "found"),
    [
        ("name_5pts_score", " 0.92\n", "\n", 3, "11 columns: '2.jpg"),
        ("name_5pts_score", " 0.92\n", " high\n", 3, "'high' as score, which is a number"),
        ("face_tid_mid", "1.jpg 0 1", "1.jpg 0 1 1", 2, "4 columns"),
        ("template_pair_label", "0 20 1", "0 20", 2, "2 columns"),
        ("template_pair_label", "0 20 1", "0 2.5 1", 2, "'2.5' as other template, which is an integer"),
    ],
)
def test_open_templates__bad_line(folder: Path, name: str, old: str, new: str, line: int, found: str) -> None:
    """A row with other columns, or another kind of value, is named by file and number."""
    path = change(folder, name, old, new)
    error = refusal(folder)
    assert error.subject == f"{path}, row {line}"
    assert error.found.startswith(found)


def test_open_templates__lists_that_disagree(folder: Path) -> None:
    """Unknown templates, other labels, another order and missing rows are errors with numbers."""
    path = change(folder, "template_pair_label", "10 20 0", "10 77 0")
    assert refusal(folder).subject == f"{path}, pair 4"
    assert refusal(folder).found == "template 77, which has no image; such pairs: 1"
    change(folder, "template_pair_label", "10 77 0", "10 20 2")
    assert refusal(folder).found == "2 as label"
    path = change(folder, "face_tid_mid", "4.jpg", "5.jpg")
    assert (refusal(folder).subject, refusal(folder).found) == (f"{path}, image 5", "5.jpg")
    change(folder, "face_tid_mid", "5.jpg 20 0\n", "")
    assert refusal(folder).found == "7 images"


def test_open_templates__nan_landmark(folder: Path) -> None:
    """NaN is refused with the image's position."""
    change(folder, "name_5pts_score", " 0.93\n", " nan\n")
    assert refusal(folder).subject.endswith("name_5pts_score.txt, image 4")


def test_open_templates__missing_pictures(folder: Path) -> None:
    """Missing pictures of a list are named before any is embedded."""
    for number in (1, 6):
        (folder / "loose_crop" / f"{number}.jpg").unlink()
    assert refusal(folder).found.endswith("loose_crop: 1.jpg, 6.jpg")


def test_open_templates__missing_or_empty_list(folder: Path) -> None:
    """A missing or empty list is named."""
    path = folder / "meta" / "ijbx_template_pair_label.txt"
    path.write_text("")
    assert (refusal(folder).subject, refusal(folder).found) == (str(path), "an empty file")
    path.unlink()
    assert refusal(folder).found == "0 files *_template_pair_label.txt"
    assert refusal(folder / "nowhere").found == "0 files *_name_5pts_score.txt"


def test_template_faces__undecodable(folder: Path) -> None:
    """A picture that does not decode is named with its path."""
    path = folder / "loose_crop" / "5.jpg"
    path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"loose_crop/5\.jpg") as raised:
        open_templates(str(folder)).faces.read(4, 8)
    assert "do not decode" in raised.value.found


def test_template_faces__gray_picture(folder: Path) -> None:
    """A gray picture, common among old photographs, becomes three channels."""
    gray = cv2.imencode(".jpg", np.full((130, 140), 77, dtype=np.uint8))[1]
    (folder / "loose_crop" / "0.jpg").write_bytes(gray.tobytes())
    assert (open_templates(str(folder)).faces.read(0, 1)[0, 50, 50] == 77).all()
