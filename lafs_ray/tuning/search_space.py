"""Search space: the values that each configuration key may take, as Optuna distributions.

optim.lr: {log_uniform: [1e-4, 1e-2]} mixup.probability: {choice: [0, 0.1, 0.2]} mixup.alpha: {uniform: [0.1, 1], when:
{mixup.probability: [0.1, 0.2]}}
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from lafs_ray.config.loader import Section

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Settings = dict[str, Any]

KINDS = ("uniform", "log_uniform", "integer", "choice")


class Dimension(Section):
    """The values of one key."""

    kind: Literal["uniform", "log_uniform", "integer", "choice"]
    """Distribution of the values."""
    low: float = 0.0
    """Lower bound of a range, inclusive."""
    high: float = 0.0
    """Upper bound of a range, inclusive."""
    values: tuple[Any, ...] = ()
    """The values of a choice."""
    when: dict[str, tuple[Any, ...]] = Field(default={})
    """Values of earlier keys for which this key is active; otherwise it keeps the base's value."""

    @model_validator(mode="before")
    @classmethod
    def _from_notation(cls, written: Any) -> Any:
        if isinstance(written, Dimension):
            return written
        if not isinstance(written, Mapping):
            raise ValueError(f"{written!r} - write a distribution such as {{uniform: [0, 1]}}")
        kinds = [key for key in written if key in KINDS]
        others = [str(key) for key in written if key not in (*KINDS, "when")]
        if len(kinds) != 1 or others:
            found = ", ".join([*map(str, kinds), *others]) or "nothing"
            raise ValueError(f"{found} - write one of {', '.join(KINDS)}, and optionally `when`")
        when = written.get("when", {})
        if not isinstance(when, Mapping):
            raise ValueError(f"when: {when!r} - write a key and its values, {{key: [1, 2]}}")
        conditions = {
            str(key): tuple(values) if isinstance(values, list | tuple) else (values,) for key, values in when.items()
        }
        return {"kind": kinds[0], **_parse_values(kinds[0], written[kinds[0]]), "when": conditions}

    @staticmethod
    def notation(stored: Any) -> Any:
        """Return the notation of a dimension whose fields are stored; anything else unchanged."""
        if not isinstance(stored, Mapping) or stored.get("kind") not in KINDS:
            return stored
        kind = stored["kind"]
        written = stored.get("values") if kind == "choice" else [stored.get("low"), stored.get("high")]
        return {kind: written, **({"when": stored["when"]} if stored.get("when") else {})}

    @property
    def is_numeric(self) -> bool:
        """Whether it is a range of numbers."""
        return self.kind != "choice"

    @property
    def distribution(self) -> BaseDistribution:
        """Optuna's distribution of the values, see `to_param`."""
        # Here, as `lafs config` and shell completion read the settings of sweeps, and Optuna takes half a second.
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.kind == "integer":
            return IntDistribution(int(self.low), int(self.high))
        if self.is_numeric:
            return FloatDistribution(self.low, self.high, log=self.kind == "log_uniform")
        return CategoricalDistribution([self.to_param(value) for value in self.values])

    def to_param(self, value: Any) -> Any:
        """Return a value as Optuna's parameter: a number, or the JSON text of a choice.

        Optuna refuses lists as choices, and takes True and 1 for the same value.
        """
        return value if self.is_numeric else json.dumps(value)

    def from_param(self, param: Any) -> Any:
        """Return the value of a parameter."""
        return param if self.is_numeric else json.loads(param)

    def contains(self, value: Any) -> bool:
        """Return whether a value is in the range or among the choices."""
        if not self.is_numeric:
            return _is_among(value, self.values)
        is_number = type(value) in (int, float) and (self.kind != "integer" or value % 1 == 0)
        return is_number and self.low <= value <= self.high

    def edges(self) -> list[Any]:
        """Return the bounds of a range, or all choices: the values validated one by one."""
        if self.kind == "integer":
            return [int(self.low), int(self.high)]
        return [self.low, self.high] if self.is_numeric else [*self.values]


def _parse_values(kind: str, written: Any) -> dict[str, Any]:
    if not isinstance(written, list | tuple):
        raise ValueError(f"{kind}: {written!r} - write a list")
    found = f"{kind}: {list(written)}"
    if kind == "choice":
        if not written or any(_is_among(one, written[:i]) for i, one in enumerate(written)):
            raise ValueError(f"{found} - write at least one value, each once")
        return {"values": tuple(written)}
    if len(written) != 2 or any(isinstance(bound, bool) or not isinstance(bound, int | float) for bound in written):
        raise ValueError(f"{found} - write [low, high], two numbers")
    low, high = map(float, written)
    if not low < high:
        raise ValueError(f"{found} - write the lower bound first")
    if kind == "log_uniform" and low <= 0:
        raise ValueError(f"{found} - a logarithmic range needs bounds above 0")
    if kind == "integer" and not (low.is_integer() and high.is_integer()):
        raise ValueError(f"{found} - write integers")
    return {"low": low, "high": high}


def _is_among(value: Any, values: Iterable[Any]) -> bool:
    # True == 1 in Python; in a YAML file they are different values.
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in values)


Space = Mapping[str, Dimension]


def flatten(tree: Any, leaf_keys: Collection[str] = ()) -> Any:
    """Return a tree of settings with dotted keys; sections may be nested, as overrides nest them.

    The last of several definitions of a key wins. A mapping with a key of `leaf_keys` is a value.
    """
    if not isinstance(tree, Mapping):
        return tree
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value and not set(value) & set(leaf_keys):
            flat |= {f"{key}.{name}": one for name, one in flatten(value, leaf_keys).items()}
        else:
            flat[str(key)] = value
    return flat


def active_settings(space: Space, values: Mapping[str, Any]) -> Settings:
    """Return the values of the keys whose conditions hold, given the active keys before them."""
    settings: Settings = {}
    for key, dimension in space.items():
        if all(
            parent in settings and _is_among(settings[parent], allowed) for parent, allowed in dimension.when.items()
        ):
            settings[key] = values[key]
    return settings


def activating_settings(space: Space, key: str) -> Settings:
    """Return settings of earlier keys that make a key active: the first values allowed."""
    settings: Settings = {}
    earlier = [*space][: [*space].index(key)]
    for parent, values in space[key].when.items():
        if parent in earlier and values:
            settings |= {**activating_settings(space, parent), parent: values[0]}
    return settings
