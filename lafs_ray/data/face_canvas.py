"""The canvas of generated faces: soft-edged polygons, smooth lines and sums of Gaussians.

It is larger and finer (`SCALE`) than the final image, so that turning the head finds something
behind the ears and the final sampling is anti-aliased. What is soft and wide (cheeks, eye sockets,
beard shadow) is a sum of separable Gaussians, one small matrix product for the whole face; what is
sharp is a polygon with a softened mask, blended only inside its bounding box (about 30 us each).
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from lafs_ray.data.face_traits import Array, Colour

SCALE = 1.5
SIDE = 216
ORIGIN = (72.0, 66.0)  # where the point between the eyes lies on the canvas, in image pixels

_STEPS = np.linspace(0, 1, 6, endpoint=False, dtype=np.float32)
# Catmull-Rom: the weights of four neighbouring control points at each of the steps between two.
_SPLINE = 0.5 * np.stack(
    [
        -_STEPS + 2 * _STEPS**2 - _STEPS**3,
        2 - 5 * _STEPS**2 + 3 * _STEPS**3,
        _STEPS + 4 * _STEPS**2 - 3 * _STEPS**3,
        -(_STEPS**2) + _STEPS**3,
    ],
    axis=1,
)
_TURN = np.linspace(0, 2 * np.pi, 24, endpoint=False, dtype=np.float32)
_CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)], axis=1)

Points = Sequence[tuple[float, float]]


def gaussian_sum(blobs: Sequence[Sequence[float]], side: int) -> Array:
    """Return a sum of Gaussians over the whole canvas at `side` samples a side, [side,side,C].

    A row of `blobs` is (x, y, sigma_x, sigma_y, height in each of the C channels). As a loop:
    `out[j,i,c] += height[c] * exp(-((x_i-x)/sigma_x)**2/2 - ((y_j-y)/sigma_y)**2/2)`.
    """
    rows = np.array(blobs, dtype=np.float32)
    grid = (np.arange(side, dtype=np.float32) + 0.5) * np.float32(SIDE / SCALE / side)
    across = np.exp(-0.5 * ((grid - ORIGIN[0] - rows[:, 0:1]) / rows[:, 2:3]) ** 2)
    down = np.exp(-0.5 * ((grid - ORIGIN[1] - rows[:, 1:2]) / rows[:, 3:4]) ** 2)
    layers = [(down * rows[:, c : c + 1]).T @ across for c in range(4, rows.shape[1])]
    return np.stack(layers, axis=2)


def both_sides(rows: Sequence[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Return the rows (x, ...) followed by their mirror images (-x, ...)."""
    return [*rows, *((-row[0], *row[1:]) for row in rows)]


def curve(points: Points | Array, *, closed: bool = False) -> Array:
    """Return a smooth line (Catmull-Rom) through `points` [n,2] as float32 [m,2]."""
    knots = np.asarray(points, dtype=np.float32)
    count = len(knots)
    if closed:
        index = (np.arange(count)[:, None] + np.arange(-1, 3)) % count
    else:
        index = np.clip(np.arange(count - 1)[:, None] + np.arange(-1, 3), 0, count - 1)
    line: Array = (_SPLINE @ knots[index]).reshape(-1, 2).astype(np.float32, copy=False)
    return line if closed else np.concatenate([line, knots[-1:]])


def ellipse(x: float, y: float, radius_x: float, radius_y: float, tilt: float = 0.0) -> Array:
    """Return the outline of an ellipse as float32 [24,2]."""
    points = _CIRCLE * np.array([radius_x, radius_y], dtype=np.float32)
    turn = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]], dtype=np.float32)
    outline: Array = points @ turn + np.array([x, y], dtype=np.float32)
    return outline


class Canvas:
    """A picture under work: `colour` float32 [SIDE,SIDE,3] and `cover`, the head's share of it."""

    def __init__(self) -> None:
        self.colour: Array = np.zeros((SIDE, SIDE, 3), dtype=np.float32)
        self.cover: Array = np.zeros((SIDE, SIDE), dtype=np.float32)

    def fill(
        self,
        outline: Array,
        colour: Colour | Array,
        *,
        opacity: float = 1.0,
        softness: float = 0.0,
        clip: Array | None = None,
    ) -> None:
        """Fill a polygon [n,2] with a colour, or with a layer [SIDE,SIDE,3] seen through it.

        `softness` is the sigma, in pixels, that blurs its edge; outside the polygon `clip` nothing
        is painted.
        """
        window = _Window(outline, 3 * softness)
        mask = window.polygon(outline)
        if softness:
            mask = cv2.GaussianBlur(mask, (0, 0), softness * SCALE)
        if clip is not None:
            mask = np.minimum(mask, window.polygon(clip))
        self._blend(window, mask, colour, opacity)

    def stroke(
        self,
        line: Array,
        colour: Colour,
        width: float,
        *,
        opacity: float = 1.0,
        softness: float = 0.0,
    ) -> None:
        """Draw an open line [n,2] of a width in pixels."""
        window = _Window(line, 3 * softness + width)
        # cv2 draws whole pixels only: a thinner line is drawn fainter instead.
        thickness = max(1, round(width * SCALE))
        mask = window.line(line, thickness)
        if softness:
            mask = cv2.GaussianBlur(mask, (0, 0), softness * SCALE)
        self._blend(window, mask, colour, opacity * min(1.0, width * SCALE))

    def _blend(
        self,
        window: _Window,
        mask: npt.NDArray[np.uint8],
        colour: Colour | Array,
        opacity: float,
    ) -> None:
        weight = mask.astype(np.float32) * np.float32(opacity / 255)
        region = self.colour[window.rows, window.columns]
        layer = isinstance(colour, np.ndarray)
        paint: Array = (
            colour[window.rows, window.columns] if layer else np.array(colour, dtype=np.float32)
        )
        region += (paint - region) * weight[:, :, None]
        cover = self.cover[window.rows, window.columns]
        np.maximum(cover, weight, out=cover)


class _Window:
    """The part of the canvas that a shape can touch."""

    def __init__(self, shape: Array, margin: float) -> None:
        placed = (shape + np.array(ORIGIN, dtype=np.float32)) * SCALE
        reach = margin * SCALE + 2
        left, top = np.clip(placed.min(axis=0) - reach, 0, SIDE - 1).astype(int).tolist()
        right, bottom = np.clip(placed.max(axis=0) + reach + 1, 1, SIDE).astype(int).tolist()
        self.columns = slice(left, max(right, left + 1))
        self.rows = slice(top, max(bottom, top + 1))
        self._corner = np.array([left, top], dtype=np.float32)

    def polygon(self, outline: Array) -> npt.NDArray[np.uint8]:
        mask = self._empty()
        cv2.fillPoly(mask, [self._fixed(outline)], 255, cv2.LINE_AA, 4)
        return mask

    def line(self, points: Array, thickness: int) -> npt.NDArray[np.uint8]:
        mask = self._empty()
        cv2.polylines(mask, [self._fixed(points)], False, 255, thickness, cv2.LINE_AA, 4)
        return mask

    def _empty(self) -> npt.NDArray[np.uint8]:
        height, width = self.rows.stop - self.rows.start, self.columns.stop - self.columns.start
        return np.zeros((height, width), dtype=np.uint8)

    def _fixed(self, points: Array) -> npt.NDArray[np.int32]:
        """Canvas pixels relative to the window, with cv2's four fractional bits."""
        placed = (points + np.array(ORIGIN, dtype=np.float32)) * SCALE - 0.5 - self._corner
        return np.rint(placed * 16).astype(np.int32)
