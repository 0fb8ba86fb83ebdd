import math
from pathlib import Path
from typing import Any

import pytest

from lafs_ray.config.loader import (
    Duration,
    DurationField,
    Real,
    Section,
    apply_overrides,
    differences,
    load,
    parse_overrides,
    resolve,
)
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.config.yaml_text import read_yaml, write_yaml
from lafs_ray.errors import ConfigError


class Inner(Section):
    """A section."""

    rate: Real = 0.5
    """A number."""
    enabled: bool = False
    """A switch."""


class Outer(Section):
    """A configuration."""

    name: str
    """Required."""
    length: DurationField = Duration(amount=2.0, unit="epochs")
    """A duration."""
    inner: Inner = Inner()
    """A section."""


def test_yaml__reads_numbers_and_words_without_traps(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: 1e-3\nb: no\nc: true\nd: 7\ne: -.5\nf: 2.\ng: 10 epochs\n")
    tree = read_yaml(str(path))
    assert tree == {"a": 0.001, "b": "no", "c": True, "d": 7, "e": -0.5, "f": 2.0, "g": "10 epochs"}
    assert isinstance(tree["d"], int)


@pytest.mark.parametrize(
    ("content", "found"), [("a: 1\na: 2\n", "'a' appears twice"), ("a: [1\n", "expected ',' or ']'"), ("- 1\n", "list")]
)
def test_yaml__that_is_damaged_is_told_with_its_path(tmp_path, content, found):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match="bad.yaml") as raised:
        read_yaml(str(path))
    assert found in raised.value.found


def test_yaml__that_is_missing_is_told_with_its_path():
    with pytest.raises(ConfigError, match="nowhere/lafs.yaml"):
        read_yaml("nowhere/lafs.yaml")


@pytest.mark.parametrize(
    ("text", "steps"), [("10 epochs", 700), ("1 epoch", 70), ("500 steps", 500), ("0.2 run", 200), ("0.5 epochs", 35)]
)
def test_duration__counts_steps(text, steps):
    config = resolve(Outer, {"name": "x", "length": text}, "test")
    assert config.length.steps(70, 1000) == steps


LONG = "x" * 9000


@pytest.mark.parametrize(
    "wrong",
    [{"inner": [LONG]}, {"length": "9" * 9000}, {"rate": LONG}, {LONG: 1}, {"inner": {LONG: 1}}],
    ids=["section", "duration", "number", "key", "inner key"],
)
def test_resolve__message_is_short(wrong: dict[str, Any]) -> None:
    """Whatever the file holds, a message fits on a terminal."""
    with pytest.raises(ConfigError) as caught:
        resolve(Outer, {"name": "x", **wrong}, "test")
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("text", ["10", 10, "ten epochs", "-1 epochs", "2 run", "5 hours", None])
def test_duration__that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="length"):
        resolve(Outer, {"name": "x", "length": text}, "test")


@pytest.mark.parametrize("text", ["1234567 steps", "1234568 steps", "0.23529411764705882 run", "1e-05 run"])
def test_duration__keeps_its_digits(text):
    """What is stored reads back as the same length, and two lengths never as one."""
    config = resolve(Outer, {"name": "x", "length": text}, "test")
    stored = config.model_dump(mode="json")["length"]
    assert stored == text
    assert resolve(Outer, {"name": "x", "length": stored}, "test") == config


def test_duration__that_no_run_has_is_refused():
    with pytest.raises(ConfigError, match="longer than any run"):
        resolve(Outer, {"name": "x", "length": "1e13 steps"}, "test")


def test_resolve__names_every_error_at_once_with_suggestions():
    tree = {"nmae": "x", "inner": {"rat": 1, "rate": "fast", "enabled": 1}}
    with pytest.raises(ConfigError) as raised:
        resolve(Outer, tree, "my.yaml")
    message = str(raised.value)
    assert "my.yaml: 5 configuration errors" in message
    assert "nmae: unknown key; did you mean 'name'?" in message
    assert "name: required, but not given" in message
    assert "inner.rat: unknown key; did you mean 'rate'?" in message
    assert "inner.rate: 'fast'" in message
    assert "inner.enabled: 1" in message


@pytest.mark.parametrize("value", [True, "0.1", math.inf, math.nan, None])
def test_resolve__does_not_turn_other_things_into_numbers(value):
    with pytest.raises(ConfigError, match="inner.rate"):
        resolve(Outer, {"name": "x", "inner": {"rate": value}}, "test")


def test_overrides__set_dotted_keys_without_touching_the_tree(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("name: x\ninner: {rate: 0.1}\n")
    config = load(Outer, str(path), ["inner.rate=2e-1", "length=3 steps", "inner.enabled=true"])
    assert (config.inner.rate, config.inner.enabled, str(config.length)) == (0.2, True, "3 steps")
    tree = {"inner": {"rate": 0.1}}
    apply_overrides(tree, {"inner.rate": 0.9})
    assert tree == {"inner": {"rate": 0.1}}


@pytest.mark.parametrize("argument", ["inner.rate", "=3", "a=[1"])
def test_overrides__that_are_no_assignment_are_told(argument):
    with pytest.raises(ConfigError, match="argument"):
        parse_overrides([argument])


def test_dump__round_trips_through_resolve():
    config = resolve(Outer, {"name": "x", "length": "0.25 run"}, "test")
    assert resolve(Outer, config.model_dump(mode="json"), "again") == config


def test_differences__name_the_dotted_key_with_both_values():
    old = {"a": 1, "b": {"c": 2, "d": 3}}
    new = {"a": 1, "b": {"c": 5}, "e": 6}
    assert differences(old, new) == ["b.c: 2 -> 5", "b.d: 3 -> None", "e: None -> 6"]


UNREADABLE = [
    "9" * 5000,
    "!!int abc",
    "!!int ''",
    "!!float abc",
    "!!bool abc",
    "!!map abc",
    "!!seq abc",
    "!!timestamp abc",
    "!!python/object:os.system x",
    "[" * 10_000,
    "{a: " * 10_000,
    "{[1]: 2}",
    "{{}: 2}",
    "{<<: {lr: 1e-3}}",
]


@pytest.mark.parametrize("text", UNREADABLE, ids=lambda text: text[:30])
def test_read_yaml__value_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    """A value that PyYAML's constructors cannot build is a configuration error with its line, in overrides too."""
    path = tmp_path / "a.yaml"
    path.write_text(f"run:\n  name: debug\nbatch_size: {text}\n")
    with pytest.raises(ConfigError, match=r"a\.yaml") as raised:
        read_yaml(str(path))
    assert "line 3" in raised.value.found
    assert len(str(raised.value)) < 600
    with pytest.raises(ConfigError, match="argument"):
        parse_overrides([f"batch_size={text}"])


def test_read_yaml__aliases_that_grow(tmp_path: Path) -> None:
    """Aliases are read, but not when a kilobyte of them stands for millions of values."""
    path = tmp_path / "a.yaml"
    path.write_text("a: &rate 1e-3\nb: [*rate, *rate]\n")
    assert read_yaml(str(path)) == {"a": 1e-3, "b": [1e-3, 1e-3]}
    bomb = ["a0: &a0 [1]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12))]
    for text in ("\n".join(bomb), "a: &a [*a]", "a: &a {b: *a}"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="more than 100,000 values"):
            read_yaml(str(path))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("0100", 100),
        ("0o10", 8),
        ("0x1F", 31),
        ("-12", -12),
        ("+7", 7),
        ("1:30", "1:30"),
        ("190:20:30", "190:20:30"),
        ("0b11", "0b11"),
        ("1_000", "1_000"),
        ("1_0.5", "1_0.5"),
        ("0x_", "0x_"),
        ("0b_", "0b_"),
        ("2024-01-01", "2024-01-01"),
        ("2024-99-99", "2024-99-99"),
        ("=", "="),
        ("08", 8),
        ("1e-3", 1e-3),
        ("010.5", 10.5),
        ("null", None),
        ("~", None),
        ("true", True),
        ("yes", "yes"),
    ],
)
def test_parse_overrides__scalars_of_yaml_1_2(text: str, value: object) -> None:
    """Numbers are those of YAML 1.2's core schema: decimal, 0o and 0x; all else is text."""
    (found,) = parse_overrides([f"a={text}"]).values()
    assert (found, type(found)) == (value, type(value))
    assert parse_overrides(["a=" + write_yaml({"a": value}).partition(": ")[2].strip()]) == {"a": value}


def test_load__errors_of_a_file_have_their_lines(tmp_path: Path) -> None:
    """Of a key, of a place in a list, and of the section where a key is missing; values of the command line have
    none."""
    path = tmp_path / "a.yaml"
    lines = ["run:", "  name: a", "batch_size: 0x_", "optim:", "  lr: no", "  lrr: 1", "views:", "  blur: [1, x, 0]"]
    path.write_text("\n".join([*lines, "head: {hidden_dim: 0}"]))
    with pytest.raises(ConfigError, match="a.yaml: 6 configuration errors") as raised:
        load(PretrainConfig, str(path), ["head.hidden_dim=-1"])
    found = {line.split(":")[0].strip(): line for line in raised.value.found.splitlines() if line.strip()}
    ends = {"batch_size": 3, "optim.lr": 5, "optim.lrr": 6, "views.blur.1": 8}
    for key, line in ends.items():
        assert found[key].endswith(f" (line {line})"), found[key]
    assert "(line" not in found["head.hidden_dim"]
    assert "(line" not in found["data"]
