"""Second searches, and the choice among faces."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from lafs_ray.data.detection.attempts import LIMIT_PX, FaceRules, choose, find_faces
from lafs_ray.data.detection.backends import open_backend
from lafs_ray.data.detection.base import Detector, Faces, detector_of
from tests.data.detection.photos import mtcnn, mtcnn_folder, photo_of, true_points

__all__ = ["mtcnn", "mtcnn_folder"]


@pytest.fixture
def detector(mtcnn: None) -> Detector:
    return detector_of(open_backend("mtcnn"))


class Recorder:
    """Finds what it is given from the n-th search on, and records the photos."""

    def __init__(self, faces: Faces, first: int = 0) -> None:
        self.faces, self.first = faces, first
        self.photos: list[NDArray[np.uint8]] = []

    def detect(self, photo: NDArray[np.uint8]) -> Faces:
        self.photos.append(photo)
        return self.faces if len(self.photos) > self.first else self.faces.take(np.array([], int))

    def refine(self, photo: NDArray[np.uint8], faces: Faces) -> Faces:
        assert photo is self.photos[-1]
        return faces


def faces_at(*boxes: tuple[float, float, float], scores: tuple[float, ...] | None = None) -> Faces:
    """Faces as (left, top, side)."""
    return Faces(
        np.array([(left, top, left + side, top + side) for left, top, side in boxes], float).reshape(-1, 4),
        np.array([true_points(*box) for box in boxes]).reshape(-1, 5, 2),
        np.array(scores or [1.0] * len(boxes)),
    )


@pytest.mark.parametrize("side", [90, 150, 260])
def test_tight_crop__is_found_by_the_second_search(detector: Detector, side: int) -> None:
    """A face that fills the photo has no surroundings: it is found with a border, small ones at twice the size."""
    photo = photo_of((1, 0, 0, side), size=(side, side))
    assert len(detector.detect(photo)) == 0
    found = find_faces(detector, photo, FaceRules())
    assert found.second_search
    # As for a single search, see test_backends.
    np.testing.assert_allclose(found.faces.points[0], true_points(0, 0, side), atol=0.012 * side)


@pytest.mark.parametrize("side", [60, 300])
def test_second_search__shows_a_border_of_30_percent(side: int) -> None:
    """Gray on all sides, and twice the size below 200 pixels; coordinates are those of the photo."""
    recorder = Recorder(faces_at((10, 20, 200)), first=1)
    found = find_faces(recorder, photo_of(size=(side, side)), FaceRules())
    scale = 2 if side < 200 else 1
    border = round(0.3 * scale * side)
    assert recorder.photos[0].shape == (side, side, 3)
    assert recorder.photos[1].shape == (scale * side + 2 * border,) * 2 + (3,)
    assert (recorder.photos[1][:border] == 128).all()
    expected = (true_points(10, 20, 200) - border + 0.5) / scale - 0.5
    np.testing.assert_allclose(found.faces.points[0], expected, atol=1e-9)


def test_large_photo__is_searched_at_a_limited_size() -> None:
    """Both searches stay within the limit; points are those of the large photo."""
    recorder = Recorder(faces_at((100, 50, 300)), first=1)
    found = find_faces(recorder, photo_of(size=(1000, 3 * LIMIT_PX)), FaceRules())
    assert max(max(photo.shape) for photo in recorder.photos) <= LIMIT_PX + 1
    border = (recorder.photos[1].shape[1] - 800) // 2
    factor = 3 * LIMIT_PX / 800
    expected = (true_points(100, 50, 300) - border + 0.5) * factor - 0.5
    np.testing.assert_allclose(found.faces.points[0, :, 0], expected[:, 0], atol=1e-6)


def test_rules__count_what_they_leave_out() -> None:
    """Small and unsure faces are counted, the small first; a choice is made among the others."""
    faces = faces_at((0, 0, 20), (50, 0, 20), (100, 100, 60), (200, 0, 80), scores=(0.5, 0.9, 0.9, 0.5))
    found = find_faces(Recorder(faces), photo_of(size=(300, 300)), FaceRules(min_eye_px=10, min_score=0.8))
    assert (found.num_good, found.num_small, found.num_low) == (1, 2, 1)
    np.testing.assert_allclose(found.faces.points, faces.points[2:3])
    assert not found.second_search


def test_rules__nothing_within_them_tells_why() -> None:
    """If both searches find only small or unsure faces, they are counted."""
    found = find_faces(Recorder(faces_at((0, 0, 20))), photo_of(size=(300, 300)), FaceRules())
    assert (found.num_good, found.num_small, found.num_low, len(found.faces)) == (0, 1, 0, 0)


def test_choose() -> None:
    """The largest box, the one nearest to the middle, or all by size."""
    faces = faces_at((0, 0, 60), (45, 45, 10), (70, 70, 30))
    assert choose(faces, (100, 100), "largest").tolist() == [0]
    assert choose(faces, (100, 100), "central").tolist() == [1]
    assert choose(faces, (100, 100), "every").tolist() == [0, 2, 1]
    # Width and height are not exchanged.
    assert choose(faces_at((0, 80, 20), (80, 0, 20)), (30, 170), "central").tolist() == [1]
    assert choose(faces.take(np.array([], int)), (9, 9), "central").tolist() == []
