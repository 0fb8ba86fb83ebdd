"""The landmarks of a face's mirror image, from those of the face.

A landmark CNN sees a mirrored face as a face of its own: its landmark of the eye on the viewer's left is there again,
which is the other eye of the face. Evaluation embeds mirror images so, and each of the transformer's positions belongs
to one landmark. So the landmarks of a mirrored view are those of the mirror image, in their own order, and not the
landmarks of the face in mirrored places. Shape letters: B images, N landmarks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lafs_ray.config import IMAGE_SIZE

Order = NDArray[np.int64]

# A mean face may lie some pixels beside the middle of the image: axes that are tried, as sums of mirrored coordinates.
_SUMS = IMAGE_SIZE + 1 + np.arange(-10, 10.25, 0.25)


def mirror_order(positions: NDArray[np.floating]) -> Order:
    """Return, for each landmark of a mirrored face, the number of the face's landmark that it lies on, int64 [N].

    It is the nearest one to its mirrored place, on a mean face mirrored in its own axis: exact for layouts that are
    symmetric.

    Args:
        positions: [N, 2] of an aligned face, or the mean of many, in pixels, (x, y).
    """
    places = np.asarray(positions, dtype=np.float64)

    def distances(total: float) -> NDArray[np.float64]:
        mirrored = places * (-1, 1) + (total, 0)
        found: NDArray[np.float64] = np.linalg.norm(mirrored[:, None] - places[None], axis=-1)
        return found

    # The first of equals is the middle of the image.
    sums = _SUMS[np.argsort(abs(_SUMS - IMAGE_SIZE - 1), kind="stable")]
    axis = min(sums.tolist(), key=lambda total: round(float(distances(total).min(axis=1).mean()), 6))
    order: Order = distances(axis).argmin(axis=1)
    return order


def with_mirrored(landmarks: NDArray[np.float16], order: Order) -> NDArray[np.float16]:
    """Return landmarks [B, N, 2] of faces and of their mirror images, [B, 2, N, 2], all as points of the face."""
    return np.stack((landmarks, landmarks[:, order]), axis=1)
