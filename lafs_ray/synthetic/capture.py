"""Capture conditions of a synthetic image: everything that is independent of its identity.

Pose, light, expression, background, occlusion and camera are a pure function of (seed, identity, index). Their strength
is set so that raw pixels verify pairs of unseen identities with an accuracy of only about 0.65, which
`tests/synthetic/test_datasets.py` checks.
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
    """Pose, expression, light, occlusion and camera of one image.

    `smile` -1..1, `mouth_open`, `brow_raise` and `squint` 0..1; `gaze_x`, `gaze_y` in iris radii; `light_x`, `light_y`
    the light direction over its z; `temperature` -1 (blue)..1 (orange).
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
    occluder_position: float
    clothes: Color
    background_seed: int
    blur_px: float
    noise: float
    jpeg_quality: int


def sample_capture(seed: int, identity: int, index: int) -> Capture:
    """Return the conditions of image `index` of an identity: a pure function of the three."""
    rng = np.random.default_rng([seed, _STREAM, identity, index])
    occluder = rng.choice(
        ["none", "glasses", "sunglasses", "hat", "hand", "scarf", "block"], p=[0.56, 0.14, 0.05, 0.09, 0.06, 0.05, 0.05]
    )
    sharp = rng.uniform() < 0.6
    return Capture(
        yaw=_bounded(rng, 0.24, 0.6),
        pitch=_bounded(rng, 0.13, 0.32),
        roll=_bounded(rng, 0.07, 0.22),
        scale=1 + _bounded(rng, 0.04, 0.10),
        shift_x=_bounded(rng, 1.2, 3.5),
        shift_y=_bounded(rng, 1.2, 3.5),
        smile=float(np.clip(rng.normal(0.15, 0.45), -1, 1)),
        mouth_open=float(max(0.0, rng.uniform(-1.2, 1.0))),
        brow_raise=float(max(0.0, rng.uniform(-1.0, 1.0))),
        squint=float(max(0.0, rng.uniform(-0.8, 1.0))),
        gaze_x=_bounded(rng, 0.35, 0.8),
        gaze_y=_bounded(rng, 0.15, 0.4),
        light_x=_bounded(rng, 0.55, 1.6),
        light_y=float(np.clip(rng.normal(-0.4, 0.45), -1.3, 0.7)),
        ambient=float(rng.uniform(0.25, 0.75)),
        temperature=_bounded(rng, 0.5, 1.0),
        exposure=float(np.exp(_bounded(rng, 0.2, 0.4))),
        contrast=float(rng.uniform(0.8, 1.2)),
        saturation=float(rng.uniform(0.55, 1.2)) if rng.uniform() > 0.06 else 0.0,
        occluder=occluder,
        occluder_color=color_of(rng.uniform(25, 215) + rng.normal(0, 32, 3)),
        occluder_position=float(rng.uniform(-1, 1)),
        clothes=color_of(rng.uniform(25, 225) + rng.normal(0, 30, 3)),
        background_seed=int(rng.integers(2**31)),
        blur_px=float(rng.uniform(0.0, 0.5) if sharp else rng.uniform(0.5, 1.5)),
        noise=float(rng.uniform(0.5, 6.0)),
        jpeg_quality=int(rng.integers(60, 97)),
    )


def _bounded(rng: np.random.Generator, std: float, limit: float) -> float:
    return float(np.clip(rng.normal(0, std), -limit, limit))
