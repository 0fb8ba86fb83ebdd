"""One key of a search space: which values it may have, and how they are drawn.

    optim.lr: {log_uniform: [1e-4, 1e-2]}
    mixup.probability: {choice: [0, 0.1, 0.2]}
    mixup.alpha: {uniform: [0.1, 1], when: {mixup.probability: [0.1, 0.2]}}

A draw depends on the sweep's seed, the trial's number and the key alone: another key, another
budget or another number of machines changes no value of the others.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from lafs_ray.config.loader import Section

Settings = dict[str, Any]

_DRAW_STREAM, _MOVE_STREAM = 0x737770, 0x706274
_DIGITS = 4
_NUMERIC = ("uniform", "log_uniform", "integer")
_LISTED = ("choice", "grid")
_KINDS = (*_NUMERIC, *_LISTED)
# How far a member of a population moves at once: this share of the range.
_MOVE = 0.2


class Dimension(Section):
    """The values of one key."""

    kind: Literal["uniform", "log_uniform", "integer", "choice", "grid"]
    """How it is drawn."""
    low: float = 0.0
    """Least value of a range."""
    high: float = 0.0
    """Greatest value of a range."""
    values: tuple[Any, ...] = ()
    """The values of a choice or grid."""
    when: dict[str, tuple[Any, ...]] = Field(default={})
    """Values of keys above it for which it is drawn; with others it keeps the base's value."""

    @model_validator(mode="before")
    @classmethod
    def _from_notation(cls, written: Any) -> Any:
        if isinstance(written, Dimension):
            return written
        if not isinstance(written, Mapping):
            raise ValueError(f"{written!r} - write a search such as {{uniform: [0, 1]}}")
        kinds = [key for key in written if key in _KINDS]
        others = [str(key) for key in written if key not in (*_KINDS, "when")]
        if len(kinds) != 1 or others:
            found = ", ".join([*map(str, kinds), *others]) or "nothing"
            raise ValueError(f"{found} - write one of {', '.join(_KINDS)}, and `when` if need be")
        parts = _range(kinds[0], written[kinds[0]])
        return {"kind": kinds[0], **parts, "when": _conditions(written.get("when", {}))}

    @property
    def is_numeric(self) -> bool:
        """Whether its values lie on an axis."""
        return self.kind in _NUMERIC

    def holds(self, value: Any) -> bool:
        """Whether a value is one of its own."""
        if not self.is_numeric:
            return _is_among(value, self.values)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        whole = self.kind != "integer" or float(value).is_integer()
        return whole and self.low <= value <= self.high

    def edges(self) -> list[Any]:
        """Values whose soundness says that of all: the ends of a range, or everything listed."""
        return (
            [self._typed(self.low), self._typed(self.high)] if self.is_numeric else [*self.values]
        )

    def draw(self, generator: np.random.Generator) -> Any:
        """A value; those of ranges have four digits."""
        if self.kind in _LISTED:
            return self.values[int(generator.integers(len(self.values)))]
        if self.kind == "integer":
            return int(generator.integers(int(self.low), int(self.high) + 1))
        return self._at(float(generator.uniform()))

    def move(self, value: Any, generator: np.random.Generator) -> Any:
        """A neighbor of a value: the next one listed, or a fifth of the range away."""
        up = 1 if generator.integers(2) else -1
        if self.kind in _LISTED:
            place = next(i for i, one in enumerate(self.values) if _is_among(value, [one]))
            return self.values[min(max(place + up, 0), len(self.values) - 1)]
        if self.kind == "integer":
            step = max(round(_MOVE * (self.high - self.low)), 1)
            return int(min(max(value + up * step, self.low), self.high))
        return self._at(min(max(self.place(value) + up * _MOVE, 0.0), 1.0))

    def place(self, value: float) -> float:
        """Where a number lies in the range, 0 … 1."""
        if self.kind == "log_uniform":
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def _at(self, place: float) -> float:
        if self.kind == "log_uniform":
            value = self.low * (self.high / self.low) ** place
        else:
            value = self.low + place * (self.high - self.low)
        return min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high)

    def _typed(self, value: float) -> float | int:
        return int(value) if self.kind == "integer" else value


def _range(kind: str, written: Any) -> dict[str, Any]:
    if not isinstance(written, list | tuple):
        raise ValueError(f"{kind}: {written!r} - write a list")
    if kind in _LISTED:
        if not written or any(_is_among(one, written[:i]) for i, one in enumerate(written)):
            raise ValueError(f"{kind}: {list(written)} - write one value or more, each once")
        return {"values": tuple(written)}
    if len(written) != 2 or any(
        isinstance(end, bool) or not isinstance(end, int | float) for end in written
    ):
        raise ValueError(f"{kind}: {list(written)} - write [least, most], two numbers")
    low, high = map(float, written)
    if not low < high:
        raise ValueError(f"{kind}: {list(written)} - write the least value first, then the most")
    if kind == "log_uniform" and low <= 0:
        raise ValueError(f"{kind}: {list(written)} - a logarithm needs numbers above 0")
    if kind == "integer" and not (low.is_integer() and high.is_integer()):
        raise ValueError(f"{kind}: {list(written)} - write whole numbers")
    return {"low": low, "high": high}


def _conditions(written: Any) -> dict[str, tuple[Any, ...]]:
    if not isinstance(written, Mapping):
        raise ValueError(f"when: {written!r} - write a key and its values, {{key: [1, 2]}}")
    return {
        str(key): tuple(values) if isinstance(values, list | tuple) else (values,)
        for key, values in written.items()
    }


def _is_among(value: Any, values: Iterable[Any]) -> bool:
    # True == 1 to Python, not to a person.
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in values)


Space = Mapping[str, Dimension]


def flat_space(written: Any) -> Any:
    """A space with dotted keys; sections may be nested, as overrides on a command line nest them.

    Of a key that is written twice the last one holds.
    """
    if not isinstance(written, Mapping):
        return written
    flat: dict[str, Any] = {}
    for key, value in written.items():
        if isinstance(value, Mapping) and not set(value) & set(_KINDS):
            flat |= {f"{key}.{inner}": one for inner, one in flat_space(value).items()}
        else:
            flat[str(key)] = value
    return flat


def is_active(dimension: Dimension, settings: Mapping[str, Any]) -> bool:
    """Whether a key is drawn, given the settings of the keys above it."""
    return all(
        key in settings and _is_among(settings[key], values)
        for key, values in dimension.when.items()
    )


def draw_settings(space: Space, seed: int, number: int) -> Settings:
    """The settings of a trial by random search; keys of a grid take its points in turn.

    Args:
        space: keys in order.
        seed: of the sweep.
        number: of the trial, from 0.
    """
    points = grid_points(space)
    point = points[number % len(points)]
    settings: Settings = {}
    for key, dimension in space.items():
        if dimension.kind == "grid":
            settings.update({key: point[key]} if key in point else {})
        elif is_active(dimension, settings):
            settings[key] = dimension.draw(_generator(_DRAW_STREAM, seed, number, key))
    return settings


def grid_points(space: Space) -> list[Settings]:
    """All combinations of the keys of kind grid, the last key fastest; without any, one of none."""
    grid = {key: dimension for key, dimension in space.items() if dimension.kind == "grid"}
    points: list[Settings] = []
    for values in itertools.product(*(dimension.values for dimension in grid.values())):
        point: Settings = {}
        for (key, dimension), value in zip(grid.items(), values, strict=True):
            point.update({key: value} if is_active(dimension, point) else {})
        if point not in points:
            points.append(point)
    return points


def moved_settings(
    space: Space, settings: Settings, resample: float, seed: int, number: int
) -> Settings:
    """Settings near those of a good member of a population, inside the space.

    Args:
        space: keys in order.
        settings: of the good member.
        resample: probability with which a key is drawn anew.
        seed: of the sweep.
        number: of the move, from 0.
    """
    moved: Settings = {}
    for key, value in settings.items():
        generator = _generator(_MOVE_STREAM, seed, number, key)
        anew = generator.uniform() < resample
        dimension = space[key]
        moved[key] = dimension.draw(generator) if anew else dimension.move(value, generator)
    return moved


def reaching(space: Space, key: str) -> Settings:
    """Settings of the keys above with which a key is drawn: the first that its conditions allow."""
    settings: Settings = {}
    above = [*space][: [*space].index(key)]
    for parent, values in space[key].when.items():
        if parent in above and values:
            settings |= {**reaching(space, parent), parent: values[0]}
    return settings


def _generator(stream: int, seed: int, number: int, key: str) -> np.random.Generator:
    return np.random.default_rng([stream, seed, number, zlib.crc32(key.encode())])
