"""YAML of settings: the scalars of YAML 1.2, read within bounds and written so that they read back the same."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from lafs_ray.errors import ConfigError

_MOST_VALUES, _MOST_DEPTH = 100_000, 50
# PyYAML takes up to 1 KB of memory and 20 µs for each character.
_MOST_CHARACTERS = 200_000


class _Loader(yaml.SafeLoader):
    """YAML with the scalars of YAML 1.2's core schema, and without the traps of 1.1.

    `1e-3` is a number (PyYAML reads a string), `010` is ten (eight), `1:30` a text (ninety), `no` and `on` are words
    (booleans), and a key that appears twice is an error (the last one counts). Whatever cannot be built is a YAMLError.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a value and what is in it, down to a depth that Python can go."""
        self._depth += 1
        if self._depth > _MOST_DEPTH:
            found = f"values that are nested more than {_MOST_DEPTH} deep"
            raise ComposerError(None, None, found, self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

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
                line = node.start_mark.line + 1
                raise yaml.YAMLError(f"the key {repr(key)[:200]} appears twice in the block at line {line}")
            keys.add(key)
        for key_node, value_node in node.value if isinstance(node, yaml.MappingNode) else ():
            if key_node.value == "name" and value_node.tag in (_BOOL, _INT, _FLOAT):
                value_node.tag = "tag:yaml.org,2002:str"  # A name is text: 20241128, or 007.
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


def parse_yaml(text: str) -> Any:
    """Return the tree in a text; a YAMLError: it is not YAML, too deep, or large once aliases are replaced."""
    if len(text) > _MOST_CHARACTERS:
        raise yaml.YAMLError(f"{len(text):,} characters, more than {_MOST_CHARACTERS:,}")
    tree = yaml.load(text, Loader=_Loader)
    open_nodes, count = [tree], 0
    while open_nodes:
        node, count = open_nodes.pop(), count + 1
        if count > _MOST_VALUES:
            raise yaml.YAMLError(f"more than {_MOST_VALUES:,} values, aliases counted where they are used")
        open_nodes += node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else ()
    return tree


def key_lines(path: str) -> dict[str, int]:
    """Return the line of each key of a YAML file that `read_yaml` reads, by its dotted path."""
    found: dict[str, int] = {}
    open_nodes = [("", yaml.compose(Path(path).read_text("utf-8"), Loader=_Loader))]
    while open_nodes:
        prefix, node = open_nodes.pop()
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            if f"{prefix}{key.value}" not in found:
                found[f"{prefix}{key.value}"] = key.start_mark.line + 1
                open_nodes.append((f"{prefix}{key.value}.", value))
    return found


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
        with open(path, encoding="utf-8") as file:
            tree = parse_yaml(file.read(_MOST_CHARACTERS + 1))
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
            found=" ".join(str(error).split())[:400],
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
