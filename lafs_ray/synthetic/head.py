"""Unlit frontal head: the texture that the renderer rotates and shades.

Layers from back to front: hair behind the head, neck and clothes, ears, skin with its marks, beard,
nose, mouth, eyes, brows, hair in front of the head, glasses or hat. Wide soft tones (eye sockets, cheeks, the shade
beside the nose) multiply the skin as one sum of Gaussians.
"""

from __future__ import annotations

import cv2
import numpy as np

from lafs_ray.synthetic.canvas import SIDE, Canvas, both_sides, curve, ellipse, gaussian_sum, mirrored
from lafs_ray.synthetic.capture import Capture
from lafs_ray.synthetic.features import Features, paint_brow, paint_eye, paint_marks, paint_mouth, paint_nose, shade
from lafs_ray.synthetic.identity import Appearance, Array, Color, Geometry, Identity

_SOFT_SIDE = SIDE // 3  # soft tones are computed 2.25 px apart and enlarged


def paint_head(identity: Identity, capture: Capture) -> Canvas:
    """Paint the frontal head of one identity with one expression."""
    geometry, look = identity.geometry, identity.appearance
    features = Features.of(geometry, capture)
    canvas = Canvas()
    hair = _hair_layer(look)
    skin = _skin_layer(geometry, look, features)
    outline = _head_outline(geometry, features)
    if look.hair_length > 20:
        canvas.fill(_hair_behind(geometry, look), hair * np.float32(0.72), softness=0.6)
    _paint_neck(canvas, geometry, look, capture)
    _paint_ears(canvas, geometry, look)
    canvas.fill(outline, skin, softness=0.35)
    paint_marks(canvas, geometry, look, features)
    _paint_beard(canvas, geometry, look, features, outline)
    paint_nose(canvas, geometry, look)
    paint_mouth(canvas, geometry, look, features)
    for side in (-1.0, 1.0):
        paint_eye(canvas, geometry, look, capture, features, side)
        paint_brow(canvas, geometry, look, features, side)
    _paint_hair(canvas, geometry, look, hair)
    if capture.occluder in ("glasses", "sunglasses"):
        _paint_glasses(canvas, geometry, capture)
    elif capture.occluder == "hat":
        _paint_hat(canvas, geometry, look, capture)
    return canvas


def _head_outline(geometry: Geometry, features: Features) -> Array:
    """Return the face contour, float32 [m,2]: skull, temples, cheekbones, jaw and chin."""
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
    return curve([(0.0, geometry.skull_y), *half, (0.0, chin), *mirrored(half)], closed=True)


def _hair_layer(look: Appearance) -> Array:
    """Return the hair color with its strands, float32 [3,SIDE,SIDE]."""
    streaks = cv2.resize(look.strands, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    layer: Array = (1 + streaks) * _planes(look.hair)
    return layer


def _planes(color: Color) -> Array:
    return np.array(color, dtype=np.float32)[:, None, None]


def _skin_layer(geometry: Geometry, look: Appearance, features: Features) -> Array:
    """Return the skin color times its soft tones, float32 [3,SIDE,SIDE]."""
    eye_x, nose_y, mouth_y = geometry.eye_spacing, geometry.nose_y, geometry.mouth_y
    nose = geometry.nose_width
    socket, bag, rosy = (-0.05 - 0.03 * geometry.eye_depth, -0.05 - 0.17 * look.eye_shadow, look.blush)
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
        (0.0, nose_y - 1.5, 0.45 * nose, 2.6, 0.08, 0.06 - 0.05 * rosy, 0.06 - 0.04 * rosy),
        (0.0, -20.0, 14.0, 9.0, 0.05, 0.05, 0.05),
    ]
    if look.beard == "stubble":
        grown = -0.32 * look.beard_density
        blobs += both_sides([(13.0, mouth_y + 6, 8.0, 7.0, grown, 0.8 * grown, 0.7 * grown)])
        blobs += [(0.0, mouth_y - 6, 8.0, 2.6, grown, 0.8 * grown, 0.7 * grown)]
    tone = 1 + gaussian_sum(blobs, _SOFT_SIDE)
    size = (_SOFT_SIDE, _SOFT_SIDE)
    tone += cv2.resize(look.blotches, size, interpolation=cv2.INTER_CUBIC)
    tone *= _planes(look.skin)
    return np.stack([cv2.resize(plane, (SIDE, SIDE)) for plane in tone])


def _paint_neck(canvas: Canvas, geometry: Geometry, look: Appearance, capture: Capture) -> None:
    wide = 0.68 * geometry.cheek_width * (0.6 + 0.5 * geometry.jaw_ratio)
    base = geometry.chin_y + 9
    neck = [(-wide, 20.0), (-wide, base), (-wide - 9, 86.0), (wide + 9, 86.0), (wide, base)]
    canvas.fill(curve([*neck, (wide, 20.0)], closed=True), shade(look.skin, 0.66))
    shoulder = [(wide, base + 1), (34, base + 6), (80, base + 16)]
    shirt = curve([*mirrored(shoulder), (0, base + 9), *shoulder])
    hem = np.array([(80, 90), (-80, 90)], dtype=np.float32)
    canvas.fill(np.concatenate([shirt, hem]), capture.clothes)


def _paint_ears(canvas: Canvas, geometry: Geometry, look: Appearance) -> None:
    size = geometry.ear_size
    for side in (-1.0, 1.0):
        x = side * (geometry.cheek_width + 0.5)
        canvas.fill(ellipse(x, 5, 0.45 * size, size, 0.15 * side), shade(look.skin, 0.90, 1.04))
        inner = ellipse(x + side * 0.6, 4.5, 0.24 * size, 0.62 * size, 0.15 * side)
        canvas.fill(inner, shade(look.skin, 0.62, 1.08), opacity=0.7, softness=0.7)


def _paint_beard(canvas: Canvas, geometry: Geometry, look: Appearance, features: Features, face: Array) -> None:
    if look.beard in ("none", "stubble"):
        return
    color, opacity = shade(look.hair, 0.85), look.beard_density
    mouth_x, corner = features.mouth_x, features.corner_y
    if look.beard in ("moustache", "goatee", "full"):
        top = geometry.nose_y + 3.2
        upper = [(-mouth_x - 2, corner + 2.2), (-0.6 * mouth_x, top + 1), (0.0, top + 0.6)]
        lower = [(mouth_x + 2, corner + 2.2), (0.0, geometry.mouth_y - 0.6)]
        shape = curve([*upper, (0.6 * mouth_x, top + 1), *lower], closed=True)
        canvas.fill(shape, color, opacity=opacity, softness=0.9)
    chin = geometry.chin_y + features.jaw_drop
    lip = geometry.mouth_y + features.lip_gap + geometry.lower_lip
    if look.beard == "goatee":
        half = 0.75 * mouth_x
        upper = [(-half, lip), (0, lip + 2), (half, lip)]
        lower = [(0.8 * half, chin), (0, chin + 2), (-0.8 * half, chin)]
        shape = curve([*upper, *lower], closed=True)
        canvas.fill(shape, color, opacity=opacity, softness=1.2, clip=face)
    elif look.beard == "full":
        wide, jaw = geometry.cheek_width + 2, mouth_x + 2.5
        inner = [(wide - 2, 4.0), (0.86 * wide, 22.0), (jaw, corner - 1), (0.6 * jaw, lip + 1.5)]
        outer = [(0.7 * wide, chin), (wide, 26.0)]
        low = [*mirrored(outer), (0.0, chin + 3), *outer]
        shape = curve([*inner, (0.0, lip + 2.2), *mirrored(inner), *low], closed=True)
        canvas.fill(shape, color, opacity=opacity, softness=1.3, clip=face)


def _crown(geometry: Geometry, look: Appearance) -> list[tuple[float, float]]:
    """Return the outer edge of the hair from the left temple over the skull to the right one."""
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
    return curve([*_crown(geometry, look), *right, *mirrored(right)], closed=True)


def _paint_hair(canvas: Canvas, geometry: Geometry, look: Appearance, layer: Array) -> None:
    """Paint the hair in front of the skull: down to hairline, fringe and sideburns."""
    wide, line = geometry.cheek_width, look.hairline_y
    temple = wide * geometry.temple_ratio
    end = min(look.hair_length, 12.0) if look.hair_length < 20 else min(look.hair_length, 60.0)
    thick = 2.5 if look.hair_length < 20 else 4.5
    part = look.hair_part * 0.6 * wide
    across = np.linspace(0.86 * temple, -0.86 * temple, 7)
    lower: list[tuple[float, float]] = [(wide + 1.0, end), (temple - thick + 3, min(end, 14.0)), (temple - thick, -8.0)]
    for x in across.tolist():
        ratio = abs(x) / temple
        recess = look.hairline_recess * np.exp(-(((ratio - 0.6) / 0.22) ** 2))
        fringe = look.fringe * 13 * min(1.0, abs(x - part) / (0.7 * wide))
        lower.append((x, line + 6.0 * ratio**2 - recess + fringe))
    lower += [(-temple + thick, -8.0), (-temple + thick - 3, min(end, 14.0)), (-wide - 1.0, end)]
    canvas.fill(curve([*_crown(geometry, look), *lower], closed=True), layer, softness=0.8)


def _paint_glasses(canvas: Canvas, geometry: Geometry, capture: Capture) -> None:
    dark = capture.occluder == "sunglasses"
    color = shade(capture.occluder_color, 0.45)
    wide, high = 9.0 + capture.occluder_position, 6.5 + 1.8 * capture.occluder_position
    for side in (-1.0, 1.0):
        unit = ellipse(0, 0, 1, 1)
        # A superellipse: a rounded rectangle.
        lens: Array = np.sign(unit) * np.abs(unit) ** np.float32(0.6) * np.array([wide, high], dtype=np.float32)
        lens += np.array([side * geometry.eye_spacing, 0.8], dtype=np.float32)
        canvas.fill(lens, (24.0, 24.0, 28.0) if dark else (235.0, 240.0, 245.0), opacity=0.9 if dark else 0.12)
        canvas.stroke(np.concatenate([lens, lens[:1]]), color, 1.3)
        start = side * (geometry.eye_spacing + wide)
        canvas.stroke(curve([(start, -1.0), (side * (geometry.cheek_width + 2), 0.0)]), color, 1.3)
    bridge = geometry.eye_spacing - wide
    canvas.stroke(curve([(-bridge, 0.0), (0.0, -1.4), (bridge, 0.0)]), color, 1.3)


def _paint_hat(canvas: Canvas, geometry: Geometry, look: Appearance, capture: Capture) -> None:
    color = capture.occluder_color
    wide = geometry.cheek_width + 1.0 + 0.8 * look.hair_volume
    brim = -19 + 4 * capture.occluder_position
    top = geometry.skull_y - 7
    half = [(0.5 * wide, top), (0.97 * wide, brim - 14), (wide, brim)]
    cap = curve([*mirrored(half), *half, (0.0, brim - 3)], closed=True)
    canvas.fill(cap, color, softness=0.4)
    upper = [(-wide - 1, brim), (0.0, brim - 3.5), (wide + 1, brim)]
    band = curve([*upper, (0.55 * wide, brim + 4), (-0.55 * wide, brim + 4)], closed=True)
    canvas.fill(band, shade(color, 0.6), softness=0.4)
