"""Canvas of synthetic faces: soft-edged polygons, smooth lines and sums of Gaussians.

It is larger and finer (`SCALE`) than the final image, so that a rotation reveals what is behind the ears and the final
sampling is anti-aliased. Wide soft tones (cheeks, eye sockets, beard shadow) are a sum of separable Gaussians, one
small matrix product for the whole face; sharp shapes are polygons with a blurred mask, blended only inside their
bounding box. Color planes come first, so that the inner loops of numpy run along rows and not over three channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from lafs_ray.synthetic.identity import Array, Color

SCALE = 4 / 3
SIDE = 192
ORIGIN = (72.0, 66.0)  # the point between the eyes on the canvas, in image pixels

_TURN = np.linspace(0, 2 * np.pi, 24, endpoint=False, dtype=np.float32)
_CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)], axis=1)

Mask = npt.NDArray[np.uint8]
Points = Sequence[tuple[float, float]]


def gaussian_sum(blobs: Sequence[Sequence[float]], side: int) -> Array:
    """Return a sum of Gaussians over the whole canvas sampled at [C,side,side].

    A row of `blobs` is (x, y, sigma_x, sigma_y, height in each of the C channels). As a loop:
    `out[c,j,i] += height[c] * exp(-((x_i-x)/sigma_x)**2/2 - ((y_j-y)/sigma_y)**2/2)`.
    """
    rows = np.array(blobs, dtype=np.float32)
    grid = (np.arange(side, dtype=np.float32) + 0.5) * np.float32(SIDE / SCALE / side)
    across = np.exp(-0.5 * ((grid - ORIGIN[0] - rows[:, 0:1]) / rows[:, 2:3]) ** 2)
    down = np.exp(-0.5 * ((grid - ORIGIN[1] - rows[:, 1:2]) / rows[:, 3:4]) ** 2)
    total: Array = (rows[:, 4:].T[:, None, :] * down.T) @ across
    return total


def both_sides(rows: Sequence[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Return the rows (x, ...) followed by their mirror images (-x, ...)."""
    return [*rows, *((-row[0], *row[1:]) for row in rows)]


def mirrored(half: Points) -> list[tuple[float, float]]:
    """Return the mirror image of a line (x, y) at the vertical axis, in reverse order."""
    return [(-x, y) for x, y in reversed(half)]


def curve(points: Points | Array, *, closed: bool = False) -> Array:
    """Return a smooth line (Catmull-Rom) through `points` [n,2] as float32 [m,2]."""
    knots = np.asarray(points, dtype=np.float32)
    return _spline(len(knots), closed) @ knots


@lru_cache(maxsize=64)
def _spline(count: int, closed: bool) -> Array:
    """Return the weights of the knots in each point, six points per span, [m,count]."""
    t = np.linspace(0, 1, 6, endpoint=False, dtype=np.float32)
    one = np.ones_like(t)
    weights = 0.5 * np.stack(
        [-t + 2 * t**2 - t**3, 2 * one - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, -(t**2) + t**3], axis=1
    )
    spans = count if closed else count - 1
    matrix = np.zeros((6 * spans + (not closed), count), dtype=np.float32)
    for span in range(spans):
        for neighbor in range(4):
            knot = span + neighbor - 1
            knot = knot % count if closed else min(max(knot, 0), count - 1)
            matrix[6 * span : 6 * span + 6, knot] += weights[:, neighbor]
    if not closed:
        matrix[-1, -1] = 1
    return matrix


def ellipse(x: float, y: float, radius_x: float, radius_y: float, tilt: float = 0.0) -> Array:
    """Return the outline of an ellipse as float32 [24,2]."""
    sin, cos = float(np.sin(tilt)), float(np.cos(tilt))
    axes = np.array([(radius_x * cos, radius_x * sin), (-radius_y * sin, radius_y * cos)], dtype=np.float32)
    return _CIRCLE @ axes + np.array([x, y], dtype=np.float32)


def fixed_point(points: Array) -> npt.NDArray[np.int32]:
    """Return pixel positions with four fractional bits, as OpenCV's drawing functions expect."""
    return np.rint(points * 16).astype(np.int32)


class Canvas:
    """Color planes, float32 [3,SIDE,SIDE], and alpha of the head, float32 [SIDE,SIDE]."""

    def __init__(self) -> None:
        self.color: Array = np.zeros((3, SIDE, SIDE), dtype=np.float32)
        self.alpha: Array = np.zeros((SIDE, SIDE), dtype=np.float32)

    def fill(
        self,
        outline: Array,
        color: Color | Array,
        *,
        opacity: float = 1.0,
        softness: float = 0.0,
        clip: Array | None = None,
    ) -> None:
        """Fill a polygon [n,2] with a color, or with a layer [3,SIDE,SIDE].

        `softness` is the sigma of its edge in pixels; `clip` is a polygon that limits it.
        """
        box = _Box(outline, 3 * softness)
        mask = box.polygon(outline)
        if softness:
            mask = cv2.GaussianBlur(mask, (0, 0), softness * SCALE)
        if clip is not None:
            mask = np.minimum(mask, box.polygon(clip))
        self._blend(box, mask, color, opacity)

    def stroke(self, line: Array, color: Color, width: float, *, opacity: float = 1.0, softness: float = 0.0) -> None:
        """Draw an open line [n,2] with a width in pixels."""
        box = _Box(line, 3 * softness + width)
        # OpenCV draws whole pixels only: a thinner line is drawn fainter.
        thickness = max(1, round(width * SCALE))
        mask = box.line(line, thickness)
        if softness:
            mask = cv2.GaussianBlur(mask, (0, 0), softness * SCALE)
        self._blend(box, mask, color, opacity * min(1.0, width * SCALE))

    def _blend(self, box: _Box, mask: Mask, color: Color | Array, opacity: float) -> None:
        weight = mask.astype(np.float32)
        weight *= np.float32(opacity / 255)
        region = self.color[:, box.rows, box.columns]
        if isinstance(color, np.ndarray):
            change = color[:, box.rows, box.columns] - region
        else:
            change = np.array(color, dtype=np.float32)[:, None, None] - region
        change *= weight
        region += change
        alpha = self.alpha[box.rows, box.columns]
        np.maximum(alpha, weight, out=alpha)


class _Box:
    """Bounding box of a shape on the canvas, with a margin for its soft edge."""

    def __init__(self, shape: Array, margin: float) -> None:
        reach = margin * SCALE + 2
        x, y, width, height = cv2.boundingRect(shape)
        left, top = (x + ORIGIN[0]) * SCALE - reach, (y + ORIGIN[1]) * SCALE - reach
        right, bottom = left + width * SCALE + 2 * reach, top + height * SCALE + 2 * reach
        # At least one pixel, also for a shape outside the canvas.
        first_x, first_y = min(max(int(left), 0), SIDE - 1), min(max(int(top), 0), SIDE - 1)
        self.columns = slice(first_x, min(max(int(right) + 1, first_x + 1), SIDE))
        self.rows = slice(first_y, min(max(int(bottom) + 1, first_y + 1), SIDE))
        self._shape = self.rows.stop - first_y, self.columns.stop - first_x
        self._origin = np.array(
            [ORIGIN[0] * SCALE - 0.5 - first_x, ORIGIN[1] * SCALE - 0.5 - first_y], dtype=np.float32
        )

    def polygon(self, outline: Array) -> Mask:
        mask = np.zeros(self._shape, dtype=np.uint8)
        points = fixed_point(outline * np.float32(SCALE) + self._origin)
        cv2.fillPoly(mask, [points], 255, cv2.LINE_AA, 4)
        return mask

    def line(self, points: Array, thickness: int) -> Mask:
        mask = np.zeros(self._shape, dtype=np.uint8)
        fixed = fixed_point(points * np.float32(SCALE) + self._origin)
        cv2.polylines(mask, [fixed], False, 255, thickness, cv2.LINE_AA, 4)
        return mask
