"""Who is drawn: geometry and appearance, a pure function of (seed, identity).

All lengths are pixels of an upright frontal 112x112 image with its origin between the eyes, x to
the viewer's right, y down and z towards the camera; angles are radians; colors RGB in 0..255.
Ranges are wide and overlapping on purpose: skin and hair color come from continuous mixtures that
many identities share, so neither names a person by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Color = tuple[float, float, float]
Beard = Literal["none", "stubble", "moustache", "goatee", "full"]

_STREAM = 1


@dataclass(frozen=True)
class Geometry:
    """Shape of a head; widths of paired or centered features are half widths."""

    cheek_width: float
    jaw_ratio: float
    temple_ratio: float
    chin_width: float
    chin_gap: float
    chin_depth: float
    skull_y: float
    eye_spacing: float
    eye_width: float
    eye_height: float
    eye_tilt: float
    eye_depth: float
    lid_fold: float
    iris_radius: float
    brow_gap: float
    brow_thickness: float
    brow_arch: float
    brow_length: float
    brow_tilt: float
    brow_ridge: float
    nose_y: float
    nose_width: float
    nose_depth: float
    nose_hump: float
    nose_skew: float
    bridge_width: float
    mouth_gap: float
    mouth_width: float
    mouth_curve: float
    mouth_skew: float
    upper_lip: float
    lower_lip: float
    cupid_bow: float
    ear_size: float
    cheek_fullness: float

    @property
    def mouth_y(self) -> float:
        """Height of the line between the lips."""
        return self.nose_y + self.mouth_gap

    @property
    def chin_y(self) -> float:
        """Height of the lowest point of the chin."""
        return self.mouth_y + self.chin_gap

    def normalized(self) -> Array:
        """Return all parameters as float32 [35], each mapped so that its range is 0..1."""
        return np.array(
            [
                (getattr(self, field.name) - low) / (high - low)
                for field in fields(self)
                for low, high, _ in (_GEOMETRY[field.name],)
            ],
            dtype=np.float32,
        )


# name: (low, high, shift): uniform in low..high, moved by `shift` times a latent in -1..1 that
# stands for how masculine the head is, so that jaw, brows, lips and beard go together.
_GEOMETRY: dict[str, tuple[float, float, float]] = {
    "cheek_width": (29.5, 36.5, 0.6),
    "jaw_ratio": (0.70, 0.92, 0.03),
    "temple_ratio": (0.84, 0.99, 0.0),
    "chin_width": (7.0, 15.0, 1.2),
    "chin_gap": (12.5, 19.0, 1.0),
    "chin_depth": (1.0, 5.5, 0.5),
    "skull_y": (-46.0, -38.0, 0.0),
    "eye_spacing": (13.4, 17.4, 0.0),
    "eye_width": (5.2, 7.6, -0.2),
    "eye_height": (2.0, 4.0, -0.3),
    "eye_tilt": (-0.16, 0.22, 0.0),
    "eye_depth": (2.0, 6.5, 0.6),
    "lid_fold": (0.8, 3.0, 0.0),
    "iris_radius": (2.6, 3.3, 0.0),
    "brow_gap": (6.8, 11.0, -0.8),
    "brow_thickness": (1.1, 3.1, 0.5),
    "brow_arch": (0.0, 3.2, -0.5),
    "brow_length": (7.5, 11.0, 0.0),
    "brow_tilt": (-0.14, 0.18, 0.0),
    "brow_ridge": (0.0, 3.0, 0.7),
    "nose_y": (17.0, 25.0, 0.5),
    "nose_width": (4.6, 8.8, 0.4),
    "nose_depth": (8.0, 15.0, 0.7),
    "nose_hump": (-1.5, 2.5, 0.2),
    "nose_skew": (-1.0, 1.0, 0.0),
    "bridge_width": (2.0, 4.2, 0.1),
    "mouth_gap": (9.5, 14.0, 0.3),
    "mouth_width": (8.0, 13.6, 0.2),
    "mouth_curve": (-1.3, 1.1, 0.0),
    "mouth_skew": (-0.8, 0.8, 0.0),
    "upper_lip": (1.2, 3.6, -0.4),
    "lower_lip": (2.0, 4.8, -0.3),
    "cupid_bow": (0.1, 1.3, 0.0),
    "ear_size": (6.0, 10.5, 0.4),
    "cheek_fullness": (-1.5, 4.5, 0.0),
}


@dataclass(frozen=True, eq=False)
class Appearance:
    """Colors, hair and marks of a person; positions are those of the frontal head.

    `blotches` [9,9] and `strands` [5,54], float32, are relative brightness of skin and hair over
    the canvas; `freckles` and `moles` [n,4] are rows of (x, y, radius, opacity).
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
    """A person: everything about a face that no photograph changes."""

    geometry: Geometry
    appearance: Appearance


_SKINS = np.array(
    [
        (240, 208, 186),
        (226, 184, 152),
        (204, 158, 122),
        (168, 119, 84),
        (124, 82, 58),
        (92, 60, 45),
    ],
    dtype=np.float32,
)
_HAIRS = np.array(
    [(28, 24, 24), (52, 36, 28), (86, 58, 38), (122, 66, 36), (176, 134, 78), (168, 164, 160)],
    dtype=np.float32,
)
_IRISES = np.array(
    [(52, 32, 20), (88, 58, 32), (104, 96, 52), (78, 112, 84), (84, 118, 150), (110, 124, 136)],
    dtype=np.float32,
)


def sample_identity(seed: int, identity: int) -> Identity:
    """Return person number `identity` of the population `seed`: a pure function of the two."""
    draw = np.random.default_rng([seed, _STREAM, identity])
    masculine = float(draw.uniform(-1, 1))
    geometry = Geometry(
        **{
            name: float(np.clip(draw.uniform(low, high) + masculine * shift, low, high))
            for name, (low, high, shift) in _GEOMETRY.items()
        }
    )
    return Identity(geometry, _sample_appearance(draw, masculine, geometry))


def _sample_appearance(
    draw: np.random.Generator, masculine: float, geometry: Geometry
) -> Appearance:
    melanin = float(draw.beta(1.5, 1.7))
    skin = _mix(_SKINS, melanin) * draw.uniform(0.94, 1.05) + draw.normal(0, 3.0, 3)
    pale = 1 - melanin
    gray = float(draw.uniform() < 0.14)
    hair = _mix(_HAIRS[:5], float(draw.uniform()) * (0.25 + 0.75 * pale)) * draw.normal(1, 0.06, 3)
    hair = (1 - 0.8 * gray) * hair + 0.8 * gray * _HAIRS[5]
    iris = _mix(_IRISES, float(draw.uniform()) * (0.2 + 0.8 * pale))
    lips = skin * (0.80, 0.58, 0.58) + draw.uniform(0, 1) * np.array([34.0, -6.0, 4.0])
    age = float(draw.uniform())
    long_hair = draw.uniform() < 0.5 - 0.42 * masculine
    beards: tuple[Beard, ...] = ("none", "stubble", "moustache", "goatee", "full")
    beard = beards[int(draw.integers(5))] if draw.uniform() < 0.9 * masculine else "none"
    return Appearance(
        skin=color_of(skin),
        lips=color_of(lips),
        iris=color_of(iris),
        hair=color_of(hair),
        brow=color_of(hair * draw.uniform(0.55, 0.9)),
        blush=float(draw.uniform(0, 1)),
        eye_shadow=float(draw.uniform(0, 1)),
        wrinkles=max(0.0, 1.6 * age - 0.6),
        fold=float(draw.uniform(0.05, 0.5) + 0.4 * age),
        blotches=(0.03 * draw.normal(0, 1, (9, 9))).astype(np.float32),
        strands=draw.uniform(-0.33, 0.33, (5, 54)).astype(np.float32),
        freckles=_marks(draw, int(draw.integers(15, 60)) if draw.uniform() < 0.25 * pale else 0),
        moles=_moles(draw, geometry),
        beard=beard,
        beard_density=float(draw.uniform(0.45, 0.95)),
        hairline_y=float(draw.uniform(-32, -18)),
        hairline_recess=float(draw.uniform(-3, 4 + 3 * masculine)),
        hair_volume=float(draw.uniform(0.5, 8.0)),
        hair_length=float(draw.uniform(34, 80) if long_hair else draw.uniform(-8, 12)),
        hair_wave=float(draw.uniform(0, 1.8)),
        hair_part=float(draw.uniform(-0.9, 0.9)),
        fringe=float(draw.uniform(0, 1) if draw.uniform() < 0.6 else 0.0),
    )


def _marks(draw: np.random.Generator, count: int) -> Array:
    place = draw.normal(0, 1, (count, 2)) * (14, 7) + (0, 10)
    look = np.stack([draw.uniform(0.4, 0.8, count), draw.uniform(0.15, 0.35, count)], axis=1)
    return np.concatenate([place, look], axis=1).astype(np.float32)


def _moles(draw: np.random.Generator, geometry: Geometry) -> Array:
    count = int(draw.integers(0, 4))
    y = draw.uniform(-18, geometry.chin_y - 8, count)
    x = draw.uniform(-0.75, 0.75, count) * geometry.cheek_width
    look = np.stack([draw.uniform(0.5, 1.1, count), draw.uniform(0.45, 0.8, count)], axis=1)
    return np.concatenate([np.stack([x, y], axis=1), look], axis=1).astype(np.float32)


def _mix(palette: Array, place: float) -> npt.NDArray[np.float64]:
    """Return the color at `place` in 0..1 on the line through the palette's colors."""
    steps = np.linspace(0, 1, len(palette))
    return np.array([np.interp(place, steps, palette[:, channel]) for channel in range(3)])


def color_of(values: npt.NDArray[np.float64]) -> Color:
    """Return three numbers as a color, kept off pure black and white."""
    red, green, blue = np.clip(values, 8, 248)
    return float(red), float(green), float(blue)
