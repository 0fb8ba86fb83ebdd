"""Facial features: their positions under an expression, and how each is painted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lafs_ray.synthetic.canvas import Canvas, curve, ellipse, mirrored
from lafs_ray.synthetic.capture import Capture
from lafs_ray.synthetic.identity import Appearance, Array, Color, Geometry


@dataclass(frozen=True)
class Features:
    """Positions of the features on the frontal head with an expression."""

    eye_opening: float
    brow_y: float
    mouth_x: float
    corner_y: float
    lip_gap: float
    jaw_drop: float

    @classmethod
    def of(cls, geometry: Geometry, capture: Capture) -> Features:
        """Return the positions for a head and a capture."""
        grin = max(0.0, capture.smile)
        gap = 5.5 * capture.mouth_open
        opening = 1 - 0.5 * capture.squint - 0.15 * grin + 0.15 * capture.brow_raise
        corner_y = geometry.mouth_y + geometry.mouth_curve * 0.8 - 2.3 * capture.smile + 0.2 * gap
        return cls(
            eye_opening=geometry.eye_height * opening,
            brow_y=-geometry.brow_gap - 2.6 * capture.brow_raise + 0.9 * capture.squint,
            mouth_x=geometry.mouth_width + 1.9 * capture.smile - 0.35 * gap,
            corner_y=corner_y,
            lip_gap=gap + 1.2 * max(0.0, grin - 0.35),
            jaw_drop=0.75 * gap,
        )


def shade(color: Color, factor: float, red: float = 1.0) -> Color:
    """Scale a color (factor < 1: darker) and its red channel (red > 1: stronger)."""
    return color[0] * factor * red, color[1] * factor, color[2] * factor


def paint_marks(canvas: Canvas, geometry: Geometry, look: Appearance, features: Features) -> None:
    """Paint freckles, moles and wrinkles."""
    for x, y, radius, strength in np.concatenate([look.freckles, look.moles]).tolist():
        canvas.fill(ellipse(x, y, radius, radius), shade(look.skin, 0.42), opacity=strength)
    dark = shade(look.skin, 0.52, 1.1)
    for side in (-1.0, 1.0):
        start = (side * (geometry.nose_width + 1.2), geometry.nose_y - 0.5)
        end = (side * (features.mouth_x + 2.4), features.corner_y - 0.5)
        middle = (0.55 * start[0] + 0.45 * end[0] + side * 1.4, 0.5 * (start[1] + end[1]))
        canvas.stroke(curve([start, middle, end]), dark, 1.0, opacity=0.62 * look.fold, softness=0.55)
    if look.wrinkles > 0.05:
        for row in range(3):
            y = features.brow_y - 6.5 - 3.6 * row
            line = curve([(-13 + row, y + 0.6), (-5, y - 0.4), (4, y + 0.3), (13 - row, y)])
            canvas.stroke(line, dark, 0.8, opacity=0.5 * look.wrinkles, softness=0.4)
        for side in (-1.0, 1.0):
            x = side * (geometry.eye_spacing + geometry.eye_width + 2)
            for slope in (-1.0, 0.5, 2.0):
                line = curve([(x, slope * 0.8), (x + side * 4, slope * 2)])
                canvas.stroke(line, dark, 0.7, opacity=0.45 * look.wrinkles)


def paint_nose(canvas: Canvas, geometry: Geometry, look: Appearance) -> None:
    """Paint nostrils and wings; shading of the height map shows the ridge."""
    dark = shade(look.skin, 0.30, 1.15)
    y, wide, skew = geometry.nose_y, geometry.nose_width, geometry.nose_skew
    for side in (-1.0, 1.0):
        x = side * 0.48 * wide + skew
        canvas.fill(ellipse(x, y + 1.7, 0.27 * wide, 1.1, -0.25 * side), dark, opacity=0.85, softness=0.4)
        inner, outer = side * 0.80 * wide + skew, side * wide + skew
        wing = curve([(inner, y - 3.2), (outer, y - 0.4), (inner, y + 1.9)])
        canvas.stroke(wing, dark, 0.9, opacity=0.42, softness=0.45)


def paint_mouth(canvas: Canvas, geometry: Geometry, look: Appearance, features: Features) -> None:
    """Paint the lips and, where they are open, the teeth."""
    x, corner, skew = features.mouth_x, features.corner_y, geometry.mouth_skew
    middle, gap = geometry.mouth_y, features.lip_gap
    top, bow = middle - geometry.upper_lip, geometry.cupid_bow
    left, right = (-x, corner - skew), (x, corner + skew)
    y = 0.25 * corner + 0.75 * middle
    seam = curve([left, (-0.5 * x, y), (0.0, middle + 0.4), (0.5 * x, y), right])
    drop = middle + gap
    y = 0.2 * corner + 0.8 * drop
    inner = curve([right, (0.55 * x, y), (0.0, drop + 0.3), (-0.55 * x, y), left])
    lip, y = geometry.lower_lip, drop + 0.72 * geometry.lower_lip
    lower = curve([right, (0.6 * x, y), (0.0, drop + lip), (-0.6 * x, y), left])
    half = [(0.2 * x, top - bow), (0.55 * x, 0.4 * corner + 0.6 * top + 0.2)]
    upper = curve([left, *mirrored(half), (0.0, top + 0.4 * bow), *half, right])
    lips = look.lips
    canvas.fill(np.concatenate([seam, lower]), lips, opacity=0.88, softness=0.4)
    canvas.fill(np.concatenate([upper, seam[::-1]]), shade(lips, 0.84), opacity=0.9, softness=0.35)
    if gap > 0.4:
        mouth = np.concatenate([seam, inner])
        canvas.fill(mouth, (58.0, 22.0, 22.0), softness=0.25)
        teeth = ellipse(0, middle + 0.3, 0.72 * x, min(2.4, 0.7 * gap))
        canvas.fill(teeth, (226.0, 218.0, 204.0), opacity=0.92, softness=0.3, clip=mouth)
    else:
        canvas.stroke(seam, shade(lips, 0.38), 0.9, opacity=0.8, softness=0.25)


def paint_eye(
    canvas: Canvas, geometry: Geometry, look: Appearance, capture: Capture, features: Features, side: float
) -> None:
    """Paint the eye at the viewer's left (side -1) or right (side 1)."""
    wide, high = geometry.eye_width, max(0.7, features.eye_opening)
    corners = np.array([side, 1.0], dtype=np.float32)
    offset = np.array([side * geometry.eye_spacing, 0.0], dtype=np.float32)

    def lid(points: list[tuple[float, float]]) -> Array:
        # Defined for the right-hand eye from its inner corner outwards, then tilted and mirrored.
        tilted = [(px, py - geometry.eye_tilt * px) for px, py in points]
        return curve(tilted) * corners + offset

    upper = lid(
        [(-wide, 0.9), (-0.45 * wide, -0.72 * high), (0.1 * wide, -high), (0.65 * wide, -0.62 * high), (wide, 0.1)]
    )
    lower = lid([(wide, 0.1), (0.5 * wide, 0.66 * high), (-0.2 * wide, 0.72 * high), (-wide, 0.9)])
    crease = lid(
        [
            (-0.9 * wide, -0.5 * high - 0.4),
            (-0.4 * wide, -high - 0.7 * geometry.lid_fold),
            (0.2 * wide, -high - geometry.lid_fold),
            (0.8 * wide, -0.75 * high - 0.7 * geometry.lid_fold),
            (1.12 * wide, -0.2),
        ]
    )
    opening = np.concatenate([upper, lower])
    dark = shade(look.skin, 0.42, 1.12)
    canvas.fill(opening, (222.0, 214.0, 208.0), softness=0.2)
    radius = geometry.iris_radius
    x = side * geometry.eye_spacing + capture.gaze_x * radius
    y = -0.18 * high + capture.gaze_y * radius
    canvas.fill(ellipse(x, y, radius, radius), shade(look.iris, 0.62), clip=opening)
    canvas.fill(ellipse(x, y + 0.3, 0.76 * radius, 0.76 * radius), look.iris, clip=opening, softness=0.2)
    canvas.fill(ellipse(x, y, 0.42 * radius, 0.42 * radius), (12.0, 10.0, 10.0), clip=opening)
    canvas.fill(ellipse(x - 0.8, y - 0.9, 0.55, 0.55), (250.0, 250.0, 250.0), opacity=0.85, clip=opening)
    canvas.stroke(crease, dark, 0.9, opacity=0.5, softness=0.4)
    canvas.stroke(lower, dark, 0.8, opacity=0.45, softness=0.3)
    canvas.stroke(upper, (34.0, 24.0, 22.0), 1.25, opacity=0.85, softness=0.2)


def paint_brow(canvas: Canvas, geometry: Geometry, look: Appearance, features: Features, side: float) -> None:
    """Paint the brow at the viewer's left (side -1) or right (side 1)."""
    inner = 0.42 * geometry.eye_spacing - 0.6
    long, thick, y = 2 * geometry.brow_length, geometry.brow_thickness, features.brow_y
    knots = ((0.0, 0.0, 0.75), (0.33, 0.55, 1.0), (0.68, 1.0, 0.8), (1.0, 0.25, 0.15))
    middle = [
        (inner + t * long, y + 1.3 - rise * geometry.brow_arch - geometry.brow_tilt * (t - 0.4) * long)
        for t, rise, _ in knots
    ]
    above = [(side * x, py - w * thick) for (x, py), (_, _, w) in zip(middle, knots, strict=True)]
    below = [(side * x, py + w * thick) for (x, py), (_, _, w) in zip(middle, knots, strict=True)]
    shape = np.concatenate([curve(above), curve(below)[::-1]])
    canvas.fill(shape, look.brow, opacity=0.86, softness=0.6)
