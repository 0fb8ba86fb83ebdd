"""Mutations that take a file apart by its format, change the parts, and put it together again.

Those of `inputs.py` change bytes; here lengths, offsets, trees, records, opcodes and members are exchanged, so that
most results pass the first checks of a reader.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import Any

import yaml

Mutator = Callable[[bytes, bytes, random.Random], bytes]
"""An input, another sound one of the same format, and the source of chance."""

_LIMIT, _MOST_NODES = 1 << 16, 20_000
EDGES = [0, 1, 2, 3, 7, 8, 255, 256, 65535, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1]
_SCALARS: list[Any] = [None, True, False, 0, -1, 1, 3, 1e308, -0.0, 1e-320, 10**30, "", "a", "../x", "é\u202e", [], {}]
_SCALARS += [1 << 31, 1 << 53, "\x1b]0;x\x07", "NaN", "s3://b/c", "/dev/zero", "0" * 300, [[]], {"": 0}, -(1 << 63)]
_TEXT = [
    "\x00",
    "\x1b[2J",
    "\u202e",
    "\ufeff",
    "\ud7ff",
    "é",
    "😀",
    '"',
    "'",
    "\\",
    ",",
    "\t",
    "\r",
    "\n",
    ";",
    "|",
    "=",
    "#",
]
_TEXT += [
    "../",
    "%s",
    "{0}",
    "-",
    "+1",
    "1e999",
    "nan",
    "0x10",
    " ",
    "\u2028",
    "a" * 5000,
    "9" * 40,
    "&a *a",
    "!!int ",
    "<<: ",
]


def exchange_numbers(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Exchange two places that look like lengths or offsets, or make one telling."""
    changed, size = bytearray(data), rng.choice([2, 4, 4, 8])
    step = rng.choice([1, 2, 4])
    places = [
        p for p in range(0, len(data) - size + 1, step) if int.from_bytes(data[p : p + size], "little") <= 2 * len(data)
    ]
    if not places:
        return splice(data, other, rng)
    one, two = rng.choice(places), rng.choice(places)
    value = int.from_bytes(data[one : one + size], "little")
    number = rng.choice([value + 1, value - 1, 2 * value, len(data), len(data) - one, one, -value, rng.choice(EDGES)])
    if rng.random() < 0.4:
        changed[one : one + size], changed[two : two + size] = data[two : two + size], data[one : one + size]
    else:
        changed[one : one + size] = (number % (1 << 8 * size)).to_bytes(size, rng.choice(["little", "little", "big"]))
    return bytes(changed)


def splice(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """The beginning of one file and the end of another, cut at the same place or anywhere."""
    cut = rng.randrange(len(data) + 1)
    start = cut if rng.random() < 0.5 else rng.randrange(len(other) + 1)
    return data[:cut] + other[min(start, len(other)) :]


def _nodes(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a tree; of one that holds a part many times, the first thousands."""
    found, waiting = [], [tree]
    while waiting and len(found) < _MOST_NODES:
        node = waiting.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        found += [(node, key) for key in keys]
        waiting += [node[key] for key in keys]
    return found


def change_tree(tree: Any, rng: random.Random) -> Any:
    """Change one to four places of a tree: another type, another place's value, a missing, further or renamed key."""
    box = [tree]
    for _ in range(rng.choice([1, 1, 2, 4])):
        nodes = _nodes(box)
        node, key = rng.choice(nodes)
        kind = rng.randrange(7)
        if kind <= 1:
            node[key] = rng.choice(_SCALARS)
        elif kind == 2:
            other, place = rng.choice(nodes)
            node[key], other[place] = json.loads(json.dumps(other[place])), json.loads(json.dumps(node[key]))
        elif kind == 3 and isinstance(node, dict):
            del node[key]
        elif kind == 4 and isinstance(node, dict):
            node[rng.choice(_TEXT) + str(key)[:20]] = node.pop(key)
        elif kind == 5 and len(nodes) < _MOST_NODES:
            node[key] = rng.choice([[node[key]] * rng.choice([1, 2, 50]), {"a": node[key]}, [], {}])
        elif isinstance(node[key], str):
            at = rng.randrange(len(node[key]) + 1)
            node[key] = node[key][:at] + rng.choice(_TEXT) + node[key][at:]
        elif isinstance(node[key], int | float):
            node[key] = rng.choice([-node[key], node[key] * 2, node[key] + 1, float(node[key]), str(node[key])])
    return box[0]


def json_tree(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """A JSON text as a tree; sometimes numbers that JSON does not have, a repeated key or depth."""
    try:
        text = json.dumps(change_tree(json.loads(data), rng), ensure_ascii=rng.random() < 0.5)
    except (ValueError, TypeError, OverflowError):
        return splice(data, other, rng)
    if rng.random() < 0.1:
        text = re.sub(r"\d+", rng.choice(["NaN", "-Infinity", "1e999", "1" * 5000, "0.1e-400"]), text, count=1)
    if rng.random() < 0.05:
        text = rng.choice(["[" * 3000, '{"a":' * 3000, text + text, "[" + "{}," * 5000 + "0]", "\ufeff" + text])
    return text.encode(rng.choice(["utf-8", "utf-8", "utf-8", "utf-16"]), "surrogatepass")


def json_lines(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """One line of several as a tree; or lines in another order."""
    lines = data.splitlines() or [b"{}"]
    at = rng.randrange(len(lines))
    if rng.random() < 0.8:
        lines[at] = json_tree(lines[at], other, rng)
    else:
        rng.shuffle(lines)
    return b"\n".join(lines) + rng.choice([b"\n", b"\n", b""])


def yaml_tree(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """A YAML text as a tree, or a token of YAML at any place of it."""
    if rng.random() < 0.6:
        try:
            return yaml.safe_dump(change_tree(yaml.safe_load(data), rng), allow_unicode=True).encode("utf-8", "replace")
        except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError):
            return splice(data, other, rng)
    tokens = [
        *_TEXT,
        "&a ",
        "*a",
        "? ",
        ": ",
        "- ",
        "[",
        "]",
        "{",
        "}",
        "|\n",
        ">-\n",
        "---\n",
        "...\n",
        "%YAML 1.1\n",
        "!!binary ",
    ]
    tokens += [
        "!!python/object:os.system ",
        "2024-01-01",
        "1:30",
        "0o17",
        ".inf",
        "~",
        "!!set ",
        "!!timestamp ",
        "!<x> ",
    ]
    text = data.decode("utf-8", "replace")
    at = rng.randrange(len(text) + 1)
    return (text[:at] + rng.choice(tokens) + text[at + rng.choice([0, 0, 1, 5]) :]).encode("utf-8", "replace")


def cells(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Cells of a text table exchanged, extended by telling text, or columns and rows moved."""
    text = data.decode("utf-8", "replace")
    comma = max(",\t; ", key=text.count)
    rows = [line.split(comma) for line in text.splitlines()] or [[""]]
    for _ in range(rng.choice([1, 1, 3])):
        row = rng.choice(rows)
        at, kind = rng.randrange(len(row)), rng.randrange(6)
        if kind <= 1:
            place = rng.randrange(len(row[at]) + 1)
            row[at] = row[at][:place] + rng.choice(_TEXT) + row[at][place:]
        elif kind == 2:
            donor = rng.choice(rows)
            row[at] = donor[rng.randrange(len(donor))]
        elif kind == 3:
            row[at] = str(rng.choice(_SCALARS))[:300]
        elif kind == 4:
            row.insert(at, rng.choice(_TEXT)) if rng.random() < 0.5 or len(row) == 1 else row.pop(at)
        else:
            rng.shuffle(rows)
    end = rng.choice(["\n", "\n", "\r\n", "\r", ""])
    return end.join(comma.join(row) for row in rows).encode("utf-8", "surrogatepass") + end.encode()


def mutate(mutators: tuple[Mutator, ...], seeds: list[bytes], rng: random.Random) -> bytes:
    """One to three mutations of a seed, at most 64 KiB."""
    data = rng.choice(seeds)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        chosen = rng.choice([*mutators, *mutators, *mutators, exchange_numbers, splice])
        other = rng.choice(seeds)
        try:
            data = chosen(data, other, rng)[:_LIMIT] or b"\0"
        except Exception:  # An earlier mutation left nothing of that format.
            data = splice(data, other, rng)[:_LIMIT] or b"\0"
    return data
