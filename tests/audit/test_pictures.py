"""Identical pictures and near-duplicates."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from lafs_ray.audit import duplicates
from lafs_ray.audit.duplicates import identical_pictures
from lafs_ray.audit.embeddings import read_embeddings
from lafs_ray.audit.nearest import Gallery, Neighbors
from lafs_ray.audit.pictures import SAME_PICTURE, _gray, picture_similarity, read_pictures
from lafs_ray.data.eval_sets import open_images
from lafs_ray.data.packing.session import apply_in_process
from lafs_ray.synthetic.capture import sample_capture
from lafs_ray.synthetic.datasets import encode_face
from lafs_ray.synthetic.identity import sample_identity
from tests.audit.sets import write_embeddings


def face(identity: int, index: int) -> bytes:
    return encode_face(sample_identity(0, identity), sample_capture(0, identity, index))


def cropped(jpeg: bytes, share: float, y: float, x: float, quality: int = 50) -> bytes:
    """Crop by a share of the side, of it y above and x to the left; scale back and encode again."""
    pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    side = len(pixels)
    off = round(side * share)
    top, left = round(off * y), round(off * x)
    inner = pixels[top : top + side - off, left : left + side - off]
    encoded = cv2.imencode(".jpg", cv2.resize(inner, (side, side)), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return encoded.tobytes()


@pytest.mark.parametrize(("share", "y", "x"), [(0, 0, 0), (0.05, 1, 0), (0.1, 0.5, 0.5), (0.15, 0, 1)])
def test_picture_similarity__of_copies(share: float, y: float, x: float) -> None:
    """A copy at quality 50, cropped at any place, is recognized in both directions."""
    for identity in range(4):
        original = face(identity, 0)
        one, copy = _gray(original), _gray(cropped(original, share, y, x))
        assert picture_similarity(one, copy) >= SAME_PICTURE
        assert picture_similarity(copy, one) >= SAME_PICTURE


def test_picture_similarity__of_other_pictures() -> None:
    """Other pictures of the same identity, of another one, and flat ones are no copies."""
    for index in range(1, 6):
        assert picture_similarity(_gray(face(0, 0)), _gray(face(0, index))) < SAME_PICTURE
        assert picture_similarity(_gray(face(0, 0)), _gray(face(index, 0))) < SAME_PICTURE
    flat = np.full((56, 56), 90, np.uint8)
    assert picture_similarity(flat, flat) == 0.0


def test_gray__damaged() -> None:
    """A picture that does not decode is black, so it is similar to none."""
    assert not _gray(b"no picture").any()
    assert not _gray(face(0, 0)[:400]).any()


def test_identical_pictures__within_and_between() -> None:
    """Within a set the first row of a group goes with each later one; between sets all of the second with a first."""
    first = np.array([5, 7, 5, 9, 5], np.uint64)
    rows, later = identical_pictures(first, None)
    assert sorted(zip(rows.tolist(), later.tolist(), strict=True)) == [(0, 2), (0, 4)]
    rows, others = identical_pictures(first, np.array([9, 1, 5], np.uint64))
    assert list(zip(rows.tolist(), others.tolist(), strict=True)) == [(3, 0), (0, 2)]
    assert len(identical_pictures(first, np.array([11], np.uint64))[0]) == 0


def test_find_copies__few_comparisons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Descriptors alone propose every planted copy, and few other pairs reach the slow comparison of pixels."""
    originals = [face(identity, index) for identity in range(30) for index in range(3)]
    places = [(share, y, x) for share in (0.03, 0.08, 0.12, 0.15) for y, x in ((0, 0), (0.5, 0.5), (1, 0.3))]
    copies = [cropped(originals[7 * number], *place) for number, place in enumerate(places)]
    train = write_embeddings(
        tmp_path / "a", np.eye(len(originals) + len(copies), dtype=np.float32), None, originals + copies
    )
    embedded, _ = read_embeddings(train, str(tmp_path / "vectors.raw"))
    pictures = read_pictures(embedded, open_images(embedded.faces), str(tmp_path))
    compared = []

    def counted(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
        compared.append(1)
        return picture_similarity(one, other)

    monkeypatch.setattr(duplicates, "picture_similarity", counted)
    none = Neighbors(np.full((embedded.num_rows, 1), -1, np.int32), np.zeros((embedded.num_rows, 1), np.float32))
    descriptors = Gallery(pictures.descriptors, str(tmp_path))
    found = duplicates.find_copies(pictures, None, none, descriptors, str(tmp_path), apply_in_process)
    planted = {(7 * number, len(originals) + number) for number in range(len(copies))}
    assert set(zip(found.first.tolist(), found.second.tolist(), strict=True)) == planted
    assert len(compared) < 2 * embedded.num_rows
