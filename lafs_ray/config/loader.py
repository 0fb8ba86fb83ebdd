"""The strict base of every section, YAML reading, overrides and error messages."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Hashable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_serializer
from yaml.constructor import ConstructorError

from lafs_ray.errors import ConfigError


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


SectionT = TypeVar("SectionT", bound=Section)


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


_LONGEST = 1e12
_MOST_VALUES = 100_000
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


def _parse_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _parse_float(value: Any) -> Any:
    # Strict mode would refuse `lr: 1`; True is an int to Python and stays refused.
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


DurationField = Annotated[Duration, BeforeValidator(_parse_duration)]
Real = Annotated[float, BeforeValidator(_parse_float)]
_Annealed = Annotated[tuple[DurationField, Real], BeforeValidator(_parse_tuple)]
AnnealingField = Annotated[tuple[_Annealed, ...], BeforeValidator(_parse_tuple)]
RealPair = Annotated[tuple[Real, Real], BeforeValidator(_parse_tuple)]
RealTriple = Annotated[tuple[Real, Real, Real], BeforeValidator(_parse_tuple)]


class _Loader(yaml.SafeLoader):
    """YAML with the scalars of YAML 1.2's core schema, and without the traps of 1.1.

    `1e-3` is a number (PyYAML reads a string), `010` is ten (eight), `1:30` a text (ninety), `no` and `on` are words
    (booleans), and a key that appears twice is an error (the last one counts). Whatever cannot be built is a YAMLError.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Build a value; PyYAML's constructors raise many kinds for one that they cannot build."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
            found = f"{str(node.value)[:40]!r} is no value of {node.tag.rpartition(':')[2][:40]!r}"
            raise ConstructorError(None, None, found, node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a dictionary, refusing repeated keys and merge keys."""
        keys: set[Hashable] = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key_node.tag == _MERGE:
                raise ConstructorError(None, None, "merge keys (<<) are not supported", key_node.start_mark)
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                break  # Refused below.
            if key in keys:
                raise yaml.YAMLError(f"the key {key!r} appears twice in the block at line {node.start_mark.line + 1}")
            keys.add(key)
        return super().construct_mapping(node, deep)


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, 0) if text.startswith(("0x", "0o")) else int(text)


_NULL, _MERGE, _BOOL, _INT, _FLOAT = (f"tag:yaml.org,2002:{name}" for name in ("null", "merge", "bool", "int", "float"))
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in (_NULL, _MERGE)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"(?:true|false)$"), list("tf"))
_Loader.add_implicit_resolver(_INT, re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _FLOAT, re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"), list("-+0123456789.")
)
_Loader.add_constructor(_INT, _construct_int)


def _parse_yaml(text: str) -> Any:
    """Return the tree in a text; a YAMLError: it is not YAML, too deep, or large once aliases are replaced."""
    try:
        tree = yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise yaml.YAMLError("values that are nested too deeply") from None
    open_nodes, count = [tree], 0
    while open_nodes:
        node, count = open_nodes.pop(), count + 1
        if count > _MOST_VALUES:
            raise yaml.YAMLError(f"more than {_MOST_VALUES:,} values, aliases counted where they are used")
        open_nodes += node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else ()
    return tree


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back as it was: it quotes what that would take for a number."""


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def write_yaml(tree: Mapping[str, Any]) -> str:
    """A tree of settings as YAML, in its own order."""
    text: str = yaml.dump(dict(tree), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def read_yaml(path: str) -> dict[str, Any]:
    """The tree of settings in a YAML file.

    Raises:
        ConfigError: the file is missing, is not YAML, or is not a mapping.
    """
    try:
        if not (Path(path).is_file() or Path(path).is_dir()) and Path(path).exists():
            raise OSError("a device, pipe or socket, which may never end")
        tree = _parse_yaml(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            path,
            found="no such file",
            expected="a YAML configuration",
            fix="check the path; the ready-made ones are under configs/",
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            path,
            found=" ".join(str(error).split()),
            expected="a readable YAML file",
            fix="correct the file at this place",
        ) from None
    if not isinstance(tree, dict):
        raise ConfigError(
            path,
            found=f"a YAML {type(tree).__name__}",
            expected="sections and keys, such as `data: {path: train.rec}`",
            fix="see configs/pretrain/lafs.yaml for the form",
        )
    return tree


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
                f"argument {argument!r}",
                found="no key=value",
                expected="an override such as optim.lr=1e-3",
                fix="write the dotted key, an equals sign and the value, without spaces around it",
            )
        try:
            overrides[key] = _parse_yaml(text)
        except yaml.YAMLError as error:
            raise ConfigError(
                f"argument {argument!r}",
                found=" ".join(str(error).split()),
                expected="a value in YAML's notation",
                fix="quote the value",
            ) from None
    return overrides


def apply_overrides(tree: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the tree with dotted keys set; whether the keys exist is checked by `resolve`."""
    result = {key: dict(value) if isinstance(value, dict) else value for key, value in tree.items()}
    for dotted, value in overrides.items():
        *path, last = dotted.split(".")
        node = result
        for name in path:
            child = node.get(name)
            node[name] = dict(child) if isinstance(child, dict) else {}
            node = node[name]
        node[last] = value
    return result


def resolve(kind: type[SectionT], tree: Mapping[str, Any], source: str) -> SectionT:
    """Validate a tree of settings.

    Args:
        kind: the configuration's class.
        tree: settings that differ from the defaults.
        source: where they come from, for the message.

    Raises:
        ConfigError: naming every unknown key, missing key and impossible value at once.
    """
    try:
        return kind.model_validate(dict(tree))
    except ValidationError as error:
        errors = [_explain(kind, item) for item in error.errors(include_url=False)]
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
    return ConfigError(
        f"{source}: {count}",
        found="\n    ".join(["", *errors]) if len(errors) > 1 else errors[0],
        expected=expected,
        fix="fix these keys; docs/config.md lists every key with its meaning",
    )


def load(kind: type[SectionT], path: str, overrides: Sequence[str] = ()) -> SectionT:
    """Read a YAML file, apply `key=value` overrides and validate the result."""
    tree = apply_overrides(read_yaml(path), parse_overrides(overrides))
    return resolve(kind, tree, path)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`["optim.lr: 0.001 -> 0.002"]` for every setting that differs between two trees."""
    lines: list[str] = []
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before} -> {after}")
    return lines


def _explain(kind: type[Section], error: Any) -> str:
    """Return one error as a line, with the key's path, the value found and a suggestion."""
    location = [str(part) for part in error["loc"]]
    path = ".".join(location)
    if error["type"] == "extra_forbidden":
        owner = section_at(kind, location[:-1])
        known = list(owner.model_fields) if owner else []
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
        return f"{path}: unknown key; {hint}"
    if error["type"] == "missing":
        return f"{path}: required, but not given"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{path}: {message}" if path else message
    return f"{path}: {error['input']!r} - {message[0].lower()}{message[1:]}"


def section_at(kind: type[Section], path: Sequence[str]) -> type[Section] | None:
    """The section class at a dotted path, None where the path leads to no section."""
    for name in path:
        if name not in kind.model_fields:
            return None
        found = _section_in(kind.model_fields[name].annotation)
        if found is None:
            return None
        kind = found
    return kind


def _section_in(annotation: Any) -> type[Section] | None:
    if get_origin(annotation) in (Union, types.UnionType, Annotated):
        return next(filter(None, map(_section_in, get_args(annotation))), None)
    # Python 3.10 takes tuple[int, int] for a class.
    is_class = isinstance(annotation, type) and get_origin(annotation) is None
    is_section = is_class and issubclass(annotation, Section)
    return annotation if is_section else None
