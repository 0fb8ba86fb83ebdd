"""Settings as rows of key, default and meaning, from the classes and their docstrings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic_core import PydanticUndefined

from lafs_ray.config.loader import Section, section_at


@dataclass(frozen=True)
class Setting:
    """One key of a configuration.

    Args:
        key: dotted.
        default: as written in YAML; None: required.
        meaning: its docstring, in one line.
        choices: the values of a key that has few.
    """

    key: str
    default: str | None
    meaning: str
    choices: tuple[str, ...]


def settings(kind: type[Section], prefix: str = "") -> Iterator[Setting]:
    """Yield every setting of a configuration, in the order of its classes."""
    for name, info in kind.model_fields.items():
        inner = section_at(kind, [name])
        if inner is not None and not isinstance(_plain(info.default), str):
            yield from settings(inner, f"{prefix}{name}.")
            continue
        default = None if info.default is PydanticUndefined else _written(_plain(info.default))
        meaning = " ".join(str(info.description).split())
        yield Setting(f"{prefix}{name}", default, meaning, tuple(map(str, _choices(info.annotation))))


def _choices(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if get_origin(annotation) is Annotated:
        return _choices(get_args(annotation)[0])
    return ("true", "false") if annotation is bool else ()


def _plain(default: Any) -> Any:
    return default.model_dump(mode="json") if isinstance(default, Section) else default


def _written(value: Any) -> str:
    """Return a value as in YAML."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_written(item)}' for key, item in value.items())}}}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_written, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
