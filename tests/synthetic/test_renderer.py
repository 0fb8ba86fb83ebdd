from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any, get_args

import numpy as np
import pytest

from lafs_ray.synthetic.canvas import ORIGIN, SCALE, SIDE, curve, gaussian_sum
from lafs_ray.synthetic.capture import Capture, Occluder, sample_capture
from lafs_ray.synthetic.features import Features
from lafs_ray.synthetic.identity import Array, Geometry, Identity, sample_identity
from lafs_ray.synthetic.renderer import _camera, _depth_map, _rotation, _sample, render_face


def plain(**changes: Any) -> Capture:
    """Return an upright, frontal, evenly lit capture without occlusion."""
    calm: dict[str, Any] = dict.fromkeys(
        ["yaw", "pitch", "roll", "shift_x", "shift_y", "smile", "mouth_open", "brow_raise"], 0.0
    )
    calm |= dict.fromkeys(["squint", "gaze_x", "gaze_y", "light_x", "temperature", "blur_px"], 0.0)
    calm |= {"scale": 1.0, "light_y": -0.3, "ambient": 0.5, "exposure": 1.0, "contrast": 1.0}
    calm |= {"saturation": 1.0, "noise": 0.0, "occluder": "none"}
    return replace(sample_capture(0, 0, 0), **(calm | changes))


def normalized(geometry: Geometry) -> Array:
    """Return all parameters as float32 [35], each mapped so that its range is 0..1."""
    ranges = {one.name: one.metadata["range"] for one in fields(geometry)}
    values = [(getattr(geometry, name) - low) / (high - low) for name, (low, high, _) in ranges.items()]
    return np.array(values, dtype=np.float32)


def true_landmarks(identity: Identity, capture: Capture) -> Array:
    """Return the positions of features in the image, float32 [7,2] as (x, y) in pixels.

    Order: outer and inner corner of the left-hand eye, inner and outer corner of the right-hand
    eye, nose tip, left-hand and right-hand mouth corner ("left-hand" as the viewer sees it).
    """
    geometry = identity.geometry
    features = Features.of(geometry, capture)
    outer, inner = (geometry.eye_spacing + geometry.eye_width, geometry.eye_spacing - geometry.eye_width)
    outer_y = 0.1 - geometry.eye_tilt * geometry.eye_width
    inner_y = 0.9 + geometry.eye_tilt * geometry.eye_width
    points = np.array(
        [
            (-outer, outer_y),
            (-inner, inner_y),
            (inner, inner_y),
            (outer, outer_y),
            (geometry.nose_skew, geometry.nose_y - 1),
            (-features.mouth_x, features.corner_y - geometry.mouth_skew),
            (features.mouth_x, features.corner_y + geometry.mouth_skew),
        ],
        dtype=np.float32,
    )
    depth = _depth_map(geometry, features, capture)
    z = _sample(depth, points[None, :, 0], points[None, :, 1])[0]
    turned = np.stack([points[:, 0], points[:, 1], z], axis=1) @ _rotation(capture).T
    similarity, shift = _camera(capture)
    landmarks: Array = (turned[:, :2] @ similarity.T + shift).astype(np.float32)
    return landmarks


def test_gaussian_sum__against_its_definition() -> None:
    """The matrix product equals the loop in the docstring."""
    blobs = [(3.0, -8.0, 4.0, 6.0, 1.0, -2.0), (-10.0, 20.0, 9.0, 2.5, 0.5, 3.0)]
    side = 24
    expected = np.zeros((2, side, side))
    for x, y, sigma_x, sigma_y, *heights in blobs:
        for row in range(side):
            for column in range(side):
                at_x = (column + 0.5) * SIDE / SCALE / side - ORIGIN[0]
                at_y = (row + 0.5) * SIDE / SCALE / side - ORIGIN[1]
                far = ((at_x - x) / sigma_x) ** 2 + ((at_y - y) / sigma_y) ** 2
                expected[:, row, column] += np.array(heights) * math.exp(-far / 2)
    # float32 against float64
    np.testing.assert_allclose(gaussian_sum(blobs, side), expected, atol=1e-5)


@pytest.mark.parametrize("closed", [False, True])
def test_curve__meets_its_knots(closed: bool) -> None:
    """Every sixth point of the line is a knot; an open line ends at its last knot."""
    knots = np.array([(0, 0), (5, 1), (6, 7), (-2, 4)], dtype=np.float32)
    line = curve(knots, closed=closed)
    np.testing.assert_allclose(line[::6], knots, atol=1e-6)
    assert len(line) == (24 if closed else 19)


def test_sample_identity__pure_function_of_seed_and_number() -> None:
    """Equal arguments give the same identity, any other seed or number another one."""
    shape = normalized(sample_identity(3, 7).geometry)
    assert np.array_equal(shape, normalized(sample_identity(3, 7).geometry))
    assert not np.array_equal(shape, normalized(sample_identity(3, 8).geometry))
    assert not np.array_equal(shape, normalized(sample_identity(4, 7).geometry))


def test_sample_identity__identities_differ_in_geometry() -> None:
    """Parameters stay in their ranges, and no two of 200 identities have nearly the same shape."""
    shapes = np.stack([normalized(sample_identity(0, number).geometry) for number in range(200)])
    assert shapes.min() >= 0
    assert shapes.max() <= 1
    apart = np.linalg.norm(shapes[:, None] - shapes[None], axis=2)[np.triu_indices(200, 1)]
    # 35 uniform numbers lie sqrt(35 / 6) = 2.4 apart on average; one alone spans at most 1.
    assert apart.min() > 1


def test_sample_identity__color_identifies_nobody() -> None:
    """The skin and hair of every identity have a near match among 200 others."""
    looks = [sample_identity(0, number).appearance for number in range(201)]
    colors = np.array([look.skin + look.hair for look in looks])
    distances = np.linalg.norm(colors[:, None] - colors[None], axis=2) + 1e9 * np.eye(201)
    # 30 in six channels is 12 a channel: less than light and exposure change between images.
    assert np.mean(distances.min(axis=1) < 30) > 0.9


def test_render_face__pure_function() -> None:
    """The same identity and capture give the same pixels, RGB uint8 [112,112,3]."""
    identity, capture = sample_identity(1, 2), sample_capture(1, 2, 3)
    image = render_face(identity, capture)
    assert image.shape == (112, 112, 3)
    assert image.dtype == np.uint8
    assert np.array_equal(image, render_face(identity, capture))


def test_render_face__capture_changes_images_and_keeps_them_exposed() -> None:
    """Images of one identity differ much, and few are nearly black or white."""
    identity = sample_identity(0, 5)
    images = [render_face(identity, sample_capture(0, 5, index)) for index in range(24)]
    stack = np.stack(images).astype(np.float32)
    assert np.abs(stack[:-1] - stack[1:]).mean(axis=(1, 2, 3)).min() > 10
    means = stack.mean(axis=(1, 2, 3))
    assert np.mean((means > 35) & (means < 225)) > 0.9


def test_render_face__red_comes_first() -> None:
    """A face in neutral light has more red than blue."""
    for number in range(5):
        cheek = render_face(sample_identity(0, number), plain())[60:72, 40:72].mean(axis=(0, 1))
        assert cheek[0] > cheek[2] + 10


@pytest.mark.parametrize("occluder", [kind for kind in get_args(Occluder) if kind != "none"])
def test_render_face__each_occluder_hides_something(occluder: Occluder) -> None:
    """Glasses, hat, hand, scarf and block each change at least a hundred pixels."""
    identity = sample_identity(0, 1)
    hidden = render_face(identity, plain(occluder=occluder, occluder_color=(20.0, 90.0, 200.0)))
    bare = render_face(identity, plain())
    changed = np.abs(hidden.astype(int) - bare.astype(int)).max(axis=2) > 20
    assert changed.sum() > 100


def test_render_face__light_has_a_direction() -> None:
    """The half of the face towards the light is brighter."""
    identity = sample_identity(0, 1)
    for light_x in (-1.2, 1.2):
        image = render_face(identity, plain(light_x=light_x, ambient=0.2)).astype(np.float32)
        left, right = image[55:85, 30:50].mean(), image[55:85, 62:82].mean()
        assert (right - left) * light_x > 10


def test_true_landmarks__yaw_moves_nose_and_foreshortens() -> None:
    """Turned to the right, the nose leaves the eyes' middle and the eye on that side narrows."""
    identity = sample_identity(0, 3)
    front = true_landmarks(identity, plain())
    turned = true_landmarks(identity, plain(yaw=0.5))
    assert turned[4, 0] - turned[1:3, 0].mean() > front[4, 0] - front[1:3, 0].mean() + 3
    near, far = turned[1, 0] - turned[0, 0], turned[3, 0] - turned[2, 0]
    assert far < 0.9 * near
    # With nothing turned, eye corners lie symmetrically about the image's middle.
    np.testing.assert_allclose(front[0, 0] + front[3, 0], 112, atol=0.01)


def test_true_landmarks__pitch_and_roll() -> None:
    """Looking up raises the nose against the eyes; roll lowers the right-hand eye."""
    identity = sample_identity(0, 3)
    front = true_landmarks(identity, plain())
    up, down = (true_landmarks(identity, plain(pitch=pitch)) for pitch in (0.25, -0.25))
    rise = [points[4, 1] - points[:4, 1].mean() for points in (up, front, down)]
    assert rise == sorted(rise)
    rolled = true_landmarks(identity, plain(roll=0.2))
    assert rolled[3, 1] > rolled[0, 1] + 4


@pytest.mark.parametrize("yaw", [-0.45, 0.0, 0.45])
def test_true_landmarks__agree_with_the_image(yaw: float) -> None:
    """The eyes, found by the pixels that change with the gaze, agree with the landmarks."""
    identity = sample_identity(0, 3)
    right, left = (
        render_face(identity, plain(yaw=yaw, pitch=0.1, gaze_x=gaze)).astype(np.float32) for gaze in (0.8, -0.8)
    )
    change = np.abs(right - left).sum(axis=2)
    rows, columns = np.nonzero(change > 40)
    points = true_landmarks(identity, plain(yaw=yaw, pitch=0.1))
    for corners in (points[:2], points[2:4]):
        near = np.abs(columns - corners[:, 0].mean()) < 9
        middle = columns[near].mean(), rows[near].mean()
        # Pixels are whole, the iris is slightly above the corners, and five solver steps are not the limit: together
        # under two pixels.
        np.testing.assert_allclose(middle, corners.mean(axis=0), atol=2)
