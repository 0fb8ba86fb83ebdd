"""Search a photo, again with a border where nothing was found, and keep the faces of the rules.

Detectors miss faces that fill a tight crop: a gray border of 30 % around it, and twice the size if it is small, finds
most of them. Photos of more than `LIMIT_PX` are searched at that size, which bounds time and memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.detection.base import NO_FACES, Detector, Faces

Choice = Literal["largest", "central", "every"]

LIMIT_PX = 1280
"""Longest side that is searched; a face is found down to a sixty-fourth of it."""

_BORDER = 0.3
_SMALL_PX = 200
_GRAY = (128, 128, 128)


@dataclass(frozen=True)
class FaceRules:
    """Which faces of a photo are kept.

    Args:
        choice: the largest box, the box nearest to the middle of the photo, or every one.
        min_eye_px: least distance of the eyes in the photo.
        min_score: least score.
    """

    choice: Choice = "largest"
    min_eye_px: float = 10.0
    min_score: float = 0.8


@dataclass(frozen=True, eq=False)
class Found:
    """What was found in a photo.

    Args:
        faces: those to keep, in pixels of the photo, best first.
        num_good: faces within the rules, before the choice.
        num_small: others, with too little between the eyes.
        num_low: others, with too low a score.
        second_search: whether they are those of the second search.
    """

    faces: Faces
    num_good: int
    num_small: int
    num_low: int
    second_search: bool


@dataclass(frozen=True, eq=False)
class _View:
    """A photo as it is searched: scaled, with a border."""

    pixels: NDArray[np.uint8]
    scale: NDArray[np.float64]
    border: int

    def to_photo(self, faces: Faces) -> Faces:
        # Pixel centers have whole coordinates.
        points = (faces.points - self.border + 0.5) / self.scale - 0.5
        boxes = (faces.boxes - self.border + 0.5) / np.tile(self.scale, 2) - 0.5
        return Faces(boxes, points, faces.scores)


def find_faces(detector: Detector, photo: NDArray[np.uint8], rules: FaceRules) -> Found:
    """Find the faces of a photo that the rules keep.

    Args:
        detector: of any backend.
        photo: RGB uint8 [H, W, 3].
        rules: which to keep.
    """
    found = _search(detector, photo, rules, again=False)
    if found.num_good:
        return found
    second = _search(detector, photo, rules, again=True)
    return second if second.num_good or not (found.num_small or found.num_low) else found


def _search(detector: Detector, photo: NDArray[np.uint8], rules: FaceRules, *, again: bool) -> Found:
    view = _view(photo, again=again)
    seen = detector.detect(view.pixels)
    faces = view.to_photo(seen)
    is_small = faces.eye_distances < rules.min_eye_px
    is_low = ~is_small & (faces.scores < rules.min_score)
    good = np.flatnonzero(~is_small & ~is_low)
    chosen = good[choose(faces.take(good), photo.shape[:2], rules.choice)]
    kept = view.to_photo(detector.refine(view.pixels, seen.take(chosen))) if len(chosen) else NO_FACES
    return Found(kept, len(good), int(is_small.sum()), int(is_low.sum()), again)


def _view(photo: NDArray[np.uint8], *, again: bool) -> _View:
    height, width = photo.shape[:2]
    scale = min(LIMIT_PX / max(height, width), 1.0)
    if again:
        scale = 2.0 if min(height, width) < _SMALL_PX else min(scale, LIMIT_PX / (1 + 2 * _BORDER) / max(height, width))
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    if size != (width, height):
        way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        photo = np.asarray(cv2.resize(photo, size, interpolation=way), np.uint8)
    border = round(_BORDER * max(size)) if again else 0
    if border:
        edges = (border, border, border, border)
        photo = np.asarray(cv2.copyMakeBorder(photo, *edges, cv2.BORDER_CONSTANT, value=_GRAY), np.uint8)
    return _View(photo, np.array([size[0] / width, size[1] / height]), border)


def choose(faces: Faces, size: tuple[int, int], choice: Choice) -> NDArray[np.intp]:
    """Return the index of the chosen faces, the largest first; for `central`, the most central one.

    Args:
        faces: any number.
        size: height and width of the photo.
        choice: see `FaceRules`.
    """
    sides = faces.boxes[:, 2:] - faces.boxes[:, :2]
    if choice == "central":
        middle = (np.array([size[1], size[0]]) - 1) / 2
        distance = np.linalg.norm((faces.boxes[:, :2] + faces.boxes[:, 2:]) / 2 - middle, axis=1)
        return np.argsort(distance, kind="stable")[:1]
    order = np.argsort(-sides.prod(axis=1), kind="stable")
    return order if choice == "every" else order[:1]
