"""How a picture was taken: all that says nothing of who is on it.

Pose, light, expression, backdrop, occlusion and camera are a pure function of (seed, identity,
index). Their strength is set so that raw pixels verify pairs of unseen people at about 0.65 only,
which `tests/data/test_synthetic.py` guards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from lafs_ray.synthetic.identity import Color, color_of

Occluder = Literal["none", "glasses", "sunglasses", "hat", "hand", "scarf", "block"]

_STREAM = 2


@dataclass(frozen=True)
class Capture:
    """One photograph: everything about a picture that says nothing of who is on it.

    `smile` -1..1, `mouth_open`, `brow_raise` and `squint` 0..1; `gaze_x`, `gaze_y` in iris radii;
    `light_x`, `light_y` the direction to the lamp over its z; `temperature` -1 (blue)..1 (orange).
    """

    yaw: float
    pitch: float
    roll: float
    scale: float
    shift_x: float
    shift_y: float
    smile: float
    mouth_open: float
    brow_raise: float
    squint: float
    gaze_x: float
    gaze_y: float
    light_x: float
    light_y: float
    ambient: float
    temperature: float
    exposure: float
    contrast: float
    saturation: float
    occluder: Occluder
    occluder_color: Color
    occluder_place: float
    cloth: Color
    backdrop_seed: int
    blur_px: float
    noise: float
    jpeg_quality: int


def sample_capture(seed: int, identity: int, index: int) -> Capture:
    """Return the circumstances of picture `index` of a person: a pure function of the three."""
    draw = np.random.default_rng([seed, _STREAM, identity, index])
    occluder = draw.choice(
        ["none", "glasses", "sunglasses", "hat", "hand", "scarf", "block"],
        p=[0.56, 0.14, 0.05, 0.09, 0.06, 0.05, 0.05],
    )
    sharp = draw.uniform() < 0.6
    return Capture(
        yaw=_bounded(draw, 0.24, 0.6),
        pitch=_bounded(draw, 0.13, 0.32),
        roll=_bounded(draw, 0.07, 0.22),
        scale=1 + _bounded(draw, 0.04, 0.10),
        shift_x=_bounded(draw, 1.2, 3.5),
        shift_y=_bounded(draw, 1.2, 3.5),
        smile=float(np.clip(draw.normal(0.15, 0.45), -1, 1)),
        mouth_open=float(max(0.0, draw.uniform(-1.2, 1.0))),
        brow_raise=float(max(0.0, draw.uniform(-1.0, 1.0))),
        squint=float(max(0.0, draw.uniform(-0.8, 1.0))),
        gaze_x=_bounded(draw, 0.35, 0.8),
        gaze_y=_bounded(draw, 0.15, 0.4),
        light_x=_bounded(draw, 0.55, 1.6),
        light_y=float(np.clip(draw.normal(-0.4, 0.45), -1.3, 0.7)),
        ambient=float(draw.uniform(0.25, 0.75)),
        temperature=_bounded(draw, 0.5, 1.0),
        exposure=float(np.exp(_bounded(draw, 0.2, 0.4))),
        contrast=float(draw.uniform(0.8, 1.2)),
        saturation=float(draw.uniform(0.55, 1.2)) if draw.uniform() > 0.06 else 0.0,
        occluder=occluder,
        occluder_color=color_of(draw.uniform(25, 215) + draw.normal(0, 32, 3)),
        occluder_place=float(draw.uniform(-1, 1)),
        cloth=color_of(draw.uniform(25, 225) + draw.normal(0, 30, 3)),
        backdrop_seed=int(draw.integers(2**31)),
        blur_px=float(draw.uniform(0.0, 0.5) if sharp else draw.uniform(0.5, 1.5)),
        noise=float(draw.uniform(0.5, 6.0)),
        jpeg_quality=int(draw.integers(60, 97)),
    )


def _bounded(draw: np.random.Generator, deviation: float, limit: float) -> float:
    return float(np.clip(draw.normal(0, deviation), -limit, limit))
