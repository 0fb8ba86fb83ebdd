"""JSON read within bounds, and its types."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, TypeAdapter

from lafs_ray.data.io.json_text import checked, parse_json, read_json, write_json


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"[" + b"{}," * 600_000 + b"{}]", "600,001|600,002"),
        (b" " * (65 << 20), "68,157,440 bytes"),
        (b"1" * 5000, "5000 digits"),
        (b"\xff\xfe\xfa", "decode"),
        (b"", "Expecting value"),
    ],
    ids=["lists", "objects", "many", "long", "digits", "latin-1", "empty"],
)
def test_parse_json__within_bounds(text: bytes, reason: str, tmp_path: Path) -> None:
    """Depth, length and number of objects are bounded, whatever the text; the same in a file."""
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(ValueError, match=reason):
        parse_json(text)
    with pytest.raises(ValueError, match=reason):
        read_json(str(tmp_path / "a.json"))


def test_parse_json__numbers_that_json_does_not_have() -> None:
    """NaN and infinities become None."""
    assert parse_json('[NaN, -Infinity, 1.5, "NaN"]') == [None, None, 1.5, "NaN"]


class _Pair(BaseModel):
    left: int
    right: list[int]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (5, "not an object"),
        ({"left": "x\x1b[2J", "right": []}, "left: "),
        ({"left": 1, "right": [1, None]}, r"right\.1: "),
        ({"left": 1, "right": {"\x1b]0;": 1}}, "right: "),
    ],
)
def test_checked__names_the_place(value: object, reason: str) -> None:
    """A value of another type is named by its place, without its content, in printable characters."""
    with pytest.raises(ValueError, match=reason) as caught:
        checked(TypeAdapter(_Pair), value)
    assert str(caught.value).isprintable()
    assert "2J" not in str(caught.value)


def test_write_json__is_read_back(tmp_path: Path) -> None:
    """What is written reads back the same; a number that JSON does not have is refused before anything is written."""
    path = str(tmp_path / "a.json")
    write_json(path, {"a": [1, 0.1, None, "\u00e9"]})
    assert read_json(path) == {"a": [1, 0.1, None, "\u00e9"]}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, float("nan"))
    assert read_json(path) == {"a": [1, 0.1, None, "\u00e9"]}
