from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from lafs_ray.data.packing.inspection import inspect_faces, skin_color_order
from lafs_ray.synthetic.datasets import write_faces
from tests.data.packing.sets import packed, write_plain
from tests.training.faces import NO_IMAGE, break_frame, face_jpegs, write_face_set

GOLDEN = Path(__file__).parents[2] / "golden"


def described(path: Path, sheet: Path) -> dict[str, str]:
    """Return the lines of the description by their first words."""
    lines = list(inspect_faces(str(path), sheet=str(sheet), check_all=False))
    return {line[:19].strip(): line[19:] for line in lines[1:]}


def test_inspect__insightface_layout(tmp_path: Path) -> None:
    """Counts, order, sizes and color order of a set sorted by identity; the sheet shows it."""
    write_faces(str(tmp_path), num_identities=6, images_per_identity=4, seed=0)
    found = described(tmp_path / "train.rec", tmp_path / "sheet.png")
    assert found["layout"] == "insightface (1)"
    assert found["images"] == "24"
    assert found["identities"] == "6 with images, 6 listed"
    assert found["labels"] == "0 to 5"
    assert found["images/identity"].startswith("min 4, 5 % 4")
    assert found["order"].startswith("ordered by identity: pack it (78.3% of neighbors")
    assert found["sizes"] == "112x112 (24) in all"
    assert found["formats"] == "JPEG (24) in all"
    assert found["bad records"] == "0 in all"
    assert found["color order"].startswith("likely rgb, confidence 100% of ")
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape == (6 * 112, 12 * 112, 3)
    assert sheet[:, : 4 * 112].mean() > 30
    assert (sheet[:, 4 * 112 :] == 0).all()


def test_inspect__swapped_channels(tmp_path: Path) -> None:
    """The same faces with red and blue swapped before encoding are recognized as bgr."""
    write_faces(str(tmp_path), num_identities=5, images_per_identity=4, seed=0)
    from lafs_ray.data.face_set import open_faces
    from lafs_ray.data.images import decode_image

    rows = open_faces(str(tmp_path / "train.rec")).read(np.arange(20))
    swapped = [cv2.imencode(".png", decode_image(data, color_order="rgb"))[1].tobytes() for data in rows.images]
    write_plain(tmp_path / "bgr.rec", rows.label.tolist(), swapped)
    found = described(tmp_path / "bgr.rec", tmp_path / "sheet.png")
    assert found["color order"].startswith("likely bgr, confidence 100% of ")
    assert found["layout"] == "plain (1)"
    assert found["identities"] == "5 with images, not listed"
    assert found["formats"] == "PNG (20) in all"


def test_inspect__packed_and_damaged(tmp_path: Path, face_set_path: str) -> None:
    """A packed set is shuffled and lists its color order; bad records are listed."""
    packed([face_set_path], tmp_path / "set", num_shards=2)
    found = described(tmp_path / "set", tmp_path / "sheet.png")
    assert found["layout"] == "packed (2)"
    assert found["identities"] == "12 with images, 12 listed"
    assert found["order"].startswith("shuffled (")
    assert found["manifest"] == "rgb"
    write_face_set(tmp_path / "bad.rec", replaced={7: NO_IMAGE})
    break_frame(tmp_path / "bad.rec", 5)
    sheet = str(tmp_path / "s.png")
    lines = list(inspect_faces(str(tmp_path / "bad.rec"), sheet=sheet, check_all=True))
    first = lines.index("bad records        2 in all")
    assert "bad.rec, key 6 at offset" in lines[first + 1]
    assert "bad.rec, key 8: found" in lines[first + 2]


def test_inspect__without_labels(tmp_path: Path) -> None:
    """Without labels there is no label range, and the sheet samples the whole set."""
    write_plain(tmp_path / "data.rec", [-1.0] * 30, face_jpegs(30))
    found = described(tmp_path / "data.rec", tmp_path / "sheet.png")
    assert found["without label"] == "30"
    assert "labels" not in found
    assert cv2.imread(str(tmp_path / "sheet.png")).shape == (3 * 112, 12 * 112, 3)


def test_inspect__mxnet_file(tmp_path: Path) -> None:
    """A file written by mxnet is read like our own."""
    shutil.copytree(GOLDEN / "h3_insightface_rec", tmp_path / "set")
    found = described(tmp_path / "set" / "train.rec", tmp_path / "sheet.png")
    assert (found["images"], found["identities"]) == ("10", "4 with images, 4 listed")


@pytest.mark.parametrize(
    ("color", "order"),
    [((224, 172, 150), "rgb"), ((90, 60, 40), "rgb"), ((40, 60, 90), "bgr"), ((128, 128, 128), None)],
)
def test_skin_color_order(color: tuple[int, int, int], order: str | None) -> None:
    """Light and dark skin indicate the order of the channels; gray does not."""
    assert skin_color_order(np.full((112, 112, 3), color, np.uint8)) == order
