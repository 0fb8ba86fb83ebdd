"""True landmarks of synthetic faces: points of the head's surface, wherever pose and expression move them.

A layout gives N positions on the mean real face, aligned. They are carried to an identity's head with its expression by
a thin-plate spline between corresponding control points (corners of eyes and mouth, brows, nose, lips, outline), then
rotated with the head and projected as its pixels are. Points that the head or an object hides keep their position.
Letters: N landmarks, K control points.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.facemesh import mean_facemesh
from lafs_ray.data.landmark_template import grid_template
from lafs_ray.errors import ConfigError
from lafs_ray.synthetic.canvas import mirrored
from lafs_ray.synthetic.capture import Capture
from lafs_ray.synthetic.features import Features
from lafs_ray.synthetic.identity import Geometry, Identity
from lafs_ray.synthetic.renderer import project

FACEMESH = "facemesh"

Points = NDArray[np.float32]
"""Positions (x, y), [N, 2]."""

# Control points of the mean of 2,558 aligned real faces, in pixels from the middle (x = 56): those of the right side,
# which the left one mirrors, then those in the middle. The same order as in `_control_points`.
_MEAN_RIGHT = (
    *((26.3, 51.9), (10.0, 53.0), (19.3, 49.5), (18.1, 54.3)),  # eye: outer and inner corner, upper and lower lid
    *((8.1, 42.6), (23.3, 40.5), (32.0, 44.6)),  # brow: inner end, middle, outer end
    *((12.1, 73.2), (15.0, 89.8)),  # wing of the nose, corner of the mouth
    *((32.6, 94.2), (22.8, 104.4), (40.6, 61.2), (41.0, 53.4)),  # jaw: two points; side of the head: two points
)
_MEAN_MIDDLE = (
    *((0.0, 50.2), (0.0, 75.8), (0.0, 78.9)),  # nose: root, tip, below
    *((0.0, 86.6), (0.0, 89.8), (0.0, 91.9), (0.0, 97.2)),  # lips: top, inner edges, bottom
    *((0.0, 113.7), (0.0, 24.1)),  # chin, forehead
)


def layout_positions(layout: str) -> Points:
    """Return the positions of a layout on the mean aligned face, float32 [N, 2] in pixels.

    Args:
        layout: `facemesh`, the 196 points of `lafs_ray.data.facemesh`, or a square number N, a grid as in
            `grid_template`.

    Raises:
        ConfigError: it is neither.
    """
    if layout == FACEMESH:
        return mean_facemesh()
    if layout.isdecimal() and 1 <= int(layout) <= 4096 and math.isqrt(int(layout)) ** 2 == int(layout):
        return grid_template(int(layout))
    raise ConfigError(
        "--landmarks",
        found=repr(layout),
        expected=f"{FACEMESH}, or a square number of landmarks such as 25, 49 or 196",
        fix="choose one of them",
    )


def true_landmarks(identity: Identity, capture: Capture, positions: Points) -> Points:
    """Return the landmarks of an image, float32 [N, 2] in pixels, (x, y); a pixel's middle is at ½.

    Args:
        identity: of the face.
        capture: of the image.
        positions: of a layout, [N, 2].
    """
    features = Features.of(identity.geometry, capture)
    on_head = thin_plate_spline(_mean_control_points(), _control_points(identity.geometry, features), positions)
    landmarks: Points = project(identity.geometry, capture, on_head) + np.float32(0.5)
    return landmarks


def _mean_control_points() -> Points:
    points = np.array([*_MEAN_RIGHT, *mirrored(list(_MEAN_RIGHT)), *_MEAN_MIDDLE], np.float32)
    points[:, 0] += 56
    mean: Points = points
    return mean


def _control_points(geometry: Geometry, features: Features) -> Points:
    """Return control points on the frontal head, [K, 2], with x to the right and y down from the eyes' middle."""
    eye, width, tilt = geometry.eye_spacing, geometry.eye_width, geometry.eye_tilt
    high = max(0.7, features.eye_opening)
    inner, length = 0.42 * eye - 0.6, 2 * geometry.brow_length

    def brow(t: float, rise: float) -> tuple[float, float]:
        drop = 1.3 - rise * geometry.brow_arch - geometry.brow_tilt * (t - 0.4) * length
        return inner + t * length, features.brow_y + drop

    wide, drop = geometry.cheek_width, features.jaw_drop
    chin, jaw_x = geometry.chin_y + drop, geometry.cheek_width * geometry.jaw_ratio
    jaw_y = geometry.mouth_y - 2 + 0.6 * drop
    right = [
        *((eye + width, 0.1 - tilt * width), (eye - width, 0.9 + tilt * width)),
        *((eye + 0.1 * width, -high), (eye - 0.1 * width, 0.72 * high)),
        *(brow(0.0, 0.0), brow(0.6, 0.9), brow(1.0, 0.25)),
        *((geometry.nose_width, geometry.nose_y - 0.4), (features.mouth_x, features.corner_y)),
        *((jaw_x, jaw_y), (0.5 * (jaw_x + geometry.chin_width), 0.5 * (jaw_y + chin) + 4)),
        *((wide, 8.0), (wide * (0.6 + 0.4 * geometry.temple_ratio), 1.5)),
    ]
    mouth, gap, skew = geometry.mouth_y, features.lip_gap, geometry.nose_skew
    middle = [
        *((0.0, -1.0), (skew, geometry.nose_y - 1.0), (skew, geometry.nose_y + 2.0)),
        *((0.0, mouth - geometry.upper_lip), (0.0, mouth + 0.3), (0.0, mouth + gap + 0.4)),
        *((0.0, mouth + gap + geometry.lower_lip), (0.0, chin), (0.0, 0.55 * geometry.skull_y)),
    ]
    points = np.array([*right, *mirrored(right), *middle], np.float32)
    # `paint_mouth` turns the corners of a skew mouth up and down.
    corner = len(right) - 5
    points[corner, 1] += geometry.mouth_skew
    points[2 * len(right) - 1 - corner, 1] -= geometry.mouth_skew
    return points


def thin_plate_spline(source: Points, target: Points, positions: Points) -> Points:
    """Map positions by the smoothest function that maps `source` to `target` [K, 2]; float32 [N, 2]."""
    count = len(source)
    knots, wanted = source.astype(np.float64), positions.astype(np.float64)
    system = np.zeros((count + 3, count + 3))
    system[:count, :count] = _kernel(knots, knots)
    system[:count, count:] = np.hstack([np.ones((count, 1)), knots])
    system[count:, :count] = system[:count, count:].T
    weights = np.linalg.solve(system, np.concatenate([target.astype(np.float64), np.zeros((3, 2))]))
    basis = np.hstack([_kernel(wanted, knots), np.ones((len(wanted), 1)), wanted])
    mapped: Points = (basis @ weights).astype(np.float32)
    return mapped


def _kernel(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return r² log r between points, [len(first), len(second)]."""
    squares = ((first[:, None] - second[None]) ** 2).sum(axis=-1)
    kernel: NDArray[np.float64] = 0.5 * squares * np.log(np.maximum(squares, 1e-12))
    return kernel
