"""Align a face to 112×112 pixels by five landmarks, as insightface does."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lafs_ray.config import IMAGE_SIZE
from lafs_ray.errors import DataError

# Landmarks of insightface's aligned faces, (x, y): eyes, nose, corners of the mouth.
POSITIONS_PX = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)


def estimate_similarity(landmarks: NDArray[np.floating[Any]], subject: str) -> NDArray[np.float64]:
    """Estimate the similarity transform (no reflection) from landmarks to `POSITIONS_PX`.

    Least squares, as in Umeyama (1991). With points as complex numbers the transform is z -> a·z + b, and its solution
    one quotient.

    Args:
        landmarks: (x, y) in pixels, [5, 2].
        subject: the face, for messages.

    Returns:
        Matrix [2, 3] from picture to aligned face.

    Raises:
        DataError: all landmarks are one point, or one is not finite.
    """
    points, target = landmarks.astype(np.float64) @ [1, 1j], POSITIONS_PX @ [1, 1j]
    offsets = points - points.mean()
    spread = float(np.sum(np.abs(offsets) ** 2))
    if not np.isfinite(spread) or spread == 0:
        raise DataError(
            subject,
            found=f"landmarks {landmarks.round(1).tolist()}",
            expected="five different points in pixels",
            fix="detect the face's landmarks again, or remove it from the list",
        )
    a = np.sum(offsets.conj() * (target - target.mean())) / spread
    b = target.mean() - a * points.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def align_face(
    picture: NDArray[np.uint8], landmarks: NDArray[np.floating[Any]], subject: str = "face"
) -> NDArray[np.uint8]:
    """Warp a face to insightface's positions; black outside the picture.

    Args:
        picture: uint8 [H, W, 3].
        landmarks: (x, y) in pixels, [5, 2].
        subject: the face, for messages.

    Returns:
        uint8 [112, 112, 3], bilinear.

    Raises:
        DataError: the landmarks are one point, or not finite.
    """
    return _warp(picture, estimate_similarity(landmarks, subject))


def _warp(picture: NDArray[np.uint8], matrix: NDArray[np.float64]) -> NDArray[np.uint8]:
    face = cv2.warpAffine(picture, matrix, (IMAGE_SIZE, IMAGE_SIZE), flags=cv2.INTER_LINEAR)
    return np.asarray(face, dtype=np.uint8)


def align_photo(
    photo: NDArray[np.uint8], landmarks: NDArray[np.floating[Any]], subject: str = "face"
) -> NDArray[np.uint8]:
    """Align a face as `align_face` does, without aliasing: a larger face is first reduced by averaging pixels.

    The reduction leaves at least as many pixels as the aligned face has; faces up to twice its size are not reduced.

    Args:
        photo: uint8 [H, W, 3].
        landmarks: (x, y) in pixels, [5, 2].
        subject: the face, for messages.

    Returns:
        uint8 [112, 112, 3].

    Raises:
        DataError: the landmarks are one point, or not finite.
    """
    matrix = estimate_similarity(landmarks, subject)
    factor = max(int(1 / float(np.hypot(matrix[0, 0], matrix[1, 0]))), 1)
    height, width = photo.shape[:2]
    size = width // factor, height // factor
    if factor < 2 or min(size) < 1:
        return _warp(photo, matrix)
    # Whole blocks of factor × factor pixels; their centers have whole coordinates in the reduced photo.
    photo = np.asarray(cv2.resize(photo[: size[1] * factor, : size[0] * factor], size, interpolation=cv2.INTER_AREA))
    return align_face(photo, (landmarks + 0.5) / factor - 0.5, subject)
