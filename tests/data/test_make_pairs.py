"""Pair files of LFW's list and a folder, and of a labeled set."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from lafs_ray.data.eval_sets import open_pairs
from lafs_ray.data.face_set import open_faces
from lafs_ray.data.make_pairs import drawn_pairs, listed_pairs
from lafs_ray.data.verification_pairs import write_pairs
from lafs_ray.errors import DataError
from tests.training.faces import face_jpegs, pixels_of, write_face_set

LIST = "1\t2\nAnn_Lee\t1\t2\nBob\t1\t3\nAnn_Lee\t1\tBob\t3\nBob\t1\tAnn_Lee\t2\n"
IMAGES = [("Ann_Lee", 1), ("Ann_Lee", 2), ("Bob", 1), ("Bob", 3)]


def write_lfw(folder: Path, form: str) -> dict[tuple[str, int], bytes]:
    """Write the images of the list under names of this form."""
    contents = dict(zip(IMAGES, face_jpegs(4, seed=2), strict=True))
    for (name, number), data in contents.items():
        path = folder / form.format(name=name, number=number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return contents


@pytest.mark.parametrize(
    "form",
    [
        "{name}/{name}_{number:04d}.jpg",
        "lfw/{name}/{name}_{number:04d}.PNG",
        "{name}_{number}.jpg",
        "{name}/{number:04d}.webp",
    ],
)
def test_listed_pairs__every_layout(tmp_path: Path, form: str) -> None:
    """The pairs of the list in its order, whatever version of LFW the folder holds."""
    contents = write_lfw(tmp_path / "lfw", form)
    (tmp_path / "pairs.txt").write_text(LIST)
    pairs = listed_pairs(str(tmp_path / "lfw"), str(tmp_path / "pairs.txt"))
    order = [0, 1, 2, 3, 0, 3, 2, 1]
    assert pairs.images == [contents[IMAGES[number]] for number in order]
    assert pairs.same.tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (LIST + "Ann_Lee\t7\t8\n", "2 of 6 images that are not in"),
        ("1\t2\nAnn_Lee\tone\t2\n", "'Ann_Lee"),
        ("10\t300\n", "no pairs"),
        ("Ann_Lee 1\n", "'Ann_Lee 1'"),
    ],
)
def test_listed_pairs__refused(tmp_path: Path, text: str, found: str) -> None:
    """Missing images, other lines and an empty list are named."""
    write_lfw(tmp_path / "lfw", "{name}/{name}_{number:04d}.jpg")
    (tmp_path / "pairs.txt").write_text(text)
    with pytest.raises(DataError) as raised:
        listed_pairs(str(tmp_path / "lfw"), str(tmp_path / "pairs.txt"))
    assert found in raised.value.found


def test_listed_pairs__two_versions_of_an_image(tmp_path: Path) -> None:
    """An image that is there twice is refused."""
    write_lfw(tmp_path / "lfw", "a/{name}/{name}_{number:04d}.jpg")
    write_lfw(tmp_path / "lfw", "b/{name}/{name}_{number:04d}.png")
    (tmp_path / "pairs.txt").write_text(LIST)
    with pytest.raises(DataError, match="one version"):
        listed_pairs(str(tmp_path / "lfw"), str(tmp_path / "pairs.txt"))


def test_drawn_pairs__balanced_and_without_common_identities(tmp_path: Path) -> None:
    """Every fold has as many pairs of one identity as of two, all different; no identity is in two folds."""
    write_face_set(tmp_path / "a.rec", 12, 6)
    faces = open_faces(str(tmp_path / "a.rec"))
    labels, images = faces.labels(), faces.read(np.arange(faces.num_images)).images
    drawn = drawn_pairs(str(tmp_path / "a.rec"), 48, 4, seed=3)
    identity = {image: int(label) for image, label in zip(images, labels, strict=True)}
    pairs = np.array([identity[image] for image in drawn.images]).reshape(4, 12, 2)
    same = drawn.same.reshape(4, 12)
    assert np.array_equal(pairs[..., 0] == pairs[..., 1], same)
    assert same.sum(axis=1).tolist() == [6] * 4
    folds = [set(fold.ravel().tolist()) for fold in pairs]
    assert not any(folds[i] & folds[j] for i in range(4) for j in range(i))
    assert len({frozenset(pair) for pair in zip(drawn.images[::2], drawn.images[1::2], strict=True)}) == 48
    assert drawn_pairs(str(tmp_path / "a.rec"), 48, 4, seed=3).images == drawn.images
    assert drawn_pairs(str(tmp_path / "a.rec"), 48, 4, seed=4).images != drawn.images


@pytest.mark.parametrize(("num_pairs", "folds"), [(50, 4), (0, 1), (8, 0), (4000, 2), (48, 12)])
def test_drawn_pairs__impossible(tmp_path: Path, num_pairs: int, folds: int) -> None:
    """Odd numbers, more pairs than there are, and folds of a single identity are refused."""
    write_face_set(tmp_path / "a.rec", 12, 6)
    with pytest.raises(DataError):
        drawn_pairs(str(tmp_path / "a.rec"), num_pairs, folds, seed=0)


def test_open_pairs__of_another_size(tmp_path: Path) -> None:
    """With `resize`, square images are scaled bicubically, as in the released evaluation; without, they are refused."""
    images = face_jpegs(2, size=(224, 224))
    write_pairs(str(tmp_path / "a.bin"), images, [True])
    with pytest.raises(DataError, match="224x224"):
        open_pairs(str(tmp_path / "a.bin")).faces.read(0, 2)
    pixels = open_pairs(str(tmp_path / "a.bin"), resize=True).faces.read(0, 2)
    expected = [cv2.resize(pixels_of(image), (112, 112), interpolation=cv2.INTER_CUBIC) for image in images]
    assert np.array_equal(pixels, np.stack(expected))
