"""Faces found in a photo, and the protocol of a detector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

MIRRORED = [1, 0, 2, 4, 3]
"""The five points of a mirror image in the order of the face."""


@dataclass(frozen=True, eq=False)
class Faces:
    """Faces of one photo, in no particular order.

    Args:
        boxes: left, top, right, bottom in pixels, float64 [n, 4]; they may reach beyond the photo.
        points: eyes, nose, corners of the mouth as (x, y) in pixels, the left one in the photo first; float64
            [n, 5, 2].
        scores: 0 to 1, float64 [n].
    """

    boxes: NDArray[np.float64]
    points: NDArray[np.float64]
    scores: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def eye_distances(self) -> NDArray[np.float64]:
        """Pixels between the eyes, float64 [n]."""
        return np.asarray(np.linalg.norm(self.points[:, 1] - self.points[:, 0], axis=1))

    def take(self, index: NDArray[Any]) -> Faces:
        """Return the faces of an index or a mask."""
        return Faces(self.boxes[index], self.points[index], self.scores[index])


NO_FACES = Faces(np.zeros((0, 4)), np.zeros((0, 5, 2)), np.zeros(0))


class Detector(Protocol):
    """A face detector; photos are RGB uint8 [H, W, 3]."""

    def detect(self, photo: NDArray[np.uint8]) -> Faces:
        """Find the faces of a photo."""

    def refine(self, photo: NDArray[np.uint8], faces: Faces) -> Faces:
        """Locate the points of faces, found in the same photo, more exactly."""


@dataclass(frozen=True)
class Backend:
    """What makes a detector, in any process.

    Args:
        name: of the detector.
        fingerprint: hash of its weights.
        content: of its files, by name.
        build: makes the detector from the content.
    """

    name: str
    fingerprint: str
    content: dict[str, bytes] = field(compare=False, repr=False)
    build: Callable[[dict[str, bytes]], Detector] = field(compare=False)


@lru_cache(maxsize=1)
def detector_of(backend: Backend) -> Detector:
    """Return the detector of a backend, built once in each process."""
    return backend.build(backend.content)
