"""The landmarks of a face's mirror image, from those of the face.

A landmark CNN sees a mirrored face as a face of its own: its landmark of the eye on the viewer's left is there again,
which is the other eye of the face. Evaluation embeds mirror images so, and each of the transformer's positions belongs
to one landmark. So the landmarks of a mirrored view are those of the mirror image, in their own order, and not the
landmarks of the face in mirrored places. Shape letters: B images, N landmarks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lafs_ray.config import IMAGE_SIZE

# A mean face may lie some pixels beside the middle of the image: axes that are tried, as sums of mirrored coordinates.
_SUMS = IMAGE_SIZE + 1 + np.arange(-10, 10.25, 0.25)


@dataclass(frozen=True, eq=False)
class MirrorOrder:
    """Where the landmarks of mirror images lie on the faces.

    Args:
        nearest: number of the face's landmark that each lies on, int64 [N].
        shift_px: from there to it, float32 [N, 2].
    """

    nearest: NDArray[np.int64]
    shift_px: NDArray[np.float32]

    def with_mirrored(self, landmarks: NDArray[np.float16]) -> NDArray[np.float16]:
        """Return landmarks [B, N, 2] of faces and of their mirror images, [B, 2, N, 2], all as points of the face."""
        mirrored = landmarks[:, self.nearest] + self.shift_px
        return np.stack((landmarks, mirrored.astype(landmarks.dtype)), axis=1)


def mirror_order(positions: NDArray[np.floating[Any]]) -> MirrorOrder:
    """Return the order in which a set's mirror images have their landmarks, from its mean face.

    Each is the nearest landmark of the mean face, mirrored in its own axis, and shifted so that faces and mirror images
    have the same mean: a tool or CNN that puts a landmark a pixel to the right does so on mirror images, too.

    Args:
        positions: [N, 2] of an aligned face, or the mean of many, in pixels, (x, y).
    """
    places = np.asarray(positions, dtype=np.float64)

    def mirrored(total: float) -> NDArray[np.float64]:
        return places * (-1, 1) + (total, 0)

    def distances(total: float) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.linalg.norm(mirrored(total)[:, None] - places[None], axis=-1)
        return found

    # The first of equals is the middle of the image.
    sums = _SUMS[np.argsort(abs(_SUMS - IMAGE_SIZE - 1), kind="stable")]
    axis = min(sums.tolist(), key=lambda total: round(float(distances(total).min(axis=1).mean()), 6))
    nearest = distances(axis).argmin(axis=1)
    shift = mirrored(IMAGE_SIZE + 1) - places[nearest]
    return MirrorOrder(nearest, shift.astype(np.float32))
