"""Search spaces: notation, conditions and values."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from lafs_ray.tuning.search_space import Dimension, activating_settings, active_settings


def parsed(written: dict[str, Any]) -> dict[str, Dimension]:
    return {key: Dimension.model_validate(value) for key, value in written.items()}


def test_activating_settings__conditions_of_conditions() -> None:
    """The first values allowed activate a key; inactive keys are left out."""
    space = parsed(
        {
            "a": {"choice": [1, 2]},
            "b": {"choice": [3, 4], "when": {"a": [2]}},
            "c": {"uniform": [0, 1], "when": {"b": 4}},
        }
    )
    assert activating_settings(space, "c") == {"a": 2, "b": 4}
    values = {"a": 2, "b": 4, "c": 0.5}
    assert active_settings(space, values) == values
    assert active_settings(space, {**values, "b": 3}) == {"a": 2, "b": 3}
    assert active_settings(space, {**values, "a": 1}) == {"a": 1}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (0.1, "0.1 - write a distribution such as"),
        ({"uniform": [0, 1], "choice": [1]}, "uniform, choice - write one of"),
        ({"normal": [0, 1]}, "normal - write one of uniform, log_uniform, integer, choice, and"),
        ({"uniform": 3}, "uniform: 3 - write a list"),
        ({"uniform": [0, 1, 2]}, r"uniform: \[0, 1, 2\] - write \[low, high\], two numbers"),
        ({"uniform": [1, 1]}, r"uniform: \[1, 1\] - write the lower bound first"),
        ({"log_uniform": [0, 1]}, r"log_uniform: \[0, 1\] - a logarithmic range needs bounds above 0"),
        ({"integer": [0.5, 3]}, r"integer: \[0.5, 3\] - write integers"),
        ({"choice": []}, r"choice: \[\] - write at least one value"),
        ({"choice": [1, 2, 1]}, r"choice: \[1, 2, 1\] - write at least one value, each once"),
        ({"choice": [1], "when": 3}, "when: 3 - write a key and its values"),
    ],
)
def test_dimension__invalid(written: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Dimension.model_validate(written)


def test_dimension__true_is_not_one() -> None:
    """A boolean and a number are different values, also as Optuna's parameters."""
    dimension = Dimension.model_validate({"choice": [True, 1]})
    assert dimension.contains(True)
    assert [dimension.from_param(dimension.to_param(one)) for one in (True, 1)] == [True, 1]
    assert len({dimension.to_param(one) for one in (True, 1)}) == 2
    assert not Dimension.model_validate({"choice": [True, 2]}).contains(1)
    assert not Dimension.model_validate({"integer": [0, 2]}).contains(True)
