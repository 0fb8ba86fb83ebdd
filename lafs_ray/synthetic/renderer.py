"""Renderer of synthetic faces: rotates and lights a painted head, adds background and camera noise.

The head is a height map over the frontal canvas, so a rotation needs no triangles: for each pixel of the image the
visible point of the head solves u = (x - z(u,v) sin yaw) / cos yaw, by five damped fixed-point steps. They converge
where slope times tan(yaw) lies between -1 (beyond it the surface occludes itself) and 3; so the border of a strongly
rotated head is slightly ragged. Shading is Lambert's law on the normals of the same map, so pose, nose shape and
shading are consistent.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from lafs_ray.config import IMAGE_SIZE
from lafs_ray.synthetic.canvas import ORIGIN, SCALE, SIDE, both_sides, ellipse, fixed_point, gaussian_sum
from lafs_ray.synthetic.capture import Capture
from lafs_ray.synthetic.features import Features
from lafs_ray.synthetic.head import paint_head
from lafs_ray.synthetic.identity import Array, Geometry, Identity

# Framing of an unshifted image. On average over identities it agrees with insightface's alignment: eyes 35 px apart at
# y = 51.6, mouth corners at y = 92.
EYES_AT = (56.0, 51.3)  # the point between the eyes
ZOOM = 1.19  # pixels of the image per pixel of the head

_DEPTH_SIDE = SIDE // 2  # 1.5 px a sample: fine enough for the nose, a quarter of the work
_DEPTH_STEP = SIDE / SCALE / _DEPTH_SIDE
_SOLVER_STEPS = 5


def render_face(identity: Identity, capture: Capture) -> npt.NDArray[np.uint8]:
    """Return one image, RGB uint8 [112,112,3]: a pure function of its arguments."""
    head = paint_head(identity, capture)
    depth = _depth_map(identity.geometry, Features.of(identity.geometry, capture), capture)
    u, v = _visible_points(depth, capture)
    projected = cv2.remap(
        cv2.merge([*head.color, head.alpha]),
        (u + ORIGIN[0]) * SCALE - 0.5,
        (v + ORIGIN[1]) * SCALE - 0.5,
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    light = _shade(_sample(_cosine_map(depth, capture), u, v), capture)
    rng = np.random.default_rng(capture.background_seed)
    alpha = projected[:, :, 3]
    image = cv2.blendLinear(projected[:, :, :3] * light, _background(rng), alpha, 1 - alpha)
    _paint_occluder(image, identity, capture)
    return _capture_image(image, capture, rng)


def _rotation(capture: Capture) -> Array:
    """Return head to camera [3,3]: yaw, then pitch; `_camera` has the roll."""
    sin_yaw, cos_yaw = np.sin(capture.yaw), np.cos(capture.yaw)
    sin_pitch, cos_pitch = np.sin(capture.pitch), np.cos(capture.pitch)
    yaw = np.array([(cos_yaw, 0, sin_yaw), (0, 1, 0), (-sin_yaw, 0, cos_yaw)])
    pitch = np.array([(1, 0, 0), (0, cos_pitch, -sin_pitch), (0, sin_pitch, cos_pitch)])
    rotation: Array = (pitch @ yaw).astype(np.float32)
    return rotation


def _camera(capture: Capture) -> tuple[Array, Array]:
    """Return the similarity from the camera plane to pixels: matrix [2,2] and shift [2]."""
    sin, cos = np.sin(capture.roll), np.cos(capture.roll)
    matrix = ZOOM * capture.scale * np.array([(cos, -sin), (sin, cos)], dtype=np.float32)
    shift = np.array([EYES_AT[0] + capture.shift_x, EYES_AT[1] + capture.shift_y])
    return matrix, shift.astype(np.float32)


def project(geometry: Geometry, capture: Capture, points: Array) -> Array:
    """Return where points of the frontal head are in the image, float32 [n,2] as (x, y); a pixel's middle is whole.

    Args:
        geometry: of the head.
        capture: pose, expression and camera.
        points: on the frontal head, [n,2].
    """
    depth = _depth_map(geometry, Features.of(geometry, capture), capture)
    z = _sample(depth, points[None, :, 0], points[None, :, 1])[0]
    turned = np.stack([points[:, 0], points[:, 1], z], axis=1) @ _rotation(capture).T
    similarity, shift = _camera(capture)
    projected: Array = (turned[:, :2] @ similarity.T + shift).astype(np.float32)
    return projected


def _depth_map(geometry: Geometry, features: Features, capture: Capture) -> Array:
    """Return the height of the head towards the camera over the canvas, 0 at the eyes, [96,96]."""
    grid = (np.arange(_DEPTH_SIDE, dtype=np.float32) + 0.5) * np.float32(_DEPTH_STEP)
    x = (grid - ORIGIN[0]) / np.float32(1.28 * geometry.cheek_width)
    y = (grid - ORIGIN[1] - 6) / np.float32(62)
    inside = 1 - (x * x)[None, :] - (y * y)[:, None]
    skull = 36 * np.sqrt(np.maximum(inside, 0.10))
    nose_y, nose, tip = geometry.nose_y, geometry.nose_width, geometry.nose_depth
    mouth_y, eye_x, skew = geometry.mouth_y, geometry.eye_spacing, geometry.nose_skew
    bridge = geometry.bridge_width
    cheek = 1.5 + geometry.cheek_fullness + 1.6 * max(0.0, capture.smile)
    lower = mouth_y + features.lip_gap + 0.5 * geometry.lower_lip
    blobs = both_sides(
        [
            (eye_x, 0.5, 7.5, 5.0, -geometry.eye_depth),
            (eye_x, 0.0, 4.0, 3.0, 1.6),
            (0.8 * eye_x, features.brow_y + 1, 8.0, 3.2, 0.8 + geometry.brow_ridge),
            (0.62 * geometry.cheek_width, 15.0, 7.5, 6.5, cheek),
            (0.70 * nose + skew, nose_y, 2.0, 2.2, 2.0 + 0.12 * nose),
        ]
    )
    blobs += [
        (0.0, 5.0, bridge, 5.0, 0.25 * tip),
        (0.5 * skew, 0.5 * nose_y, bridge + 0.8, 4.5, 0.35 * tip + geometry.nose_hump),
        (0.8 * skew, 0.82 * nose_y, 0.45 * nose + 2.2, 4.8, 0.45 * tip),
        (skew, nose_y - 1.8, 0.40 * nose + 0.9, 3.0, 0.48 * tip),
        (0.0, mouth_y - 0.6 * geometry.upper_lip, 0.55 * geometry.mouth_width, 2.2, 2.0),
        (0.0, lower, 0.5 * geometry.mouth_width, 1.9, 1.2 + 0.35 * geometry.lower_lip),
        (0.0, lower + 5.0, 6.0, 1.9, -1.8),
        (0.0, geometry.chin_y + features.jaw_drop - 5.5, 7.0, 4.5, geometry.chin_depth),
        (0.0, geometry.chin_y + features.jaw_drop + 9, 40.0, 5.5, -9.0),
    ]
    (relief,) = gaussian_sum(blobs, _DEPTH_SIDE)
    depth: Array = skull + relief
    depth -= np.float32(36 * np.sqrt(1 - (eye_x / (1.28 * geometry.cheek_width)) ** 2) - geometry.eye_depth)
    return depth


def _sample(layer: Array, u: Array, v: Array) -> Array:
    """Sample a layer of the depth map's size at head coordinates in pixels."""
    x = (u + ORIGIN[0]) * np.float32(1 / _DEPTH_STEP) - 0.5
    y = (v + ORIGIN[1]) * np.float32(1 / _DEPTH_STEP) - 0.5
    sampled: Array = cv2.remap(layer, x, y, cv2.INTER_LINEAR, None, cv2.BORDER_REPLICATE)
    return sampled


def _visible_points(depth: Array, capture: Capture) -> tuple[Array, Array]:
    """Return the point (u, v) of the frontal head visible in each pixel, [112,112] each."""
    similarity, shift = _camera(capture)
    inverse = np.linalg.inv(similarity)
    pixels = np.arange(IMAGE_SIZE, dtype=np.float32)
    across, down = pixels - shift[0], pixels - shift[1]
    x = inverse[0, 0] * across[None, :] + inverse[0, 1] * down[:, None]
    y = inverse[1, 0] * across[None, :] + inverse[1, 1] * down[:, None]
    sin_yaw, cos_yaw = np.float32(np.sin(capture.yaw)), np.float32(np.cos(capture.yaw))
    sin_pitch, cos_pitch = np.float32(np.sin(capture.pitch)), np.float32(np.cos(capture.pitch))
    u, v = x, y
    for step in range(_SOLVER_STEPS):
        z = _sample(depth, u, v)
        new_u = (x - z * sin_yaw) / cos_yaw
        new_v = (y + (z * cos_yaw - u * sin_yaw) * sin_pitch) / cos_pitch
        # Averaging from the second step on damps oscillation where the head is steepest.
        u, v = (new_u, new_v) if step == 0 else (0.5 * (u + new_u), 0.5 * (v + new_v))
    return u, v


def _cosine_map(depth: Array, capture: Capture) -> Array:
    """Return the cosine between surface normal and light direction, [96,96]."""
    scale = 0.125 / _DEPTH_STEP
    slope_x = cv2.Sobel(depth, cv2.CV_32F, 1, 0, scale=scale)
    slope_y = cv2.Sobel(depth, cv2.CV_32F, 0, 1, scale=scale)
    towards = np.array([capture.light_x, capture.light_y, 1.0], dtype=np.float32)
    lamp = _rotation(capture).T @ (towards / np.linalg.norm(towards))
    facing: Array = lamp[2] - lamp[0] * slope_x - lamp[1] * slope_y
    facing /= np.sqrt(1 + slope_x * slope_x + slope_y * slope_y)
    return facing


def _shade(facing: Array, capture: Capture) -> Array:
    """Return the light reflected by each pixel's surface, [112,112,3]; 1 is neutral."""
    # Skin scatters light slightly past the shadow edge.
    lit = np.maximum((facing + np.float32(0.15)) * np.float32(1 / 1.15), 0)
    gloss = np.maximum(facing, 0) ** 12
    lamp, ambient = 1.25 * (1 - capture.ambient), capture.ambient
    warm = (1 + 0.16 * capture.temperature, 1.0, 1 - 0.20 * capture.temperature)
    shadow = (0.98, 1.0, 1.03)  # ambient light is slightly blue
    rows = [(lamp * w, 0.10, ambient * s) for w, s in zip(warm, shadow, strict=True)]
    light: Array = cv2.transform(cv2.merge([lit, gloss]), np.array(rows, dtype=np.float32))
    return light


def _background(rng: np.random.Generator) -> Array:
    """Return the background: a wall, a gradient or clutter out of focus, [112,112,3]."""
    cells = int(rng.choice([2, 3, 5, 12]))
    base = _muted_colors(rng, 1)
    coarse = base + rng.normal(0, rng.uniform(4, 45), (cells, cells, 1))
    coarse = (coarse + rng.normal(0, 10, (cells, cells, 3))).astype(np.float32)
    image = cv2.resize(coarse, (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_CUBIC)
    for color in _muted_colors(rng, int(rng.integers(0, 6))).tolist():
        left, top = rng.integers(-20, IMAGE_SIZE, 2).tolist()
        width, height = rng.integers(8, 60, 2).tolist()
        cv2.rectangle(image, (left, top), (left + width, top + height), color, -1)
    blurred: Array = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.6, 4.0)))
    return blurred


def _muted_colors(rng: np.random.Generator, count: int) -> npt.NDArray[np.float64]:
    """Sample colors typical of rooms and streets, [count,3]: mostly gray, of any brightness."""
    return np.clip(rng.uniform(45, 205, (count, 1)) + rng.normal(0, 28, (count, 3)), 5, 250)


def _paint_occluder(image: Array, identity: Identity, capture: Capture) -> None:
    """Paint the object in front of the head: a hand, a scarf or a block."""
    position, color = capture.occluder_position, np.array(capture.occluder_color, dtype=np.float32)
    if capture.occluder == "hand":
        color = np.array(identity.appearance.skin, dtype=np.float32) * np.float32(0.85)
        side = 1.0 if position > 0 else -1.0
        shapes = [
            ellipse(56 + side * (38 + 3 * i), 80 + 8 * i + 14 * position, 19, 4.2, -0.35 * side) for i in range(4)
        ]
    elif capture.occluder == "scarf":
        top = 96 + 6 * position
        edge = [(0, top + 6), (28, top), (56, top + 3), (84, top), (112, top + 6)]
        shapes = [np.array([*edge, (112, 112), (0, 112)], dtype=np.float32)]
    elif capture.occluder == "block":
        corners = np.array([(-15, -13), (15, -10), (13, 14), (-14, 11)], dtype=np.float32)
        center = (56 + 48 * position, 60 + 40 * np.cos(9 * position))
        shapes = [corners + np.array(center, dtype=np.float32)]
    else:
        return
    mask = np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8)
    for shape in shapes:
        cv2.fillPoly(mask, [fixed_point(shape)], 255, cv2.LINE_AA, 4)
    weight = cv2.GaussianBlur(mask, (0, 0), 0.8).astype(np.float32)[:, :, None] / 255
    image += (color - image) * weight


def _capture_image(image: Array, capture: Capture, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Apply exposure, contrast and saturation, then blur and sensor noise; round to eight bits."""
    gray = (1 - capture.saturation) / 3
    gain = capture.contrast * capture.exposure * (capture.saturation * np.eye(3) + gray)
    offset = np.full((3, 1), 112 * (1 - capture.contrast))
    image = cv2.transform(image, np.hstack([gain, offset]))
    if capture.blur_px > 0.2:
        image = cv2.GaussianBlur(image, (0, 0), capture.blur_px)
    noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(capture.noise)
    captured: npt.NDArray[np.uint8] = cv2.add(image, noise, dtype=cv2.CV_8U)
    return captured
