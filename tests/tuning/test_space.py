"""Search spaces: what may be written, and what is drawn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from lafs_ray.tuning.space import Dimension, draw_settings, grid_points, moved_settings, reaching

WRITTEN = {
    "a": {"uniform": [0.0, 2.0]},
    "b": {"log_uniform": [1e-4, 1e-2]},
    "c": {"integer": [1, 3]},
    "d": {"choice": [None, 1, [0.5, 1.0]]},
    "e": {"uniform": [0.0, 1.0], "when": {"c": [2, 3]}},
}


def parsed(written: dict[str, Any]) -> dict[str, Dimension]:
    return {key: Dimension.model_validate(value) for key, value in written.items()}


def test_draw_settings__stays_in_the_space() -> None:
    """Every value is one of its key's, and a conditional key is there exactly when it should be."""
    space = parsed(WRITTEN)
    drawn = [draw_settings(space, 0, number) for number in range(300)]
    for settings in drawn:
        assert all(space[key].holds(value) for key, value in settings.items()), settings
        assert ("e" in settings) == (settings["c"] in (2, 3))
    assert {settings["c"] for settings in drawn} == {1, 2, 3}
    # A third of 300 draws lies in each third of the axis: 100 ± 5 deviations of √(300·1/3·2/3).
    for key, place in (("a", lambda v: v / 2), ("b", lambda v: (math.log10(v) + 4) / 2)):
        counts = np.histogram([place(one[key]) for one in drawn], bins=3, range=(0, 1))[0]
        assert (abs(counts - 100) < 41).all(), (key, counts)


def test_draw_settings__depends_on_seed_number_and_key_alone() -> None:
    """The same again; other keys and other trials change nothing; another seed changes all."""
    space = parsed(WRITTEN)
    first = draw_settings(space, 5, 7)
    assert draw_settings(space, 5, 7) == first
    fewer = parsed({key: WRITTEN[key] for key in ("b", "c", "e")})
    assert draw_settings(fewer, 5, 7) == {key: first[key] for key in first if key in fewer}
    assert draw_settings(space, 6, 7)["a"] != first["a"]
    assert draw_settings(space, 5, 8)["a"] != first["a"]


def test_grid_points__with_a_condition() -> None:
    """All combinations, the last key fastest; one that a condition leaves out comes once."""
    space = parsed({"a": {"grid": [False, True]}, "b": {"grid": [1, 2], "when": {"a": [True]}}})
    assert grid_points(space) == [{"a": False}, {"a": True, "b": 1}, {"a": True, "b": 2}]


def test_draw_settings__takes_points_of_a_grid_in_turn() -> None:
    """In a random search every point of the grid gets as many trials."""
    space = parsed({"a": {"grid": [1, 2, 3]}, "b": {"uniform": [0, 1]}})
    drawn = [draw_settings(space, 0, number) for number in range(6)]
    assert [one["a"] for one in drawn] == [1, 2, 3, 1, 2, 3]
    assert len({one["b"] for one in drawn}) == 6


def test_moved_settings__stay_near_and_inside() -> None:
    """A member moves by a fifth of the range, to a listed neighbor, and never out of the space."""
    space = parsed({key: WRITTEN[key] for key in "abcd"})
    settings = {"a": 1.0, "b": 1e-2, "c": 1, "d": None}
    moves = [moved_settings(space, settings, 0.0, 0, number) for number in range(40)]
    assert {one["a"] for one in moves} == {0.6, 1.4}
    # At the end of the range: 0.2 of two decades down, or there.
    assert {one["b"] for one in moves} == {float(f"{10**-2.4:.4g}"), 1e-2}
    assert {one["c"] for one in moves} == {1, 2}
    assert all(one["d"] in (None, 1) for one in moves)
    anew = [moved_settings(space, settings, 1.0, 0, number)["a"] for number in range(40)]
    assert len(set(anew)) > 30


def test_reaching__conditions_of_conditions() -> None:
    """A key can be tried out with the first values that its conditions allow."""
    space = parsed(
        {
            "a": {"choice": [1, 2]},
            "b": {"choice": [3, 4], "when": {"a": [2]}},
            "c": {"uniform": [0, 1], "when": {"b": 4}},
        }
    )
    assert reaching(space, "c") == {"a": 2, "b": 4}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (0.1, "0.1 - write a search such as"),
        ({"uniform": [0, 1], "choice": [1]}, "uniform, choice - write one of"),
        ({"normal": [0, 1]}, "normal - write one of uniform, log_uniform, integer, choice, grid"),
        ({"uniform": 3}, "uniform: 3 - write a list"),
        ({"uniform": [0, 1, 2]}, r"uniform: \[0, 1, 2\] - write \[least, most\], two numbers"),
        ({"uniform": [1, 1]}, r"uniform: \[1, 1\] - write the least value first"),
        ({"log_uniform": [0, 1]}, r"log_uniform: \[0, 1\] - a logarithm needs numbers above 0"),
        ({"integer": [0.5, 3]}, r"integer: \[0.5, 3\] - write whole numbers"),
        ({"choice": []}, r"choice: \[\] - write one value or more"),
        ({"grid": [1, 2, 1]}, r"grid: \[1, 2, 1\] - write one value or more, each once"),
        ({"choice": [1], "when": 3}, "when: 3 - write a key and its values"),
    ],
)
def test_dimension__impossible(written: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Dimension.model_validate(written)


def test_dimension__true_is_not_one() -> None:
    """A switch and a number are different values, as they are to a person."""
    dimension = Dimension.model_validate({"choice": [True, 1]})
    assert dimension.holds(True)
    assert not Dimension.model_validate({"choice": [True, 2]}).holds(1)
    assert not Dimension.model_validate({"integer": [0, 2]}).holds(True)
