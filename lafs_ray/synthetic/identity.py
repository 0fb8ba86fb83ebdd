"""Geometry and appearance of a synthetic identity, a pure function of (seed, identity).

All lengths are pixels of an upright frontal 112x112 image with its origin between the eyes, x to the viewer's right, y
down and z towards the camera; angles are radians; colors RGB in 0..255. Ranges are wide and overlapping on purpose:
skin and hair color come from continuous mixtures that many identities share, so neither identifies anybody alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Color = tuple[float, float, float]
Beard = Literal["none", "stubble", "moustache", "goatee", "full"]

_STREAM = 1


def _uniform(low: float, high: float, shift: float = 0.0) -> Any:
    """Declare a parameter: uniform in low..high, plus `shift` times a latent in -1..1.

    The latent is the masculinity of the head, so that jaw, brows, lips and beard correlate.
    """
    return field(metadata={"range": (low, high, shift)})


@dataclass(frozen=True)
class Geometry:
    """Shape of a head; widths of paired or centered features are half widths."""

    cheek_width: float = _uniform(29.5, 36.5, 0.6)
    jaw_ratio: float = _uniform(0.70, 0.92, 0.03)
    temple_ratio: float = _uniform(0.84, 0.99)
    chin_width: float = _uniform(7.0, 15.0, 1.2)
    chin_gap: float = _uniform(12.5, 19.0, 1.0)
    chin_depth: float = _uniform(1.0, 5.5, 0.5)
    skull_y: float = _uniform(-46.0, -38.0)
    eye_spacing: float = _uniform(13.4, 17.4)
    eye_width: float = _uniform(5.2, 7.6, -0.2)
    eye_height: float = _uniform(2.0, 4.0, -0.3)
    eye_tilt: float = _uniform(-0.16, 0.22)
    eye_depth: float = _uniform(2.0, 6.5, 0.6)
    lid_fold: float = _uniform(0.8, 3.0)
    iris_radius: float = _uniform(2.6, 3.3)
    brow_gap: float = _uniform(6.8, 11.0, -0.8)
    brow_thickness: float = _uniform(1.1, 3.1, 0.5)
    brow_arch: float = _uniform(0.0, 3.2, -0.5)
    brow_length: float = _uniform(7.5, 11.0)
    brow_tilt: float = _uniform(-0.14, 0.18)
    brow_ridge: float = _uniform(0.0, 3.0, 0.7)
    nose_y: float = _uniform(17.0, 25.0, 0.5)
    nose_width: float = _uniform(4.6, 8.8, 0.4)
    nose_depth: float = _uniform(8.0, 15.0, 0.7)
    nose_hump: float = _uniform(-1.5, 2.5, 0.2)
    nose_skew: float = _uniform(-1.0, 1.0)
    bridge_width: float = _uniform(2.0, 4.2, 0.1)
    mouth_gap: float = _uniform(9.5, 14.0, 0.3)
    mouth_width: float = _uniform(8.0, 13.6, 0.2)
    mouth_curve: float = _uniform(-1.3, 1.1)
    mouth_skew: float = _uniform(-0.8, 0.8)
    upper_lip: float = _uniform(1.2, 3.6, -0.4)
    lower_lip: float = _uniform(2.0, 4.8, -0.3)
    cupid_bow: float = _uniform(0.1, 1.3)
    ear_size: float = _uniform(6.0, 10.5, 0.4)
    cheek_fullness: float = _uniform(-1.5, 4.5)

    @property
    def mouth_y(self) -> float:
        """Height of the line between the lips."""
        return self.nose_y + self.mouth_gap

    @property
    def chin_y(self) -> float:
        """Height of the lowest point of the chin."""
        return self.mouth_y + self.chin_gap


@dataclass(frozen=True, eq=False)
class Appearance:
    """Colors, hair and marks of an identity; positions are those of the frontal head.

    `blotches` [9,9] and `strands` [5,54], float32, are relative brightness of skin and hair over the canvas; `freckles`
    and `moles` [n,4] are rows of (x, y, radius, opacity).
    """

    skin: Color
    lips: Color
    iris: Color
    hair: Color
    brow: Color
    blush: float
    eye_shadow: float
    wrinkles: float
    fold: float
    blotches: Array
    strands: Array
    freckles: Array
    moles: Array
    beard: Beard
    beard_density: float
    hairline_y: float
    hairline_recess: float
    hair_volume: float
    hair_length: float
    hair_wave: float
    hair_part: float
    fringe: float


@dataclass(frozen=True, eq=False)
class Identity:
    """Everything about a face that is constant over its images."""

    geometry: Geometry
    appearance: Appearance


_SKINS = np.array(
    [(240, 208, 186), (226, 184, 152), (204, 158, 122), (168, 119, 84), (124, 82, 58), (92, 60, 45)], dtype=np.float32
)
_HAIRS = np.array(
    [(28, 24, 24), (52, 36, 28), (86, 58, 38), (122, 66, 36), (176, 134, 78), (168, 164, 160)], dtype=np.float32
)
_IRISES = np.array(
    [(52, 32, 20), (88, 58, 32), (104, 96, 52), (78, 112, 84), (84, 118, 150), (110, 124, 136)], dtype=np.float32
)


def sample_identity(seed: int, identity: int) -> Identity:
    """Return identity number `identity` of the population `seed`: a pure function of both."""
    rng = np.random.default_rng([seed, _STREAM, identity])
    masculine = float(rng.uniform(-1, 1))
    parameters = {}
    for parameter in fields(Geometry):
        low, high, shift = parameter.metadata["range"]
        value = np.clip(rng.uniform(low, high) + masculine * shift, low, high)
        parameters[parameter.name] = float(value)
    geometry = Geometry(**parameters)
    return Identity(geometry, _sample_appearance(rng, masculine, geometry))


def _sample_appearance(rng: np.random.Generator, masculine: float, geometry: Geometry) -> Appearance:
    melanin = float(rng.beta(1.5, 1.7))
    skin = _mix(_SKINS, melanin) * rng.uniform(0.94, 1.05) + rng.normal(0, 3.0, 3)
    pale = 1 - melanin
    gray = float(rng.uniform() < 0.14)
    hair = _mix(_HAIRS[:5], float(rng.uniform()) * (0.25 + 0.75 * pale)) * rng.normal(1, 0.06, 3)
    hair = (1 - 0.8 * gray) * hair + 0.8 * gray * _HAIRS[5]
    iris = _mix(_IRISES, float(rng.uniform()) * (0.2 + 0.8 * pale))
    lips = skin * (0.80, 0.58, 0.58) + rng.uniform(0, 1) * np.array([34.0, -6.0, 4.0])
    age = float(rng.uniform())
    long_hair = rng.uniform() < 0.5 - 0.42 * masculine
    beards: tuple[Beard, ...] = ("none", "stubble", "moustache", "goatee", "full")
    beard = beards[int(rng.integers(5))] if rng.uniform() < 0.9 * masculine else "none"
    return Appearance(
        skin=color_of(skin),
        lips=color_of(lips),
        iris=color_of(iris),
        hair=color_of(hair),
        brow=color_of(hair * rng.uniform(0.55, 0.9)),
        blush=float(rng.uniform(0, 1)),
        eye_shadow=float(rng.uniform(0, 1)),
        wrinkles=max(0.0, 1.6 * age - 0.6),
        fold=float(rng.uniform(0.05, 0.5) + 0.4 * age),
        blotches=(0.03 * rng.normal(0, 1, (9, 9))).astype(np.float32),
        strands=rng.uniform(-0.33, 0.33, (5, 54)).astype(np.float32),
        freckles=_marks(rng, int(rng.integers(15, 60)) if rng.uniform() < 0.25 * pale else 0),
        moles=_moles(rng, geometry),
        beard=beard,
        beard_density=float(rng.uniform(0.45, 0.95)),
        hairline_y=float(rng.uniform(-32, -18)),
        hairline_recess=float(rng.uniform(-3, 4 + 3 * masculine)),
        hair_volume=float(rng.uniform(0.5, 8.0)),
        hair_length=float(rng.uniform(34, 80) if long_hair else rng.uniform(-8, 12)),
        hair_wave=float(rng.uniform(0, 1.8)),
        hair_part=float(rng.uniform(-0.9, 0.9)),
        fringe=float(rng.uniform(0, 1) if rng.uniform() < 0.6 else 0.0),
    )


def _marks(rng: np.random.Generator, count: int) -> Array:
    position = rng.normal(0, 1, (count, 2)) * (14, 7) + (0, 10)
    look = np.stack([rng.uniform(0.4, 0.8, count), rng.uniform(0.15, 0.35, count)], axis=1)
    return np.concatenate([position, look], axis=1).astype(np.float32)


def _moles(rng: np.random.Generator, geometry: Geometry) -> Array:
    count = int(rng.integers(0, 4))
    y = rng.uniform(-18, geometry.chin_y - 8, count)
    x = rng.uniform(-0.75, 0.75, count) * geometry.cheek_width
    look = np.stack([rng.uniform(0.5, 1.1, count), rng.uniform(0.45, 0.8, count)], axis=1)
    return np.concatenate([np.stack([x, y], axis=1), look], axis=1).astype(np.float32)


def _mix(palette: Array, position: float) -> npt.NDArray[np.float64]:
    """Return the color at `position` in 0..1 on the line through the palette's colors."""
    steps = np.linspace(0, 1, len(palette))
    return np.array([np.interp(position, steps, palette[:, channel]) for channel in range(3)])


def color_of(values: npt.NDArray[np.float64]) -> Color:
    """Return three numbers as a color, clipped to 8..248."""
    red, green, blue = np.clip(values, 8, 248)
    return float(red), float(green), float(blue)
