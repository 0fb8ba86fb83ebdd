"""Paints a head without light, seen from the front: the texture that the renderer turns and lights.

Layers from back to front: hair behind the head, neck and clothes, ears, skin with its marks, beard,
nose, mouth, eyes, brows, hair before the head, and what is worn. Wide soft tones (eye sockets,
cheeks, the shade beside the nose) multiply the skin as one sum of Gaussians.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from lafs_ray.data.face_canvas import SIDE, Canvas, both_sides, curve, ellipse, gaussian_sum
from lafs_ray.data.face_traits import Appearance, Array, Colour, Geometry, Identity, Nuisance

_SOFT_SIDE = SIDE // 3  # soft tones are computed at this side and enlarged: 1.3 px a sample


@dataclass(frozen=True)
class Features:
    """Where the features stand on the frontal head, once the expression has moved them."""

    eye_opening: float
    brow_y: float
    mouth_x: float
    corner_y: float
    lip_gap: float
    jaw_drop: float

    @classmethod
    def of(cls, geometry: Geometry, nuisance: Nuisance) -> Features:
        """Return the features of a head with this expression."""
        grin = max(0.0, nuisance.smile)
        gap = 5.5 * nuisance.mouth_open
        return cls(
            eye_opening=geometry.eye_height
            * (1 - 0.5 * nuisance.squint - 0.15 * grin + 0.15 * nuisance.brow_raise),
            brow_y=-geometry.brow_gap - 2.6 * nuisance.brow_raise + 0.9 * nuisance.squint,
            mouth_x=geometry.mouth_width + 1.9 * nuisance.smile - 0.35 * gap,
            corner_y=geometry.mouth_y
            + geometry.mouth_curve * 0.8
            - 2.3 * nuisance.smile
            + 0.2 * gap,
            lip_gap=gap + 1.2 * max(0.0, grin - 0.35),
            jaw_drop=0.75 * gap,
        )


def paint_head(identity: Identity, nuisance: Nuisance) -> Canvas:
    """Return the painted frontal head of one person with one expression."""
    geometry, look = identity.geometry, identity.appearance
    features = Features.of(geometry, nuisance)
    canvas = Canvas()
    hair = _hair_layer(look)
    skin = _skin_layer(geometry, look, features)
    outline = head_outline(geometry, features)
    if look.hair_length > 20:
        canvas.fill(_hair_behind(geometry, look), hair * np.float32(0.72), softness=0.6)
    _paint_neck(canvas, geometry, look, nuisance)
    _paint_ears(canvas, geometry, look)
    canvas.fill(outline, skin, softness=0.35)
    _paint_marks(canvas, geometry, look, features)
    _paint_beard(canvas, geometry, look, features, outline)
    _paint_nose(canvas, geometry, look)
    _paint_mouth(canvas, geometry, look, features)
    for side in (-1.0, 1.0):
        _paint_eye(canvas, geometry, look, nuisance, features, side)
        _paint_brow(canvas, geometry, look, features, side)
    _paint_hair(canvas, geometry, look, hair)
    if nuisance.occluder in ("glasses", "sunglasses"):
        _paint_glasses(canvas, geometry, nuisance)
    elif nuisance.occluder == "hat":
        _paint_hat(canvas, geometry, look, nuisance)
    return canvas


def head_outline(geometry: Geometry, features: Features) -> Array:
    """Return the face's contour, float32 [m,2]: skull, temples, cheekbones, jaw and chin."""
    wide = geometry.cheek_width
    chin = geometry.chin_y + features.jaw_drop
    jaw_y = geometry.mouth_y - 2 + 0.6 * features.jaw_drop
    half = [
        (0.55 * wide * geometry.temple_ratio, geometry.skull_y + 3.5),
        (0.90 * wide * geometry.temple_ratio, geometry.skull_y + 15),
        (wide * geometry.temple_ratio, -10.0),
        (wide, 8.0),
        (wide * geometry.jaw_ratio, jaw_y),
        (0.5 * (wide * geometry.jaw_ratio + geometry.chin_width), 0.5 * (jaw_y + chin) + 4),
        (geometry.chin_width, chin - 1.8),
    ]
    mirrored = [(-x, y) for x, y in reversed(half)]
    return curve([(0.0, geometry.skull_y), *half, (0.0, chin), *mirrored], closed=True)


def _shade(colour: Colour, factor: float, red: float = 1.0) -> Colour:
    return colour[0] * factor * red, colour[1] * factor, colour[2] * factor


def _hair_layer(look: Appearance) -> Array:
    streaks = cv2.resize(look.strands, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    tone = 1 + 0.38 * streaks[:, :, None]
    return np.clip(tone * np.array(look.hair, dtype=np.float32), 4, 250, dtype=np.float32)


def _skin_layer(geometry: Geometry, look: Appearance, features: Features) -> Array:
    """Skin colour times its soft tones, float32 [SIDE,SIDE,3]."""
    eye_x, nose_y, mouth_y = geometry.eye_spacing, geometry.nose_y, geometry.mouth_y
    nose = geometry.nose_width
    socket, bag, rosy = (
        -0.05 - 0.03 * geometry.eye_depth,
        -0.05 - 0.17 * look.eye_shadow,
        look.blush,
    )
    blobs = both_sides(
        [
            (eye_x * 0.62, -3.0, 4.5, 4.0, socket, socket, socket),
            (eye_x, -4.0, 7.0, 3.0, 0.6 * socket, 0.7 * socket, 0.7 * socket),
            (eye_x, 5.5, 5.5, 2.4, 0.7 * bag, bag, 0.9 * bag),
            (nose + 1.0, nose_y - 1, 1.8, 3.0, -0.14, -0.18, -0.18),
            (0.64 * geometry.cheek_width, 17.0, 7.0, 6.0, 0.02, -0.10 * rosy, -0.08 * rosy),
            (0.70 * geometry.cheek_width, mouth_y - 3, 5.0, 9.0, -0.10, -0.10, -0.10),
        ]
    )
    lip = features.lip_gap + geometry.lower_lip
    blobs += [
        (0.0, nose_y + 2.8, 0.8 * nose, 1.8, -0.20, -0.24, -0.24),
        (0.0, mouth_y + lip + 3.0, 6.0, 1.9, -0.16, -0.17, -0.17),
        (0.0, nose_y - 1.5, 0.5 * nose, 3.0, 0.05, -0.05 * rosy, -0.04 * rosy),
        (0.0, -20.0, 14.0, 9.0, 0.05, 0.05, 0.05),
    ]
    if look.beard == "stubble":
        grown = -0.32 * look.beard_density
        blobs += both_sides([(13.0, mouth_y + 6, 8.0, 7.0, grown, 0.8 * grown, 0.7 * grown)])
        blobs += [(0.0, mouth_y - 6, 8.0, 2.6, grown, 0.8 * grown, 0.7 * grown)]
    tone = 1 + gaussian_sum(blobs, _SOFT_SIDE)
    tone += (
        0.075
        * cv2.resize(look.blotches, (_SOFT_SIDE, _SOFT_SIDE), interpolation=cv2.INTER_CUBIC)[
            :, :, None
        ]
    )
    tone *= np.array(look.skin, dtype=np.float32)
    layer: Array = cv2.resize(tone, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    return layer


def _paint_neck(canvas: Canvas, geometry: Geometry, look: Appearance, nuisance: Nuisance) -> None:
    wide = 0.68 * geometry.cheek_width * (0.6 + 0.5 * geometry.jaw_ratio)
    base = geometry.chin_y + 9
    neck = [(-wide, 20.0), (-wide, base), (-wide - 9, 86.0), (wide + 9, 86.0), (wide, base)]
    canvas.fill(curve([*neck, (wide, 20.0)], closed=True), _shade(look.skin, 0.74))
    shirt = curve(
        [
            (-80, base + 16),
            (-34, base + 6),
            (-wide, base + 1),
            (0, base + 9),
            (wide, base + 1),
            (34, base + 6),
            (80, base + 16),
        ]
    )
    hem = np.array([(80, 90), (-80, 90)], dtype=np.float32)
    canvas.fill(np.concatenate([shirt, hem]), nuisance.cloth)


def _paint_ears(canvas: Canvas, geometry: Geometry, look: Appearance) -> None:
    size = geometry.ear_size
    for side in (-1.0, 1.0):
        x = side * (geometry.cheek_width + 0.5)
        canvas.fill(ellipse(x, 5, 0.45 * size, size, 0.15 * side), _shade(look.skin, 0.90, 1.04))
        inner = ellipse(x + side * 0.6, 4.5, 0.24 * size, 0.62 * size, 0.15 * side)
        canvas.fill(inner, _shade(look.skin, 0.62, 1.08), opacity=0.7, softness=0.7)


def _paint_marks(canvas: Canvas, geometry: Geometry, look: Appearance, features: Features) -> None:
    """Freckles, moles and the lines of age: fixed places on the skin."""
    for x, y, radius, strength in np.concatenate([look.freckles, look.moles]).tolist():
        canvas.fill(ellipse(x, y, radius, radius), _shade(look.skin, 0.42), opacity=strength)
    dark = _shade(look.skin, 0.52, 1.1)
    for side in (-1.0, 1.0):
        start = (side * (geometry.nose_width + 1.2), geometry.nose_y - 0.5)
        end = (side * (features.mouth_x + 2.4), features.corner_y - 0.5)
        middle = (0.55 * start[0] + 0.45 * end[0] + side * 1.4, 0.5 * (start[1] + end[1]))
        canvas.stroke(
            curve([start, middle, end]), dark, 1.0, opacity=0.62 * look.fold, softness=0.55
        )
    if look.wrinkles > 0.05:
        for row in range(3):
            y = features.brow_y - 6.5 - 3.6 * row
            line = curve([(-13 + row, y + 0.6), (-5, y - 0.4), (4, y + 0.3), (13 - row, y)])
            canvas.stroke(line, dark, 0.8, opacity=0.5 * look.wrinkles, softness=0.4)
        for side in (-1.0, 1.0):
            x = side * (geometry.eye_spacing + geometry.eye_width + 2)
            for row in (-1.0, 0.5, 2.0):
                line = curve([(x, row * 0.8), (x + side * 4, row * 2)])
                canvas.stroke(line, dark, 0.7, opacity=0.45 * look.wrinkles)


def _paint_beard(
    canvas: Canvas, geometry: Geometry, look: Appearance, features: Features, face: Array
) -> None:
    if look.beard in ("none", "stubble"):
        return
    colour, opacity = _shade(look.hair, 0.85), look.beard_density
    mouth_x, corner = features.mouth_x, features.corner_y
    if look.beard in ("moustache", "goatee", "full"):
        top = geometry.nose_y + 3.2
        upper = [(-mouth_x - 2, corner + 2.2), (-0.6 * mouth_x, top + 1), (0.0, top + 0.6)]
        lower = [(mouth_x + 2, corner + 2.2), (0.0, geometry.mouth_y - 0.6)]
        shape = curve([*upper, (0.6 * mouth_x, top + 1), *lower], closed=True)
        canvas.fill(shape, colour, opacity=opacity, softness=0.9)
    chin = geometry.chin_y + features.jaw_drop
    lip = geometry.mouth_y + features.lip_gap + geometry.lower_lip
    if look.beard == "goatee":
        half = 0.75 * mouth_x
        shape = curve(
            [
                (-half, lip),
                (0, lip + 2),
                (half, lip),
                (0.8 * half, chin),
                (0, chin + 2),
                (-0.8 * half, chin),
            ],
            closed=True,
        )
        canvas.fill(shape, colour, opacity=opacity, softness=1.2, clip=face)
    elif look.beard == "full":
        wide, jaw = geometry.cheek_width + 2, mouth_x + 2.5
        inner = [(wide - 2, 4.0), (0.86 * wide, 22.0), (jaw, corner - 1), (0.6 * jaw, lip + 1.5)]
        left = [(-x, y) for x, y in reversed(inner)]
        low = [
            (-wide, 26.0),
            (-0.7 * wide, chin),
            (0.0, chin + 3),
            (0.7 * wide, chin),
            (wide, 26.0),
        ]
        shape = curve([*inner, (0.0, lip + 2.2), *left, *low], closed=True)
        canvas.fill(shape, colour, opacity=opacity, softness=1.3, clip=face)


def _paint_nose(canvas: Canvas, geometry: Geometry, look: Appearance) -> None:
    dark, y, wide, skew = (
        _shade(look.skin, 0.30, 1.15),
        geometry.nose_y,
        geometry.nose_width,
        geometry.nose_skew,
    )
    for side in (-1.0, 1.0):
        x = side * 0.48 * wide + skew
        canvas.fill(
            ellipse(x, y + 1.7, 0.25 * wide, 0.95, -0.25 * side), dark, opacity=0.72, softness=0.45
        )
        wing = curve(
            [
                (side * 0.80 * wide + skew, y - 3.2),
                (side * wide + skew, y - 0.4),
                (side * 0.80 * wide + skew, y + 1.9),
            ]
        )
        canvas.stroke(wing, dark, 0.9, opacity=0.42, softness=0.45)


def _paint_mouth(canvas: Canvas, geometry: Geometry, look: Appearance, features: Features) -> None:
    x, corner, skew = features.mouth_x, features.corner_y, geometry.mouth_skew
    middle, gap = geometry.mouth_y, features.lip_gap
    top, bow = middle - geometry.upper_lip, geometry.cupid_bow
    left, right = (-x, corner - skew), (x, corner + skew)
    seam = curve(
        [
            left,
            (-0.5 * x, 0.25 * corner + 0.75 * middle),
            (0.0, middle + 0.4),
            (0.5 * x, 0.25 * corner + 0.75 * middle),
            right,
        ]
    )
    drop = middle + gap
    inner = curve(
        [
            right,
            (0.55 * x, 0.2 * corner + 0.8 * drop),
            (0.0, drop + 0.3),
            (-0.55 * x, 0.2 * corner + 0.8 * drop),
            left,
        ]
    )
    lower = curve(
        [
            right,
            (0.6 * x, drop + 0.72 * geometry.lower_lip),
            (0.0, drop + geometry.lower_lip),
            (-0.6 * x, drop + 0.72 * geometry.lower_lip),
            left,
        ]
    )
    upper = curve(
        [
            left,
            (-0.55 * x, 0.4 * corner + 0.6 * top + 0.2),
            (-0.2 * x, top - bow),
            (0.0, top + 0.4 * bow),
            (0.2 * x, top - bow),
            (0.55 * x, 0.4 * corner + 0.6 * top + 0.2),
            right,
        ]
    )
    lips = look.lips
    canvas.fill(np.concatenate([seam, lower]), lips, opacity=0.88, softness=0.4)
    canvas.fill(np.concatenate([upper, seam[::-1]]), _shade(lips, 0.84), opacity=0.9, softness=0.35)
    if gap > 0.4:
        mouth = np.concatenate([seam, inner])
        canvas.fill(mouth, (58.0, 22.0, 22.0), softness=0.25)
        teeth = ellipse(0, middle + 0.3, 0.72 * x, min(2.4, 0.7 * gap))
        canvas.fill(teeth, (226.0, 218.0, 204.0), opacity=0.92, softness=0.3, clip=mouth)
    else:
        canvas.stroke(seam, _shade(lips, 0.38), 0.9, opacity=0.8, softness=0.25)


def _paint_eye(
    canvas: Canvas,
    geometry: Geometry,
    look: Appearance,
    nuisance: Nuisance,
    features: Features,
    side: float,
) -> None:
    wide, high = geometry.eye_width, max(0.7, features.eye_opening)
    corners = np.array([side, 1.0], dtype=np.float32)
    offset = np.array([side * geometry.eye_spacing, 0.0], dtype=np.float32)

    def lid(points: list[tuple[float, float]]) -> Array:
        # Drawn for the right-hand eye from its inner corner outwards, then tilted and mirrored.
        tilted = [(px, py - geometry.eye_tilt * px) for px, py in points]
        return curve(tilted) * corners + offset

    upper = lid(
        [
            (-wide, 0.9),
            (-0.45 * wide, -0.72 * high),
            (0.1 * wide, -high),
            (0.65 * wide, -0.62 * high),
            (wide, 0.1),
        ]
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
    dark = _shade(look.skin, 0.42, 1.12)
    canvas.fill(opening, (222.0, 214.0, 208.0), softness=0.2)
    radius = geometry.iris_radius
    x = side * geometry.eye_spacing + nuisance.gaze_x * radius
    y = -0.18 * high + nuisance.gaze_y * radius
    canvas.fill(ellipse(x, y, radius, radius), _shade(look.iris, 0.62), clip=opening)
    canvas.fill(
        ellipse(x, y + 0.3, 0.76 * radius, 0.76 * radius), look.iris, clip=opening, softness=0.2
    )
    canvas.fill(ellipse(x, y, 0.42 * radius, 0.42 * radius), (12.0, 10.0, 10.0), clip=opening)
    canvas.fill(
        ellipse(x - 0.8, y - 0.9, 0.55, 0.55), (250.0, 250.0, 250.0), opacity=0.85, clip=opening
    )
    canvas.stroke(crease, dark, 0.9, opacity=0.5, softness=0.4)
    canvas.stroke(lower, dark, 0.8, opacity=0.45, softness=0.3)
    canvas.stroke(upper, (34.0, 24.0, 22.0), 1.25, opacity=0.85, softness=0.2)


def _paint_brow(
    canvas: Canvas, geometry: Geometry, look: Appearance, features: Features, side: float
) -> None:
    inner = 0.42 * geometry.eye_spacing - 0.6
    long, thick, y = 2 * geometry.brow_length, geometry.brow_thickness, features.brow_y
    places = ((0.0, 0.0, 0.75), (0.33, 0.55, 1.0), (0.68, 1.0, 0.8), (1.0, 0.25, 0.15))
    middle = [
        (
            inner + t * long,
            y + 1.3 - rise * geometry.brow_arch - geometry.brow_tilt * (t - 0.4) * long,
        )
        for t, rise, _ in places
    ]
    above = [(side * x, py - w * thick) for (x, py), (_, _, w) in zip(middle, places, strict=True)]
    below = [(side * x, py + w * thick) for (x, py), (_, _, w) in zip(middle, places, strict=True)]
    shape = np.concatenate([curve(above), curve(below)[::-1]])
    canvas.fill(shape, look.brow, opacity=0.86, softness=0.6)


def _crown(geometry: Geometry, look: Appearance) -> list[tuple[float, float]]:
    """Outer edge of the hair from the left temple over the skull to the right one."""
    wide, volume = geometry.cheek_width, look.hair_volume
    wave = look.hair_wave
    turn = np.linspace(np.pi, 2 * np.pi, 11)
    ripple = wave * np.sin(5.3 * turn + 7 * look.hair_part)
    x = np.cos(turn) * (wide * 0.99 + 0.8 * volume + ripple)
    y = -6 + np.sin(turn) * (-6 - geometry.skull_y + volume + ripple)
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _hair_behind(geometry: Geometry, look: Appearance) -> Array:
    wide, end = geometry.cheek_width + 0.8 * look.hair_volume, look.hair_length
    flare = 2.0 + 1.5 * look.hair_wave
    right = [(wide + 0.5 * flare, 15.0), (wide + flare, end - 8), (0.7 * wide, end)]
    left = [(-x, y) for x, y in reversed(right)]
    return curve([*_crown(geometry, look), *right, *left], closed=True)


def _paint_hair(canvas: Canvas, geometry: Geometry, look: Appearance, layer: Array) -> None:
    """The hair before the skull: down to the hairline, the fringe and the sideburns."""
    wide, line = geometry.cheek_width, look.hairline_y
    temple = wide * geometry.temple_ratio
    end = min(look.hair_length, 12.0) if look.hair_length < 20 else min(look.hair_length, 60.0)
    thick = 2.5 if look.hair_length < 20 else 4.5
    part = look.hair_part * 0.6 * wide
    across = np.linspace(0.86 * temple, -0.86 * temple, 7)
    lower: list[tuple[float, float]] = [
        (wide + 1.0, end),
        (temple - thick + 3, min(end, 14.0)),
        (temple - thick, -8.0),
    ]
    for x in across.tolist():
        share = abs(x) / temple
        recess = look.hairline_recess * np.exp(-(((share - 0.6) / 0.22) ** 2))
        sweep = look.fringe * 13 * min(1.0, abs(x - part) / (0.7 * wide))
        lower.append((x, line + 6.0 * share**2 - recess + sweep))
    lower += [(-temple + thick, -8.0), (-temple + thick - 3, min(end, 14.0)), (-wide - 1.0, end)]
    canvas.fill(curve([*_crown(geometry, look), *lower], closed=True), layer, softness=0.8)


def _paint_glasses(canvas: Canvas, geometry: Geometry, nuisance: Nuisance) -> None:
    dark = nuisance.occluder == "sunglasses"
    colour = _shade(nuisance.occluder_colour, 0.45)
    wide, high = 9.0 + nuisance.occluder_place, 6.5 + 1.8 * nuisance.occluder_place
    for side in (-1.0, 1.0):
        lens = ellipse(side * geometry.eye_spacing, 0.8, wide, high)
        centre = np.array([side * geometry.eye_spacing, 0.8], dtype=np.float32)
        # A superellipse: the ellipse's directions pushed towards a rounded rectangle.
        unit = (lens - centre) / np.array([wide, high], dtype=np.float32)
        lens = centre + np.sign(unit) * np.abs(unit) ** 0.6 * np.array(
            [wide, high], dtype=np.float32
        )
        canvas.fill(
            lens,
            (24.0, 24.0, 28.0) if dark else (235.0, 240.0, 245.0),
            opacity=0.9 if dark else 0.12,
        )
        canvas.stroke(np.concatenate([lens, lens[:1]]), colour, 1.3)
        start = side * (geometry.eye_spacing + wide)
        canvas.stroke(curve([(start, -1.0), (side * (geometry.cheek_width + 2), 0.0)]), colour, 1.3)
    bridge = geometry.eye_spacing - wide
    canvas.stroke(curve([(-bridge, 0.0), (0.0, -1.4), (bridge, 0.0)]), colour, 1.3)


def _paint_hat(canvas: Canvas, geometry: Geometry, look: Appearance, nuisance: Nuisance) -> None:
    colour = nuisance.occluder_colour
    wide = geometry.cheek_width + 1.0 + 0.8 * look.hair_volume
    brim = -19 + 4 * nuisance.occluder_place
    top = geometry.skull_y - 7
    cap = curve(
        [
            (-wide, brim),
            (-0.97 * wide, brim - 14),
            (-0.5 * wide, top),
            (0.5 * wide, top),
            (0.97 * wide, brim - 14),
            (wide, brim),
            (0.0, brim - 3),
        ],
        closed=True,
    )
    canvas.fill(cap, colour, softness=0.4)
    band = curve(
        [
            (-wide - 1, brim),
            (0.0, brim - 3.5),
            (wide + 1, brim),
            (0.55 * wide, brim + 4),
            (-0.55 * wide, brim + 4),
        ],
        closed=True,
    )
    canvas.fill(band, _shade(colour, 0.6), softness=0.4)
