"""The strict base of every section, overrides and error messages."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, field_validator, model_serializer

from lafs_ray.config.yaml_text import key_lines, parse_yaml, read_yaml
from lafs_ray.errors import ConfigError
from lafs_ray.messages import has_secret


class Section(BaseModel):
    """Base of every section: frozen, no unknown keys, no nan, defaults validated, no coercion."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        validate_default=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    @field_validator("*")
    @classmethod
    def _no_secrets(cls, value: Any) -> Any:
        for one in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(one, str) and "://" in one and has_secret(one):
                raise ValueError(
                    "credentials in a URI, which would get into config.json, checkpoints and logs; "
                    "put them into the environment or the storage's own configuration"
                )
        return value


SectionT = TypeVar("SectionT", bound=Section)

STORED = "stored"
"""In a validation's context: whether the settings are those of a run that is read."""


class Tuning(Enum):
    """Marks a field, and all fields below it, for sweeps: `Annotated[Rate, Tuning.MUTABLE]`."""

    OPERATIONAL = "changes where a run computes or what it logs, not what it learns"
    DEFINES_LOSS = "changes what the loss measures, so losses cannot be compared across values"
    MUTABLE = "may change when training resumes from a checkpoint (population-based training)"


class Duration(Section):
    """A length of training: `10 epochs`, `500 steps` or `0.2 run`."""

    amount: float
    """How many units; never negative."""
    unit: str
    """epochs, steps or run."""

    def steps(self, steps_per_epoch: int, run_steps: int | None = None) -> int:
        """Whole optimizer steps; `run_steps` is needed for fractions of the run."""
        if self.unit == "steps":
            return round(self.amount)
        if self.unit == "epochs":
            return round(self.amount * steps_per_epoch)
        assert run_steps is not None, "a run cannot be as long as a fraction of itself"
        return round(self.amount * run_steps)

    def __str__(self) -> str:
        # All digits: what is stored and compared must read back as the same length.
        amount = int(self.amount) if self.amount.is_integer() else self.amount
        return f"{amount} {self.unit}"

    @model_serializer
    def _as_text(self) -> str:
        return str(self)


_MOST_ERRORS = 40
_LONGEST = 1e12
_DURATION = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)\s*(epoch|step|run)s?\s*")


def _parse_duration(value: Any) -> Any:
    if isinstance(value, Duration):
        return value
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is not a duration; write '10 epochs', '500 steps' or '0.2 run'")
    unit = match[2] if match[2] == "run" else f"{match[2]}s"
    if float(match[1]) > _LONGEST:
        raise ValueError(f"{value!r} is longer than any run; write at most {_LONGEST:g} {unit}")
    if unit == "run" and float(match[1]) > 1:
        raise ValueError(f"{value!r} is more than the whole run; write a fraction, such as '0.2 run'")
    return Duration(amount=float(match[1]), unit=unit)


def parse_tuple(value: Any) -> Any:
    """Return a list of YAML as a tuple, for fields whose type is one; anything else as it is."""
    return tuple(value) if isinstance(value, list) else value


def _parse_float(value: Any) -> Any:
    # Strict mode would refuse `lr: 1`; True is an int to Python and stays refused.
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


DurationField = Annotated[Duration, BeforeValidator(_parse_duration)]
Real = Annotated[float, BeforeValidator(_parse_float)]
_Annealed = Annotated[tuple[DurationField, Real], BeforeValidator(parse_tuple)]
AnnealingField = Annotated[tuple[_Annealed, ...], BeforeValidator(parse_tuple)]
RealPair = Annotated[tuple[Real, Real], BeforeValidator(parse_tuple)]
RealTriple = Annotated[tuple[Real, Real, Real], BeforeValidator(parse_tuple)]


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """`["optim.lr=1e-3"]` as `{"optim.lr": 0.001}`; values are read as YAML.

    Raises:
        ConfigError: an argument is not of the form key=value.
    """
    overrides: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key:
            raise ConfigError(
                f"argument {argument[:200]!r}",
                found="no key=value",
                expected="an override such as optim.lr=1e-3",
                fix="write the dotted key, an equals sign and the value, without spaces around it",
            )
        try:
            # A name is text, as in a file.
            overrides[key] = parse_yaml(f"name: {text}")["name"] if key.endswith(".name") else parse_yaml(text)
        except yaml.YAMLError as error:
            raise ConfigError(
                f"argument {argument[:200]!r}",
                found=" ".join(str(error).split())[:400],
                expected="a value in YAML's notation",
                fix="quote the value",
            ) from None
    return overrides


def apply_overrides(tree: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the tree with dotted keys set; whether the keys exist is checked by `resolve`.

    A number is a place in a list: `data.mix.0.share`. One of `_ALTERNATIVES` replaces the other.
    """
    result = dict(tree)
    for dotted, value in overrides.items():
        for one, other in _ALTERNATIVES:
            replaced = dotted.removesuffix(one) + other
            if value is not None and f".{dotted}".endswith(f".{one}") and replaced not in overrides:
                result = _without(result, replaced.split("."))
        result = _with(result, dotted.split("."), value)
    return result


_ALTERNATIVES = (("data.path", "data.mix"), ("data.mix", "data.path"))


def _with(node: Any, path: Sequence[str], value: Any) -> Any:
    """Return a copy of a node of the tree with the value at a path below it."""
    if not path:
        return value
    name, *rest = path
    if isinstance(node, list | tuple) and name.isdecimal() and int(name) < len(node):
        return [_with(one, rest, value) if place == int(name) else one for place, one in enumerate(node)]
    children = dict(node) if isinstance(node, Mapping) else {}
    return {**children, name: _with(children.get(name), rest, value)}


def _without(tree: Mapping[str, Any], path: Sequence[str]) -> dict[str, Any]:
    """Return a copy of the tree without what is at a path."""
    name, *rest = path
    if rest and isinstance(tree.get(name), Mapping):
        return {**tree, name: _without(tree[name], rest)}
    return {key: one for key, one in tree.items() if rest or key != name}


def resolve(
    kind: type[SectionT],
    tree: Mapping[str, Any],
    source: str,
    lines: Callable[[], Mapping[str, int]] = dict,
    *,
    stored: bool = False,
) -> SectionT:
    """Validate a tree of settings.

    Args:
        kind: the configuration's class.
        tree: settings that differ from the defaults.
        source: where they come from, for the message.
        lines: returns the lines of keys in a file, by dotted path, 0 for no line; called for the message alone.
        stored: whether a run has had them, whose networks are read: those without effect are not refused.

    Raises:
        ConfigError: naming every unknown key, missing key and impossible value at once.
    """
    try:
        return kind.model_validate(dict(tree), context={STORED: stored})
    except ValidationError as error:
        known = lines()
        errors = [_explain(kind, item) + _line(item, known) for item in error.errors(include_url=False)]
        expected = f"keys and values of {kind.__name__}"
        raise config_error(source, errors, expected) from None


def validation_errors(kind: type[SectionT], tree: Mapping[str, Any]) -> list[str]:
    """Return a line for each error that `resolve` would raise."""
    try:
        kind.model_validate(dict(tree))
    except ValidationError as error:
        return [_explain(kind, item) for item in error.errors(include_url=False)]
    return []


def config_error(source: str, errors: Sequence[str], expected: str) -> ConfigError:
    """Return one exception for all configuration errors of a source."""
    count = "1 configuration error" if len(errors) == 1 else f"{len(errors)} configuration errors"
    if len(errors) > _MOST_ERRORS:
        errors = [*errors[:_MOST_ERRORS], f"… and {len(errors) - _MOST_ERRORS} more"]
    return ConfigError(
        f"{source}: {count}",
        found="\n    ".join(["", *errors]) if len(errors) > 1 else errors[0],
        expected=expected,
        fix="fix these keys; docs/config.md lists every key with its meaning",
    )


def load(kind: type[SectionT], path: str, overrides: Sequence[str] = ()) -> SectionT:
    """Read a YAML file, apply `key=value` overrides and validate the result."""
    given = parse_overrides(overrides)

    def lines() -> dict[str, int]:
        """Lines of keys whose values are the file's; 0 for those of the command line."""
        parts = tuple(f"{key}." for key in given)
        written = {key: line for key, line in key_lines(path).items() if not f"{key}.".startswith(parts)}
        return {**written, **dict.fromkeys(given, 0)}

    return resolve(kind, apply_overrides(read_yaml(path), given), path, lines)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`["optim.lr: 0.001 -> 0.002"]` for every setting that differs between two trees."""
    lines: list[str] = []
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key), new.get(key)
        # A section that an older version did not have, or whose settings are all none.
        before = {} if before is None and isinstance(after, dict) else before
        if isinstance(before, dict) and isinstance(after, dict):
            lines += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before} -> {after}")
    return lines


def _line(error: Any, lines: Mapping[str, int]) -> str:
    """Return where the key of an error is written, or the section without it; nothing where that is not known."""
    location = [str(part) for part in error["loc"]]
    written = (lines.get(".".join(location[:end])) for end in range(len(location), 0, -1))
    line = next((line for line in written if line is not None), 0)
    return f" (line {line})" if line else ""


def _explain(kind: type[Section], error: Any) -> str:
    """Return one error as a line, with the key's path, the value found and a suggestion."""
    location = [str(part) for part in error["loc"]]
    path = ".".join(location)[:200]
    if error["type"] == "extra_forbidden":
        owner = section_at(kind, location[:-1])
        known = list(owner.model_fields) if owner else []
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
        return f"{path}: unknown key; {hint}"
    if error["type"] == "missing":
        return f"{path}: required, but not given"
    section = section_at(kind, location)
    if error["type"] in ("model_type", "model_attributes_type") and section is not None:
        keys = ", ".join(f"{path}.{name}" for name in section.model_fields)
        return f"{path}: {repr(error['input'])[:200]}, but it is a section; set its keys: {keys}"
    message = error["msg"].removeprefix("Value error, ")[:1000]
    if error["type"] == "value_error":
        return f"{path}: {message}" if path else message
    return f"{path}: {repr(error['input'])[:200]} - {message[0].lower()}{message[1:]}"


def section_at(kind: type[Section], path: Sequence[str]) -> type[Section] | None:
    """The section class at a dotted path, None where the path leads to no section."""
    names = list(path)
    while names:
        name = names.pop(0)
        if name not in kind.model_fields:
            return None
        annotation = kind.model_fields[name].annotation
        # A number is a place in a list of sections.
        found = _section_in_list(annotation) if names and names[0].isdecimal() else _section_in(annotation)
        if found is None:
            return None
        names = names[1:] if names and names[0].isdecimal() else names
        kind = found
    return kind


def _section_in_list(annotation: Any) -> type[Section] | None:
    if get_origin(annotation) is tuple:
        return next(filter(None, map(_section_in, get_args(annotation))), None)
    if get_origin(annotation) in (Union, types.UnionType, Annotated):
        return next(filter(None, map(_section_in_list, get_args(annotation))), None)
    return None


def _section_in(annotation: Any) -> type[Section] | None:
    if get_origin(annotation) in (Union, types.UnionType, Annotated):
        return next(filter(None, map(_section_in, get_args(annotation))), None)
    # Python 3.10 takes tuple[int, int] for a class.
    is_class = isinstance(annotation, type) and get_origin(annotation) is None
    is_section = is_class and issubclass(annotation, Section)
    return annotation if is_section else None
