from __future__ import annotations

import cv2
import numpy as np
import pytest

from lafs_ray.data.align import POSITIONS_PX, align_face, align_photo, estimate_similarity
from lafs_ray.errors import DataError
from tests.training.faces import face_jpegs, pixels_of


def umeyama(points: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Umeyama (1991), eq. 40-43, by singular values."""
    offsets, goals = points - points.mean(axis=0), target - target.mean(axis=0)
    left, values, right = np.linalg.svd(goals.T @ offsets / len(points))
    signs = np.array([1.0, np.sign(np.linalg.det(left) * np.linalg.det(right))])
    rotation = left @ np.diag(signs) @ right
    scale = (values * signs).sum() / offsets.var(axis=0).sum()
    shift = target.mean(axis=0) - scale * rotation @ points.mean(axis=0)
    return np.column_stack([scale * rotation, shift])


@pytest.mark.parametrize("mirrored", [False, True])
def test_similarity__equals_umeyama(mirrored: bool) -> None:
    """The quotient of complex sums is Umeyama's solution, also where a reflection is closer."""
    generator = np.random.default_rng(0)
    for _ in range(20):
        landmarks = POSITIONS_PX + generator.normal(0, 4, (5, 2))
        if mirrored:
            landmarks[:, 0] *= -1
        landmarks = landmarks * generator.uniform(0.5, 3) + generator.uniform(-50, 50, 2)
        # Float64 all the way.
        np.testing.assert_allclose(estimate_similarity(landmarks, "face"), umeyama(landmarks, POSITIONS_PX), atol=1e-9)


def test_align_face__undoes_a_turn() -> None:
    """Alignment inverts a rotation, scaling and translation."""
    face = pixels_of(face_jpegs(1)[0])
    turn = cv2.getRotationMatrix2D((60.0, 50.0), 20.0, 1.7)
    turn[:, 2] += 70, 60
    picture = cv2.warpAffine(face, turn, (300, 280))
    landmarks = POSITIONS_PX @ turn[:, :2].T + turn[:, 2]
    found = align_face(picture, landmarks)
    assert found.shape == (112, 112, 3)
    # Two bilinear interpolations of a smooth picture; its border may be outside.
    inner = np.abs(found.astype(int) - face)[8:-8, 8:-8]
    assert inner.mean() < 2


def test_align_face__outside_is_black() -> None:
    """The face is black outside the picture."""
    white = np.full((40, 60, 3), 255, dtype=np.uint8)
    found = align_face(white, POSITIONS_PX)
    assert (found[:39, :59] == 255).all()
    assert (found[41:] == 0).all()


@pytest.mark.parametrize("value", [7.0, np.nan])
def test_align_face__one_point(value: float) -> None:
    """Five equal landmarks are an error that names the face."""
    with pytest.raises(DataError, match=r"5\.jpg") as raised:
        align_face(np.zeros((9, 9, 3), np.uint8), np.full((5, 2), value), "5.jpg")
    assert "five different points" in raised.value.expected


@pytest.mark.parametrize("side", [100, 190, 500, 1120])
def test_align_photo__large_faces_are_not_aliased(side: int) -> None:
    """A face of any size becomes the face itself; stripes of a pixel become gray in more than twice the size."""
    face = pixels_of(face_jpegs(1)[0])
    way = cv2.INTER_AREA if side < 112 else cv2.INTER_LINEAR
    photo = np.asarray(cv2.resize(face, (side, side), interpolation=way), np.uint8)
    landmarks = (POSITIONS_PX + 0.5) * side / 112 - 0.5
    # Two interpolations; at the border, black enters.
    np.testing.assert_allclose(align_photo(photo, landmarks)[2:-2, 2:-2], face[2:-2, 2:-2], atol=12)
    stripes = np.zeros((side, side, 3), np.uint8)
    stripes[:, ::2] = 200
    deviation = align_photo(stripes, landmarks)[4:-4, 4:-4].std()
    assert deviation < 1 if side >= 500 else deviation > 1


def test_align_photo__points_outside() -> None:
    """Points far from a thin photo are no error of the warp: the face is black."""
    thin = np.full((1, 3000, 3), 90, np.uint8)
    assert align_photo(thin, POSITIONS_PX * 20).shape == (112, 112, 3)
