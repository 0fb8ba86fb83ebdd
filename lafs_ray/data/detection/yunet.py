"""YuNet (Wu et al. 2023) from an ONNX file, run by OpenCV's `FaceDetectorYN`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.detection.base import MIRRORED, NO_FACES, Faces

OUTPUTS = frozenset(f"{name}_{stride}" for name in ("cls", "obj", "bbox", "kps") for stride in (8, 16, 32))
_SCORE, _OVERLAP, _MOST_FACES = 0.6, 0.3, 500
# A face is located again in a picture of this side, of which its box takes half.
_CLOSE_UP_PX, _CLOSE_UP_BOXES = 256, 2.0
_GRAY = (128, 128, 128)
# LOG_LEVEL_ERROR, which OpenCV 4 does not name.
_ERRORS = 2


class Yunet:
    """The detector.

    Args:
        content: one ONNX file, by name.

    Raises:
        ValueError: it has other outputs.
        cv2.error: it is no ONNX file, or cannot be run.
    """

    def __init__(self, content: dict[str, bytes]) -> None:
        (data,) = content.values()
        with tempfile.TemporaryDirectory() as folder, _without_warnings():
            path = os.path.join(folder, "yunet.onnx")
            with open(path, "wb") as file:
                file.write(data)
            outputs = cv2.dnn.readNetFromONNX(path).getUnconnectedOutLayersNames()
            if set(outputs) != OUTPUTS:
                raise ValueError(f"outputs {', '.join(sorted(outputs)[:6])}")
            self._network: Any = cv2.FaceDetectorYN.create(path, "", (320, 320), _SCORE, _OVERLAP, _MOST_FACES)
            self.detect(np.full((320, 320, 3), 128, np.uint8))

    def detect(self, photo: NDArray[np.uint8]) -> Faces:
        """Find the faces of a photo; see `Detector`."""
        height, width = photo.shape[:2]
        self._network.setInputSize((width, height))
        found = self._network.detect(np.ascontiguousarray(photo[..., ::-1]))[1]
        if found is None:
            return NO_FACES
        found = found.astype(np.float64)
        boxes = np.hstack([found[:, :2], found[:, :2] + found[:, 2:4]])
        # It names the sides of the person: its right eye is the left one in the photo.
        return Faces(boxes, found[:, 4:14].reshape(-1, 5, 2), found[:, 14])

    def refine(self, photo: NDArray[np.uint8], faces: Faces) -> Faces:
        """Detect again in a close-up of each face and in its mirror image, and average."""
        points = [self._closer(photo, box, points) for box, points in zip(faces.boxes, faces.points, strict=True)]
        return replace(faces, points=np.array(points).reshape(-1, 5, 2))

    def _closer(
        self, photo: NDArray[np.uint8], box: NDArray[np.float64], points: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        side = max(float((box[2:] - box[:2]).max()), 1.0) * _CLOSE_UP_BOXES
        scale, middle = _CLOSE_UP_PX / side, (_CLOSE_UP_PX - 1) / 2
        offset = middle - scale * (box[:2] + box[2:]) / 2
        matrix = np.array([[scale, 0, offset[0]], [0, scale, offset[1]]])
        flags = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        close_up = cv2.warpAffine(photo, matrix, (_CLOSE_UP_PX, _CLOSE_UP_PX), flags=flags, borderValue=_GRAY)
        found = []
        for is_mirrored in (False, True):
            faces = self.detect(close_up[:, ::-1] if is_mirrored else close_up)
            if not len(faces):
                continue
            distance = np.linalg.norm((faces.boxes[:, :2] + faces.boxes[:, 2:]) / 2 - middle, axis=1)
            nearest = faces.points[np.argmin(distance)]
            if is_mirrored:
                nearest = (nearest * (-1, 1) + (_CLOSE_UP_PX - 1, 0))[MIRRORED]
            found.append(nearest)
        if not found:
            return points
        result: NDArray[np.float64] = (np.mean(found, axis=0) - offset) / scale
        return result


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep OpenCV from printing about backends that it does not use."""
    # OpenCV 5 moved the functions.
    log: Any = cv2.utils.logging if hasattr(cv2.utils, "logging") else cv2
    before = log.getLogLevel()
    log.setLogLevel(_ERRORS)
    try:
        yield
    finally:
        log.setLogLevel(before)
