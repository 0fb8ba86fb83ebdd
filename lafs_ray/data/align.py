"""Five landmarks to the aligned face of 112×112 that networks are trained on."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lafs_ray.errors import DataError

# Where insightface's 112×112 faces have both eyes, the nose and the corners of the mouth, (x, y).
POSITIONS_PX = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
)
_SIDE_PX = 112


def similarity_to_positions(
    landmarks: NDArray[np.floating[Any]], subject: str
) -> NDArray[np.float64]:
    """The rotation, scaling and shift that brings landmarks nearest to `POSITIONS_PX`.

    Least squares over similarities without reflection, as Umeyama's (1991). Points are taken as
    complex numbers, where such a map is z -> a·z + b and the solution one quotient.

    Args:
        landmarks: (x, y) in pixels, [5, 2].
        subject: names the face in a message.

    Returns:
        Matrix [2, 3] from picture to aligned face.

    Raises:
        DataError: the landmarks are one point, or not finite.
    """
    points, wanted = landmarks.astype(np.float64) @ [1, 1j], POSITIONS_PX @ [1, 1j]
    offsets = points - points.mean()
    spread = float(np.sum(np.abs(offsets) ** 2))
    if not np.isfinite(spread) or spread == 0:
        raise DataError(
            subject,
            found=f"landmarks {landmarks.round(1).tolist()}",
            expected="five different points in pixels",
            fix="detect the face's landmarks anew, or remove it from the list",
        )
    turn = np.sum(offsets.conj() * (wanted - wanted.mean())) / spread
    shift = wanted.mean() - turn * points.mean()
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def align_face(
    picture: NDArray[np.uint8], landmarks: NDArray[np.floating[Any]], subject: str = "face"
) -> NDArray[np.uint8]:
    """The face cut out at insightface's positions; black where the picture ends.

    Args:
        picture: uint8 [H, W, 3].
        landmarks: (x, y) in pixels, [5, 2].
        subject: names the face in a message.

    Returns:
        uint8 [112, 112, 3], bilinear.

    Raises:
        DataError: the landmarks are one point, or not finite.
    """
    matrix = similarity_to_positions(landmarks, subject)
    face = cv2.warpAffine(picture, matrix, (_SIDE_PX, _SIDE_PX), flags=cv2.INTER_LINEAR)
    return np.asarray(face, dtype=np.uint8)
