"""Mutations of binary formats by their parts: records, opcodes, members of an archive, headers and footers."""

from __future__ import annotations

import contextlib
import io
import json
import pickletools
import random
import struct
import zipfile
import zlib

from lafs_ray.data.recordio import encode_record
from tests.fuzz.structures import EDGES, change_tree, exchange_numbers, splice
from tests.fuzz.targets import oracle_records


def records(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Whole records repeated, left out, in another order, from another file, or with another's header."""
    bodies = [body for _, body in oracle_records(data)[0]] or [b""]
    more = [body for _, body in oracle_records(other)[0]] or bodies
    for _ in range(rng.choice([1, 2, 4])):
        at, kind = rng.randrange(len(bodies)), rng.randrange(6)
        if kind == 0:
            bodies.insert(rng.randrange(len(bodies) + 1), bodies[at])
        elif kind == 1 and len(bodies) > 1:
            del bodies[at]
        elif kind == 2:
            rng.shuffle(bodies)
        elif kind == 3:
            bodies[at] = rng.choice(more)
        elif kind == 4:
            bodies[at] = rng.choice(more)[:24] + bodies[at][24:]
        else:
            field = rng.choice([(0, "I"), (4, "f"), (8, "Q"), (16, "Q"), (24, "f")])
            value = rng.choice(EDGES[:12]) if field[1] != "f" else rng.choice([0.5, -1.0, 2.0**24, 1e38, float("nan")])
            packed = struct.pack("<" + field[1], value)
            bodies[at] = bodies[at][: field[0]] + packed + bodies[at][field[0] + len(packed) :]
    return b"".join(map(encode_record, bodies))


def opcodes(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Instructions of a pickle repeated, left out, exchanged, or taken from another one."""
    ops, more = _instructions(data), _instructions(other)
    if not ops:
        return splice(data, other, rng)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at, kind = rng.randrange(len(ops)), rng.randrange(6)
        if kind == 0:
            ops[at : at + 1] = [ops[at]] * rng.choice([2, 2, 50])
        elif kind == 1 and len(ops) > 1:
            del ops[at]
        elif kind == 2:
            two = rng.randrange(len(ops))
            ops[at], ops[two] = ops[two], ops[at]
        elif kind == 3:
            ops[at] = rng.choice(more or ops)
        elif kind == 4:
            start = rng.randrange(len(ops))
            ops[at:at] = ops[start : start + rng.choice([2, 5, 20])]
        elif len(ops[at]) > 1:
            ops[at] = ops[at][:1] + bytes(rng.choice([0, 1, 255, rng.randrange(256)]) for _ in ops[at][1:])
    return b"".join(ops)


def _instructions(data: bytes) -> list[bytes]:
    places = []
    with contextlib.suppress(Exception):  # As far as it can be read.
        for _, _, position in pickletools.genops(data):
            places.append(position or 0)
    return [data[a:b] for a, b in zip(places, [*places[1:], len(data)], strict=True)]


def members(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Members of an archive changed and stored with right checksums; or fields of its directory."""
    if rng.random() < 0.3:
        return exchange_numbers(data[-400:], other, rng).join([data[:-400], b""]) if len(data) > 400 else data
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            content = [(info.filename, archive.read(info)) for info in archive.infolist()]
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, ValueError, OSError, RuntimeError):
        return exchange_numbers(data, other, rng)
    at = rng.randrange(len(content))
    pickled = next((number for number, (name, _) in enumerate(content) if name.endswith("data.pkl")), at)
    kind = rng.randrange(8)
    name, value = content[pickled if kind <= 3 else at]
    if kind <= 3:
        content[pickled] = (name, opcodes(value, value, rng))
    elif kind == 4:
        content[at] = (
            name,
            rng.choice([value[:-1], value + b"\0", value * 2, b"", exchange_numbers(value + b"abcd", value, rng)]),
        )
    elif kind == 5:
        content[at] = (rng.choice([content[rng.randrange(len(content))][0], "../x", "a/data.pkl", name + "0"]), value)
    elif kind == 6:
        del content[at]
    else:
        rng.shuffle(content)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", rng.choice([zipfile.ZIP_STORED] * 6 + [zipfile.ZIP_DEFLATED])) as archive:
        for name, value in content:
            archive.writestr(name, value)
    return buffer.getvalue()


def headed(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """A safetensors file with another tree as header, its length set right."""
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
    except ValueError:
        return exchange_numbers(data, other, rng)
    inner = header.get("__metadata__")
    described = [key for key, text in inner.items() if text[:1] in ("{", "[")] if isinstance(inner, dict) else []
    if described and rng.random() < 0.6:
        key = rng.choice(described)
        inner[key] = json.dumps(change_tree(json.loads(inner[key]), rng))
    else:
        header = change_tree(header, rng)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def footer(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """A Parquet file with changed numbers in its footer or page headers: thrift's numbers have one to ten bytes."""
    length = int.from_bytes(data[-8:-4], "little") if len(data) > 12 else 0
    start = max(len(data) - 8 - length, 0)
    low, high = (start, len(data) - 8) if rng.random() < 0.8 else (4, start)
    if high <= low:
        return exchange_numbers(data, other, rng)
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        at, kind = rng.randrange(low, high), rng.randrange(5)
        if kind == 0:
            changed[at] = rng.choice([changed[at] + 1, changed[at] - 1, changed[at] ^ 0x80, rng.randrange(256)]) % 256
        elif kind == 1:
            changed[at : at + 1] = rng.choice(
                [b"\xff\xff\xff\xff\x0f", b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x80\x80\x04"]
            )
        elif kind == 2:
            two = rng.randrange(low, high)
            changed[at], changed[two] = changed[two], changed[at]
        elif kind == 3:
            del changed[at : at + rng.choice([1, 4])]
        else:
            changed[at:at] = changed[low : low + rng.choice([1, 8, 30])]
    if rng.random() < 0.7 and low == start:  # The footer's own length fits again.
        changed[-8:-4] = max(len(changed) - 8 - start, 0).to_bytes(4, "little")
    return bytes(changed)


def tar_headers(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """A tar with changed fields of headers, mostly under a checksum that fits, or with blocks moved or left out."""
    blocks = [bytearray(data[at : at + 512]) for at in range(0, len(data), 512)]
    headers = [number for number, block in enumerate(blocks) if block[257:262] == b"ustar"]
    for _ in range(rng.choice([1, 1, 2, 4])):
        if not headers or rng.random() < 0.15:
            return exchange_numbers(data, other, rng)
        number = rng.choice(headers)
        if number >= len(blocks) or len(blocks[number]) < 512:
            continue
        block, kind = blocks[number], rng.randrange(6)
        if kind == 0:
            size = rng.choice(
                [b"00000000000\0", b"77777777777\0", b"\xff" * 12, b"\x80" + b"\0" * 9 + b"\x10\0", b" 7 \0"]
            )
            block[124 : 124 + len(size)] = size
        elif kind == 1:
            block[156] = rng.choice(b"01234567xgLKSVD\0")
        elif kind == 2:
            name = rng.choice([b"/../a.jpg", b"a.jpg/", b".jpg", b"a.", b"\xff\xfe.cls", b"a.b.json", b"a.jpg", b""])
            block[: len(name) + 1] = name + b"\0"
        elif kind == 3:
            block[345:349] = rng.choice([b"..\0\0", b"/\0\0\0", b".x\0\0"])
        elif kind == 4:
            blocks.insert(number, bytearray(rng.choice(blocks)))
        else:
            del blocks[rng.randrange(len(blocks))]
        if rng.random() < 0.9:
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
    return b"".join(blocks)
